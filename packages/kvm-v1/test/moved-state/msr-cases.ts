/** What user space has to say about MSRs, on the move. */
import assert from "node:assert/strict";
import { Capability, Ioctl, KvmEnableCap, KvmMsrFilter, KvmRun, MsrExitReason, MsrFilterFlag } from "@mkvm/kvm-abi";
import { CODE } from "../test-vm.ts";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const OUT = [0xe6, 0xe9];
const RDMSR = [0x0f, 0x32];
const WRMSR = [0x0f, 0x30];
const KERNEL_GS_BASE = 0xc000_0102n;
const UNKNOWN_MSR = 0x1234_5678n;
const { KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, KVM_MSR_FILTER_DEFAULT_DENY } = MsrFilterFlag;
const { msr } = KvmRun.fields.exit.members;

function toUserSpace(vm: MovingVm, reasons: number): void {
  const args = [BigInt(reasons), 0n, 0n, 0n];
  vm.set(vm.fd, Ioctl.KVM_ENABLE_CAP, KvmEnableCap, { cap: Capability.KVM_CAP_X86_USER_SPACE_MSR, args });
}

function exitOf(vm: MovingVm): ReturnType<typeof msr.read> {
  return msr.read(new DataView(vm.run.buffer, vm.run.byteOffset, vm.run.byteLength), 0);
}
function answer(vm: MovingVm, data: bigint, error = 0): void {
  const view = new DataView(vm.run.buffer, vm.run.byteOffset, vm.run.byteLength);
  view.setUint8(msr.offsets.error, error);
  view.setBigUint64(msr.offsets.data, data, true);
}

export const msrCases: readonly MoveCase[] = [
  {
    name: "a filter of MSRs, of reads and of writes",
    moves: [
      "vm.msr-filter.default_deny",
      ...["flags", "base", "nmsrs"].map((field) => `vm.msr-filter[].${field}`),
      "vm.msr-filter-bitmap[].bits",
      "vm.shape.msr_exit_reasons",
    ],
    async run(vm) {
      toUserSpace(vm, MsrExitReason.KVM_MSR_EXIT_REASON_FILTER);
      const bitmaps = vm.kernel.mmap(4096);
      vm.kernel.bank.u8.set([0b101], bitmaps);
      vm.kernel.bank.u8.fill(0xff, bitmaps + 64, bitmaps + 64 + 16);
      vm.set(vm.fd, Ioctl.KVM_X86_SET_MSR_FILTER, KvmMsrFilter, {
        flags: KVM_MSR_FILTER_DEFAULT_DENY,
        ranges: [
          { flags: KVM_MSR_FILTER_READ, base: 0xc000_0101, nmsrs: 3, _pad: 0, bitmap: BigInt(bitmaps) },
          { flags: KVM_MSR_FILTER_WRITE, base: 0xc000_0080, nmsrs: 0x83, _pad: 0, bitmap: BigInt(bitmaps) + 64n },
        ],
      });
      // The processor itself reads and writes this one where it may
      vm.load([...WRMSR, ...OUT, ...RDMSR, ...OUT, 0xb9, 0x01, 0x01, 0x00, 0xc0, ...RDMSR, ...OUT]);
      await vm.roundTrip(async () => {
        vm.startLong({ rcx: KERNEL_GS_BASE, rax: 0x5000n });
        assert.equal(await vm.enter(), "KVM_EXIT_X86_WRMSR");
        assert.deepEqual([exitOf(vm).index, exitOf(vm).reason], [Number(KERNEL_GS_BASE), 4]);
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        assert.equal(await vm.enter(), "KVM_EXIT_X86_RDMSR");
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        // mov ecx, GS_BASE: allowed
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        assert.equal(vm.regs().rip, BigInt(CODE + 15));
      });
    },
  },
  {
    name: "RDMSR and WRMSR at user space",
    moves: ["kind", "msr", "instruction_length"].map((field) => `vcpu.pending-exit.${field}`),
    async run(vm) {
      toUserSpace(vm, MsrExitReason.KVM_MSR_EXIT_REASON_UNKNOWN);
      vm.load([...RDMSR, ...OUT, ...WRMSR, ...OUT]);
      vm.startLong({ rcx: UNKNOWN_MSR });
      assert.equal(await vm.enter(), "KVM_EXIT_X86_RDMSR");
      answer(vm, 0x1122_3344_5566_7788n);
      await vm.roundTrip(() => assert.equal(exitOf(vm).index, Number(UNKNOWN_MSR)));
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([vm.regs().rax, vm.regs().rdx], [0x5566_7788n, 0x1122_3344n]);
      assert.equal(await vm.enter(), "KVM_EXIT_X86_WRMSR");
      assert.equal(exitOf(vm).data, 0x1122_3344_5566_7788n);
      await vm.roundTrip();
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      // Failed on the other side: #GP, for which the guest has no handler
      vm.startLong({ rcx: UNKNOWN_MSR });
      assert.equal(await vm.enter(), "KVM_EXIT_X86_RDMSR");
      answer(vm, 0n, 1);
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_SHUTDOWN");
    },
  },
];
