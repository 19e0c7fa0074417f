/** Interrupt controllers and timers on the move. */
import assert from "node:assert/strict";
import {
  Ioctl,
  IrqchipId,
  IrqRoutingType,
  KvmIrqchip,
  KvmIrqLevel,
  KvmIrqRouting,
  KvmIrqRoutingEntry,
  KvmIrqRoutingIrqchip,
  KvmMpState,
  KvmMsi,
  KvmPitState2,
  KvmReinjectControl,
  MpState,
} from "@mkvm/kvm-abi";
import { CODE } from "../test-vm.ts";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const { pic, ioapic } = KvmIrqchip.fields.chip.members;
const IA32_TSC = 0x10;
const IA32_TSC_DEADLINE = 0x6e0;
const APIC = { tpr: 0x80, svr: 0xf0, lvtTimer: 0x320, initialCount: 0x380, currentCount: 0x390, divide: 0x3e0 } as const;

function getChip(vm: MovingVm, chip: number): DataView {
  const bytes = KvmIrqchip.encode({ chip_id: chip });
  vm.call(vm.fd, Ioctl.KVM_GET_IRQCHIP, bytes);
  return new DataView(bytes.buffer);
}
function setPic(vm: MovingVm, chip: number, state: Partial<ReturnType<typeof pic.read>>): void {
  const bytes = KvmIrqchip.encode({ chip_id: chip });
  pic.write(new DataView(bytes.buffer), 0, { ...pic.read(getChip(vm, chip), 0), ...state });
  vm.call(vm.fd, Ioctl.KVM_SET_IRQCHIP, bytes);
}
/** More than 0: delivered; 0: it was pending already; less: masked. */
function irqLine(vm: MovingVm, irq: number, level: number): number {
  return vm.get(vm.fd, Ioctl.KVM_IRQ_LINE_STATUS, KvmIrqLevel, { irq, level }).irq | 0;
}
function lapic(vm: MovingVm): DataView {
  const bytes = new Uint8Array(1024);
  vm.call(vm.vcpu, Ioctl.KVM_GET_LAPIC, bytes);
  return new DataView(bytes.buffer);
}
function setLapic(vm: MovingVm, values: Readonly<Record<number, number>>): void {
  const view = lapic(vm);
  for (const [register, value] of Object.entries(values)) view.setUint32(Number(register), value, true);
  vm.call(vm.vcpu, Ioctl.KVM_SET_LAPIC, new Uint8Array(view.buffer));
}
/** The guest's own time passes. */
async function spin(vm: MovingVm, instructions: number): Promise<void> {
  loadLoop(vm);
  await vm.enterFor(instructions);
}
function loadLoop(vm: MovingVm): void {
  vm.load([0xeb, 0xfe]);
  vm.startReal({ rip: BigInt(CODE), rflags: 2n });
}

const PIC_FIELDS = [
  ...["last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll", "special_mask"],
  ...["init_state", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode", "init4", "elcr"],
];

export const deviceCases: readonly MoveCase[] = [
  {
    name: "both 8259s",
    moves: ["pic_master", "pic_slave"].flatMap((chip) => PIC_FIELDS.map((field) => `vm.irqchip.${chip}.${field}`)),
    async run(vm) {
      const state = {
        last_irr: 0x42,
        irr: 0x48,
        imr: 0xa1,
        isr: 0x10,
        priority_add: 3,
        irq_base: 0x28,
        read_reg_select: 1,
        poll: 1,
        special_mask: 1,
        init_state: 2,
        auto_eoi: 1,
        rotate_on_auto_eoi: 1,
        special_fully_nested_mode: 1,
        init4: 1,
        elcr: 0x08,
      };
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_SLAVE, { ...state, irq_base: 0x70, elcr: 0x02 });
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER, state);
      const read = () => [0, 1].map((chip) => pic.read(getChip(vm, chip), 0));
      const kept = read();
      assert.equal(kept[0]!.imr, state.imr);
      await vm.roundTrip(() => assert.deepEqual(read(), kept));
    },
  },
  {
    name: "lines of the 8259s that are held high",
    moves: ["vm.irqchip.pic_lines", "vm.irqchip.ioapic_lines"],
    async run(vm) {
      // IRQ 10 is level triggered
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_SLAVE, { elcr: 0x04, imr: 0 });
      assert.equal(irqLine(vm, 10, 1), 1);
      const requested = () => pic.read(getChip(vm, IrqchipId.KVM_IRQCHIP_PIC_SLAVE), 0).irr & 4;
      await vm.roundTrip(() => {
        assert.equal(requested(), 4);
        // User space holds the line already
        assert.equal(irqLine(vm, 10, 1), 0);
      });
      irqLine(vm, 10, 0);
      assert.equal(requested(), 0);
    },
  },
  {
    name: "the I/O APIC",
    moves: ["base_address", "ioregsel", "id", "irr", "irr_delivered", "redirtbl"].map((field) => `vm.irqchip.ioapic_${field}`),
    async run(vm) {
      const bytes = KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_IOAPIC });
      const redirtbl = Array.from({ length: 24 }, (_, index) => BigInt(0x1_0020 + index) | (BigInt(index) << 56n));
      redirtbl[17] = 0x31n; // edge, fixed, not masked; no 8259 has this line
      redirtbl[6] = 0x1_8032n; // level, masked
      ioapic.write(new DataView(bytes.buffer), 0, {
        base_address: 0xfec0_1000n,
        ioregsel: 0x13,
        id: 7,
        irr: 1 << 6,
        pad: 0,
        redirtbl,
      });
      vm.call(vm.fd, Ioctl.KVM_SET_IRQCHIP, bytes);
      setLapic(vm, { [APIC.svr]: 0x1ff });
      assert.equal(irqLine(vm, 17, 1), 1);
      const read = () => ioapic.read(getChip(vm, IrqchipId.KVM_IRQCHIP_IOAPIC), 0);
      const kept = read();
      assert.deepEqual([kept.ioregsel, kept.id, kept.irr], [0x13, 7, 1 << 6]);
      await vm.roundTrip(() => {
        assert.deepEqual(read(), kept);
        // The edge was delivered, and the line is still high
        assert.equal(irqLine(vm, 17, 1), 0);
      });
    },
  },
  {
    name: "routes of interrupts",
    moves: ["gsi", "type", "u"].map((field) => `vm.irq-routing[].${field}`),
    async run(vm) {
      const pin = new Uint8Array(32);
      KvmIrqRoutingIrqchip.write(pin, { irqchip: IrqchipId.KVM_IRQCHIP_PIC_SLAVE, pin: 3 });
      const message = new Uint8Array(32);
      new DataView(message.buffer).setUint32(0, 0xfee0_0000, true);
      new DataView(message.buffer).setUint32(8, 0x45, true);
      const routes = new Uint8Array(KvmIrqRouting.tailOffset(2));
      KvmIrqRouting.set(routes, "nr", 2);
      const { KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI } = IrqRoutingType;
      KvmIrqRoutingEntry.write(routes, { gsi: 40, type: KVM_IRQ_ROUTING_IRQCHIP, u: pin }, KvmIrqRouting.tailOffset(0));
      KvmIrqRoutingEntry.write(routes, { gsi: 41, type: KVM_IRQ_ROUTING_MSI, u: message }, KvmIrqRouting.tailOffset(1));
      vm.call(vm.fd, Ioctl.KVM_SET_GSI_ROUTING, routes);
      setLapic(vm, { [APIC.svr]: 0x1ff });
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_SLAVE, { imr: 0 });
      const irr = () => lapic(vm).getUint32(0x200 + 2 * 16, true) & (1 << 5);
      await vm.move();
      assert.equal(irqLine(vm, 3, 1), -1, "default routes are gone");
      assert.equal(irqLine(vm, 40, 1), 1);
      assert.equal(pic.read(getChip(vm, IrqchipId.KVM_IRQCHIP_PIC_SLAVE), 0).irr & 8, 8);
      await vm.move();
      assert.equal(irr(), 0);
      assert.equal(irqLine(vm, 41, 1), 1);
      assert.equal(irr(), 1 << 5);
    },
  },
  {
    name: "the local APIC with a periodic timer",
    moves: ["registers", "apic_base", "timer_mode", "deadline", "period_ns", "divide_count"].map(
      (field) => `vcpu.lapic.${field}`,
    ),
    async run(vm) {
      loadLoop(vm);
      assert(vm.setMsr(0x1b, 0xfee0_1900n));
      const registers: Record<number, number> = {
        [APIC.tpr]: 0x2b,
        208: 0x0500_0000,
        224: 0x0fff_ffff,
        [APIC.svr]: 0x1f3,
        640: 0x60,
        768: 0xc_4031 & ~0x1000,
        784: 0x0100_0000,
        [APIC.lvtTimer]: 0x2_0030,
        816: 0x1_0031,
        832: 0x1_0032,
        848: 0x1_0700,
        864: 0x400,
        880: 0x33,
        [APIC.initialCount]: 1_000_000,
        [APIC.currentCount]: 1_000_000,
        [APIC.divide]: 3,
      };
      // In service, triggered by level, requested: vectors 0x51, 0x51, 0x61
      for (const [block, vector] of [
        [0x100, 0x51],
        [0x180, 0x51],
        [0x200, 0x61],
      ] as const)
        registers[block + (vector >> 5) * 16] = 1 << (vector & 31);
      setLapic(vm, registers);
      await vm.enterFor(1000);
      const kept = lapic(vm);
      assert.equal(kept.getUint32(APIC.tpr, true), 0x2b);
      assert(kept.getUint32(APIC.currentCount, true) < 1_000_000);
      await vm.roundTrip(() => {
        assert.deepEqual(lapic(vm), kept);
        assert.equal(vm.msr(0x1b), 0xfee0_1900n);
      });
    },
  },
  {
    name: "the local APIC with a deadline in its timer",
    moves: ["vcpu.lapic.tsc_deadline"],
    async run(vm) {
      setLapic(vm, { [APIC.svr]: 0x1ff, [APIC.lvtTimer]: 0x4_0030 });
      const deadline = vm.msr(IA32_TSC)! + 400_000n;
      assert(vm.setMsr(IA32_TSC_DEADLINE, deadline));
      const requested = () => lapic(vm).getUint32(0x200 + 16, true) & (1 << 16);
      await vm.roundTrip(() => {
        assert.equal(vm.msr(IA32_TSC_DEADLINE), deadline);
        assert.equal(requested(), 0);
      });
      await spin(vm, 30_000);
      assert.equal(requested(), 1 << 16);
      assert.equal(vm.msr(IA32_TSC_DEADLINE), 0n);
    },
  },
  {
    name: "INIT and SIPI that wait",
    moves: ["vcpu.lapic.pending_events", "vcpu.lapic.sipi_vector"],
    vm: {
      irqchip: true,
      // vCPU 0 is not the one that boots: INIT makes it wait for SIPI
      beforeVcpus: (kernel, vmFd) => assert.equal(kernel.ioctl(vmFd, Ioctl.KVM_SET_BOOT_CPU_ID, 1), 0),
    },
    async run(vm) {
      // From the bus, as MSIs
      vm.set(vm.fd, Ioctl.KVM_SIGNAL_MSI, KvmMsi, { address_lo: 0xfee0_0000, data: 0x500 });
      vm.set(vm.fd, Ioctl.KVM_SIGNAL_MSI, KvmMsi, { address_lo: 0xfee0_0000, data: 0x609 });
      vm.load([0xeb, 0xfe], 0x9000);
      // KVM_GET_MP_STATE would have the vCPU act on them, as KVM_RUN does
      await vm.roundTrip();
      assert.equal(vm.get(vm.vcpu, Ioctl.KVM_GET_MP_STATE, KvmMpState).mp_state, MpState.KVM_MP_STATE_RUNNABLE);
      await vm.enterFor(3);
      const { cs } = vm.sregs();
      assert.deepEqual([cs.selector, cs.base, vm.regs().rip], [0x900, 0x9000n, 0n]);
    },
  },
  {
    name: "the PIT's counters",
    moves: [
      ...["count", "latched_count", "count_latched", "status_latched", "status", "read_state", "write_state", "write_latch"],
      ...["rw_mode", "mode", "bcd", "gate", "count_load_time"],
    ]
      .map((field) => `vm.pit.channels.${field}`)
      .concat("vm.pit.flags", "vm.pit.speaker"),
    async run(vm) {
      const channel = {
        count: 0x1234,
        latched_count: 0x321,
        count_latched: 3,
        status_latched: 1,
        status: 0x34,
        read_state: 3,
        write_state: 4,
        write_latch: 0x56,
        rw_mode: 3,
        mode: 2,
        bcd: 1,
        gate: 0,
        count_load_time: 77n,
      };
      await spin(vm, 100);
      vm.set(vm.fd, Ioctl.KVM_SET_PIT2, KvmPitState2, {
        channels: [{ ...channel, gate: 1 }, channel, { ...channel, gate: 1 }],
        flags: 3,
      });
      const kept = vm.get(vm.fd, Ioctl.KVM_GET_PIT2, KvmPitState2);
      assert.equal(kept.flags, 3);
      assert.equal(kept.channels[1]!.write_latch, 0x56);
      await vm.roundTrip(() => assert.deepEqual(vm.get(vm.fd, Ioctl.KVM_GET_PIT2, KvmPitState2), kept));
    },
  },
  {
    name: "ticks of the PIT that the guest has not taken",
    moves: ["irq_acknowledged", "pending_ticks", "next_tick", "period_ns"].map((field) => `vm.pit.${field}`),
    async run(vm) {
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER, { imr: 0xfe, irq_base: 0x20 });
      setPitPeriod(vm);
      // Interrupts are off: ticks gather
      await spin(vm, 200_000);
      const requested = () => pic.read(getChip(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER), 0).irr & 1;
      await vm.roundTrip(() => assert.equal(requested(), 1));
      // The handler counts at 0x500, and ends each interrupt
      vm.load([0xfe, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], 0xa000);
      vm.load([0x00, 0xa0, 0x00, 0x00], 0x20 * 4);
      vm.load([0xeb, 0xfe]);
      vm.startReal({ rflags: 0x202n });
      await vm.enterFor(100);
      assert(vm.u32(0x500) >= 3, `${vm.u32(0x500)} ticks`);
    },
  },
  {
    name: "whether the PIT delivers ticks later",
    moves: ["vm.pit.reinject"],
    async run(vm) {
      vm.set(vm.fd, Ioctl.KVM_REINJECT_CONTROL, KvmReinjectControl, { pit_reinject: 0 });
      setPic(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER, { imr: 0xfe, irq_base: 0x20 });
      setPitPeriod(vm);
      await vm.roundTrip(() => {});
      await spin(vm, 60_000);
      vm.load([0xfe, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], 0xa000);
      vm.load([0x00, 0xa0, 0x00, 0x00], 0x20 * 4);
      vm.load([0xeb, 0xfe]);
      vm.startReal({ rflags: 0x202n });
      await vm.enterFor(100);
      // Those that nobody took are lost, but for the one that the 8259 remembers
      assert.equal(vm.u32(0x500), 1);
    },
  },
];

/** Mode 2 with the shortest period that there is, from now on. */
function setPitPeriod(vm: MovingVm): void {
  const state = vm.get(vm.fd, Ioctl.KVM_GET_PIT2, KvmPitState2);
  Object.assign(state.channels[0]!, { count: 250, mode: 2, rw_mode: 3, read_state: 3, write_state: 3, gate: 1 });
  vm.set(vm.fd, Ioctl.KVM_SET_PIT2, KvmPitState2, state);
}
