/** Events on their way to the guest, exits on their way to user space, what a vCPU waits for: on the move. */
import assert from "node:assert/strict";
import { Ioctl, KvmMpState, KvmSignalMask, KvmVcpuEvents, MpState, VcpuEvents } from "@mkvm/kvm-abi";
import { CODE } from "../test-vm.ts";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const OUT = [0xe6, 0xe9];
const HLT = 0xf4;
const MMIO = 0x100_0000n;
const MSR_KVM_WALL_CLOCK = 0x11;
const MSR_KVM_SYSTEM_TIME = 0x12;
const PVCLOCK_GUEST_STOPPED = 2;

const events = (vm: MovingVm) => vm.get(vm.vcpu, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents);

/** 64-bit interrupt gates at 0x5000, each to a handler at 0xa000 that says its name: out 0xe9; hlt. */
function loadGates(vm: MovingVm, vectors: readonly number[]): void {
  for (const vector of vectors) {
    vm.write64(0x5000 + vector * 16, 0x0000_8e00_0008_a000n);
    vm.write64(0x5008 + vector * 16, 0n);
  }
  vm.load([...OUT, HLT], 0xa000);
  // A descriptor table with the code segment, for the gates to load
  vm.write64(0x5f08, 0x00af_9b00_0000_ffffn);
  vm.write64(0x5f10, 0x00cf_9300_0000_ffffn);
  const sregs = vm.sregs();
  sregs.idt = { base: 0x5000n, limit: 0xeff, padding: [0, 0, 0] };
  sregs.gdt = { base: 0x5f00n, limit: 0x17, padding: [0, 0, 0] };
  vm.setSregs(sregs);
}

export const eventCases: readonly MoveCase[] = [
  {
    name: "an exception and an NMI that are being delivered, and what blocks others",
    moves: [
      ...["exception.injected", "exception.nr", "exception.has_error_code", "exception.error_code"],
      ...["interrupt.shadow", "nmi.injected", "nmi.pending", "nmi.masked"],
    ]
      .map((field) => `vcpu.events.events.${field}`)
      .concat("vcpu.events.nmi_pending_count"),
    async run(vm) {
      vm.set(vm.vcpu, Ioctl.KVM_SET_VCPU_EVENTS, KvmVcpuEvents, {
        exception: { injected: 1, nr: 14, has_error_code: 1, pending: 0, error_code: 6 },
        interrupt: { injected: 0, nr: 0, soft: 0, shadow: 2 },
        nmi: { injected: 1, pending: 2, masked: 1, pad: 0 },
        flags: 5,
      });
      const kept = events(vm);
      assert.deepEqual(kept.nmi, { injected: 1, pending: 2, masked: 1, pad: 0 });
      assert.deepEqual(kept.exception, { injected: 1, nr: 14, has_error_code: 1, pending: 0, error_code: 6 });
      assert(kept.interrupt.shadow & 2);
      await vm.roundTrip(() => assert.deepEqual(events(vm), kept));
    },
  },
  {
    name: "an external interrupt that is being delivered",
    moves: ["vcpu.events.events.interrupt.injected", "vcpu.events.events.interrupt.nr"],
    async run(vm) {
      const interrupt = { injected: 1, nr: 0x31, soft: 0, shadow: 0 };
      vm.set(vm.vcpu, Ioctl.KVM_SET_VCPU_EVENTS, KvmVcpuEvents, { interrupt });
      await vm.roundTrip(() => assert.deepEqual(events(vm).interrupt, interrupt));
      vm.load([0xeb, 0xfe]);
      vm.startLong({ rflags: 0x202n });
      loadGates(vm, [0x31]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
    },
  },
  {
    name: "INT n whose delivery an exit cut short",
    moves: ["vcpu.events.events.interrupt.soft", "vcpu.events.instruction_length"],
    // SVM executes the instruction again
    vendors: ["intel"],
    async run(vm) {
      vm.load([...OUT, 0x90, 0xcd, 0x30]); // out; nop; int 0x30
      vm.startLong({ rsp: 0x30_0000n });
      loadGates(vm, [0x30]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      // Version 1 maps pages as they are touched, the gates now
      await vm.enterUntil(1);
      assert.equal(vm.regs().rip, BigInt(CODE + 3));
      await vm.roundTrip(() => {});
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.u32(0x30_0000 - 40), CODE + 5, "it returns behind the instruction");
    },
  },
  {
    name: "an exception that waits, with the address that it is about",
    moves: ["exception.pending", "exception_has_payload", "exception_payload"].map((field) => `vcpu.events.events.${field}`),
    async run(vm) {
      vm.load([0x90, 0x6e]); // nop; outsb
      vm.startLong({ rsi: 0x7000_0000n, rdx: 0x80n });
      loadGates(vm, [14]);
      await vm.enterUntil(1);
      await vm.roundTrip(() => assert.notEqual(vm.sregs().cr2, 0x7000_0000n));
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.sregs().cr2, 0x7000_0000n);
    },
  },
  {
    name: "a triple fault that user space has not been told of",
    moves: ["vcpu.events.events.triple_fault.pending"],
    async run(vm) {
      vm.load([0xeb, 0xfe]);
      vm.startReal();
      // No call brings it about, and no guest between two VM entries
      const change = (sections: Parameters<typeof VcpuEvents.find>[0]) =>
        sections.map((each) => {
          if (each.name !== VcpuEvents.name) return each;
          const { fixed } = VcpuEvents.decode(each) as Exclude<ReturnType<typeof VcpuEvents.decode>, string>;
          fixed.events.triple_fault.pending = 1;
          return VcpuEvents.encode(each.instance, fixed);
        });
      await vm.move({ change });
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_SHUTDOWN");
    },
  },
  {
    name: "a single-step trap that the processor owes the guest",
    moves: ["vcpu.debug.pending_debug"],
    async run(vm) {
      vm.load([0xec, 0x90, HLT]); // in al, dx; nop; hlt
      vm.startLong({ rdx: 0x1234n, rflags: 0x102n });
      loadGates(vm, [1]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      await vm.enterUntil(0);
      assert.equal(vm.regs().rip, BigInt(CODE + 1));
      await vm.roundTrip(() => {});
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([vm.io.isIn, vm.u32(0x7000 - 40)], [false, CODE + 1], "the trap comes before the next instruction");
    },
  },
  {
    name: "a vCPU that is halted",
    moves: ["vcpu.mp-state.mp_state"],
    async run(vm) {
      vm.set(vm.vcpu, Ioctl.KVM_SET_MP_STATE, KvmMpState, { mp_state: MpState.KVM_MP_STATE_HALTED });
      await vm.roundTrip(() => {
        const { mp_state } = vm.get(vm.vcpu, Ioctl.KVM_GET_MP_STATE, KvmMpState);
        assert.equal(mp_state, MpState.KVM_MP_STATE_HALTED);
      });
    },
  },
  {
    name: "the paravirtual clock, which is to be written before the guest runs on",
    moves: ["system_time", "wall_clock", "pvclock_flags", "legacy_msrs", "update_pending"].map((field) => `vcpu.pv.${field}`),
    async run(vm) {
      vm.load([...OUT]);
      vm.startReal();
      assert(vm.setMsr(MSR_KVM_WALL_CLOCK, 0x6100n) && vm.setMsr(MSR_KVM_SYSTEM_TIME, 0x6001n));
      vm.call(vm.vcpu, Ioctl.KVM_KVMCLOCK_CTRL);
      await vm.roundTrip(() => {
        assert.deepEqual([vm.msr(MSR_KVM_WALL_CLOCK), vm.msr(MSR_KVM_SYSTEM_TIME)], [0x6100n, 0x6001n]);
        assert.equal(vm.u32(0x6000 + 24), 0, "nothing is written while no guest runs");
      });
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert((vm.u32(0x6000 + 28) >> 8) & PVCLOCK_GUEST_STOPPED, "the guest is told that it stood still");
    },
  },
  {
    name: "the pages that a vCPU shares with its VMM, and its signal mask",
    moves: ["address", "has_signal_mask", "signal_mask"].map((field) => `vcpu.run-page.${field}`),
    vm: {
      irqchip: true,
      pit: true,
      // Takes the pages that vCPU 0 would have got
      beforeVcpus: (kernel, vmFd) => assert(kernel.ioctl(vmFd, Ioctl.KVM_CREATE_VCPU, 9) >= 0),
    },
    async run(vm) {
      const mask = new Uint8Array(KvmSignalMask.sizeBytes + 8);
      KvmSignalMask.set(mask, "len", 8);
      new DataView(mask.buffer).setBigUint64(4, 0xabcdn, true);
      vm.call(vm.vcpu, Ioctl.KVM_SET_SIGNAL_MASK, mask);
      vm.run[100] = 0x42;
      await vm.roundTrip(() => {
        const again = vm.kernel.mapRun(vm.vcpu);
        assert.deepEqual([again.byteOffset, again[100]], [vm.run.byteOffset, 0x42]);
      });
    },
  },
  {
    name: "IN at user space",
    moves: ["kind", "port", "size", "count", "rip", "instruction_length"].map((field) => `vcpu.pending-exit.${field}`),
    async run(vm) {
      vm.load([0xed, 0xa3, 0x00, 0x05, ...OUT]); // in ax, dx; mov [0x500], ax; out
      vm.startReal({ rdx: 0x1234n });
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      vm.io.data.set([0xcd, 0xab]);
      await vm.roundTrip(() => assert.deepEqual([vm.io.port, vm.io.size], [0x1234, 2]));
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.u32(0x500), 0xabcd);
    },
  },
  {
    name: "REP OUTS with a segment of its own at user space",
    moves: ["flags", "address_size", "segment"].map((field) => `vcpu.pending-exit.${field}`),
    async run(vm) {
      vm.load([0xfc, 0x64, 0xf3, 0x6e, ...OUT]); // cld; fs rep outsb; out
      vm.load([1, 2, 3], 0x1800);
      vm.startReal({ rdx: 0x1234n, rsi: 0x1800n, rcx: 3n });
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([...vm.io.data], [1, 2, 3]);
      await vm.roundTrip(() => assert.equal(vm.io.count, 3));
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([vm.io.port, vm.regs().rip], [0xe9, BigInt(CODE + 4)]);
    },
  },
  {
    name: "a read of device memory in two parts, one of which user space has answered",
    moves: ["address", "length", "state", "data"].map((field) => `vcpu.pending-exit[].${field}`),
    async run(vm) {
      vm.load([0x48, 0x8b, 0x0b, HLT]); // mov rcx, [rbx]
      vm.startLong({ rbx: MMIO + 0xffcn });
      assert.equal(await vm.enter(), "KVM_EXIT_MMIO");
      vm.mmio.data.set([1, 2, 3, 4]);
      assert.equal(await vm.enter(), "KVM_EXIT_MMIO");
      vm.mmio.data.set([5, 6, 7, 8]);
      await vm.roundTrip(() => assert.equal(vm.mmio.address, Number(MMIO) + 0x1000));
      await vm.move();
      vm.load([0x48, 0x8b, 0x0b, ...OUT]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.regs().rcx, 0x0807_0605_0403_0201n);
    },
  },
  {
    name: "a write to device memory in two parts, one of which is at user space",
    moves: ["vcpu.pending-exit[].is_write"],
    async run(vm) {
      vm.load([0x48, 0x89, 0x0b, ...OUT]); // mov [rbx], rcx; out
      vm.startLong({ rbx: MMIO + 0xffcn, rcx: 0x0807_0605_0403_0201n });
      assert.equal(await vm.enter(), "KVM_EXIT_MMIO");
      assert.deepEqual([...vm.mmio.data], [1, 2, 3, 4]);
      await vm.roundTrip(() => {});
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_MMIO");
      assert.deepEqual([vm.mmio.address, ...vm.mmio.data], [Number(MMIO) + 0x1000, 5, 6, 7, 8]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.io.port, 0xe9);
    },
  },
];
