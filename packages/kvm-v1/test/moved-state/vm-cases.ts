/** What a VM is, its memory, its clock and its statistics, on the move. */
import assert from "node:assert/strict";
import {
  Ioctl,
  IrqchipId,
  KvmClockData,
  KvmDirtyLog,
  KvmIrqchip,
  KvmIrqLevel,
  KvmMpState,
  KvmMsi,
  KvmPitConfig,
  KvmStatsDesc,
  KvmStatsHeader,
  MemoryFlag,
  MpState,
} from "@mkvm/kvm-abi";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const EEXIST = -17;
const EINVAL = -22;
const ENXIO = -6;
const { KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY } = MemoryFlag;
const OUT = [0xe6, 0xe9];
const HLT = 0xf4;
const MSR_KVM_SYSTEM_TIME_NEW = 0x4b56_4d01;

/** Kind of a statistic in its descriptor's flags: how things are at the moment. */
const KIND_MASK = 15;
const INSTANT = 1;

/** Values of a descriptor of statistics by name, less those of the moment: their words. */
function statistics(vm: MovingVm, fd: number): Map<string, number[]> {
  const file = vm.kernel.file(fd);
  const bytes = new Uint8Array(1 << 17);
  const length = file.operations.read!(file, bytes, 0);
  assert(length > 0);
  const header = KvmStatsHeader.read(bytes);
  const values = new Map<string, number[]>();
  for (let index = 0; index < header.num_desc; index++) {
    const at = header.desc_offset + index * (KvmStatsDesc.sizeBytes + header.name_size);
    const { flags, size, offset } = KvmStatsDesc.read(bytes, at);
    if ((flags & KIND_MASK) === INSTANT) continue;
    const nameAt = at + KvmStatsDesc.sizeBytes;
    const name = new TextDecoder().decode(bytes.subarray(nameAt, nameAt + header.name_size)).replace(/\0.*$/s, "");
    const data = new DataView(bytes.buffer, header.data_offset + offset, size * 8);
    values.set(
      name,
      Array.from({ length: size }, (_, word) => Number(data.getBigUint64(word * 8, true))),
    );
  }
  return values;
}

export const vmCases: readonly MoveCase[] = [
  {
    name: "a VM without interrupt controllers",
    moves: ["vm.shape.flags"],
    vm: {},
    async run(vm) {
      await vm.roundTrip(() => {
        const bytes = KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_IOAPIC });
        assert.equal(vm.kernel.ioctl(vm.fd, Ioctl.KVM_GET_IRQCHIP, bytes), ENXIO);
      });
    },
  },
  {
    name: "settings that come before vCPUs",
    moves: ["boot_cpu_id", "tss_address", "identity_map_address", "pit_config_flags", "mmu_pages"].map(
      (field) => `vm.shape.${field}`,
    ),
    vm: {
      irqchip: true,
      pit: true,
      pitFlags: 1,
      beforeVcpus(kernel, vmFd) {
        assert.equal(kernel.ioctl(vmFd, Ioctl.KVM_SET_TSS_ADDR, 0xfffb_d000), 0);
        const identityMap = new Uint8Array(new BigUint64Array([0xfffb_c000n]).buffer);
        assert.equal(kernel.ioctl(vmFd, Ioctl.KVM_SET_IDENTITY_MAP_ADDR, identityMap), 0);
        assert.equal(kernel.ioctl(vmFd, Ioctl.KVM_SET_BOOT_CPU_ID, 1), 0);
      },
    },
    async run(vm) {
      const { kernel } = vm;
      vm.call(vm.fd, Ioctl.KVM_SET_NR_MMU_PAGES, 1234);
      await vm.roundTrip(() => {
        assert.equal(kernel.ioctl(vm.fd, Ioctl.KVM_GET_NR_MMU_PAGES), 1234);
        assert.equal(kernel.ioctl(vm.fd, Ioctl.KVM_CREATE_IRQCHIP), EEXIST);
        assert.equal(kernel.ioctl(vm.fd, Ioctl.KVM_CREATE_PIT2, KvmPitConfig.encode({})), EEXIST);
      });
      // Port 0x61 is the kernel's: an access goes no further
      vm.load([0xe4, 0x61, ...OUT]);
      vm.startReal();
      vm.set(vm.vcpu, Ioctl.KVM_SET_MP_STATE, KvmMpState, { mp_state: MpState.KVM_MP_STATE_RUNNABLE });
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.io.isIn, false);
      // vCPU 0 is not the one that boots: after INIT it waits
      vm.set(vm.fd, Ioctl.KVM_SIGNAL_MSI, KvmMsi, { address_lo: 0xfee0_0000, data: 0x500 });
      await vm.enterUntilIdle();
      const { mp_state } = vm.get(vm.vcpu, Ioctl.KVM_GET_MP_STATE, KvmMpState);
      assert.equal(mp_state, MpState.KVM_MP_STATE_INIT_RECEIVED);
    },
  },
  {
    name: "several vCPUs",
    moves: ["vm.shape.vcpu_count"],
    async run(vm) {
      vm.descriptor(vm.createVcpu(3));
      await vm.roundTrip(() => {
        assert.equal(vm.kernel.ioctl(vm.fd, Ioctl.KVM_CREATE_VCPU, 3), EEXIST);
        assert.equal(vm.kernel.ioctl(vm.fd, Ioctl.KVM_CREATE_VCPU, 0), EEXIST);
      });
    },
  },
  {
    name: "memory slots",
    moves: ["slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"].map((field) => `vm.memory-slots[].${field}`),
    async run(vm) {
      const page = vm.kernel.mmap(8192);
      const region = { slot: 7, flags: KVM_MEM_READONLY, guest_phys_addr: 0x80_0000n, memory_size: 8192n };
      assert.equal(vm.setRegion({ ...region, userspace_addr: BigInt(page) }), 0);
      vm.kernel.bank.u8[page + 5] = 0x99;
      await vm.roundTrip(async () => {
        // Another slot may not lie there, the same one may be set again, and another size needs another slot
        assert.equal(vm.setRegion({ ...region, slot: 8, userspace_addr: BigInt(page) }), EEXIST);
        assert.equal(vm.setRegion({ ...region, userspace_addr: BigInt(page) }), 0);
        assert.equal(vm.setRegion({ ...region, memory_size: 4096n, userspace_addr: BigInt(page) }), EINVAL);
        // mov al, [rbx+5]; mov [rbx+6], al
        vm.load([0x8a, 0x43, 5, 0x88, 0x43, 6, HLT]);
        vm.startLong({ rbx: 0x80_0000n });
        assert.equal(await vm.enter(), "KVM_EXIT_MMIO");
        assert.deepEqual([vm.mmio.address, vm.mmio.data[0]], [0x80_0006, 0x99]);
      });
      assert.equal(vm.kernel.bank.u8[page + 6], 0);
    },
  },
  {
    name: "which pages are dirty, and that further ones are seen",
    moves: ["vm.dirty-log.page_count", "vm.dirty-log[].bits"],
    vm: { irqchip: true, pit: true, flags: KVM_MEM_LOG_DIRTY_PAGES },
    async run(vm) {
      const bitmap = vm.kernel.mmap(4096);
      const takeLog = () => vm.set(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, KvmDirtyLog, { slot: 0, dirty_bitmap: BigInt(bitmap) });
      const inLog = (page: number) => (vm.kernel.bank.u8[bitmap + (page >> 3)]! & (1 << (page & 7))) !== 0;
      const dirty = (page: number): boolean => {
        takeLog();
        return inLog(page);
      };
      const write = async (page: number): Promise<void> => {
        vm.load([0x89, 0x03, ...OUT]); // mov [rbx], eax; out
        vm.startLong({ rbx: BigInt(page) * 4096n });
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
      };
      await write(0x210);
      await vm.move();
      await write(0x220);
      await vm.move();
      await write(0x230);
      takeLog();
      assert.deepEqual([0x210, 0x220, 0x230, 0x240].map(inLog), [true, true, true, false]);
      await vm.move();
      assert.equal(dirty(0x210), false);
      // Mapped and clean on both sides: the next write is seen all the same
      await write(0x220);
      await vm.move();
      assert.equal(dirty(0x220), true);
      await write(0x220);
      assert.equal(dirty(0x220), true);
    },
  },
  {
    name: "the VM's clock, and the pair that guests extrapolate from",
    moves: ["vm.clock.kvmclock_offset", "vm.clock.master_monotonic_ns", "vm.clock.master_tsc"],
    async run(vm) {
      vm.load([0xeb, 0xfe]);
      vm.startReal();
      await vm.enterFor(5000);
      vm.set(vm.fd, Ioctl.KVM_SET_CLOCK, KvmClockData, { clock: 5_000_000_000n });
      const clock = () => vm.get(vm.fd, Ioctl.KVM_GET_CLOCK, KvmClockData).clock;
      assert.equal(clock(), 5_000_000_000n);
      await vm.enterFor(1000);
      const later = clock();
      await vm.roundTrip(() => assert.equal(clock(), later));
      // Each side writes the page from the same pair
      assert(vm.setMsr(MSR_KVM_SYSTEM_TIME_NEW, 0x6001n));
      const page = async () => {
        await vm.enterFor(10);
        return vm.kernel.bank.u8.slice(vm.memory + 0x6008, vm.memory + 0x6000 + 24).join();
      };
      const before = await page();
      await vm.move();
      assert(vm.setMsr(MSR_KVM_SYSTEM_TIME_NEW, 0x6001n));
      assert.equal(await page(), before);
    },
  },
  {
    name: "statistics",
    moves: ["name", "value"]
      .map((field) => `vm.statistics[].${field}`)
      .concat(["name", "bucket", "value"].map((field) => `vcpu.statistics[].${field}`)),
    async run(vm) {
      vm.load([...OUT, HLT, ...OUT]);
      vm.startReal({ rflags: 0x202n });
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      // The 8259's line 1 ends the halt
      vm.load([0xcf], 0xa000);
      vm.load([0x00, 0xa0, 0x00, 0x00], 9 * 4);
      const bytes = KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_PIC_MASTER });
      vm.call(vm.fd, Ioctl.KVM_GET_IRQCHIP, bytes);
      const pic = KvmIrqchip.fields.chip.members.pic;
      const view = new DataView(bytes.buffer);
      pic.write(view, 0, { ...pic.read(view, 0), irq_base: 8 });
      vm.call(vm.fd, Ioctl.KVM_SET_IRQCHIP, bytes);
      vm.kernel.onIdle = () => void vm.set(vm.fd, Ioctl.KVM_IRQ_LINE, KvmIrqLevel, { irq: 1, level: 1 });
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      vm.kernel.onIdle = undefined;
      const ofVm = vm.descriptor(vm.kernel.ioctl(vm.fd, Ioctl.KVM_GET_STATS_FD));
      const ofVcpu = vm.descriptor(vm.kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_STATS_FD));
      const vcpu = statistics(vm, ofVcpu);
      assert.deepEqual([vcpu.get("io_exits"), vcpu.get("halt_exits")], [[2], [1]]);
      const kept = [ofVm, ofVcpu].map((fd) => statistics(vm, fd));
      await vm.roundTrip(() =>
        assert.deepEqual(
          [ofVm, ofVcpu].map((fd) => statistics(vm, fd)),
          kept,
        ),
      );
    },
  },
];
