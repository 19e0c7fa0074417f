/** MSRs that user space answers for: KVM_CAP_X86_USER_SPACE_MSR and KVM_X86_SET_MSR_FILTER. */
import assert from "node:assert/strict";
import {
  Capability,
  Ioctl,
  KvmEnableCap,
  KvmMsrEntry,
  KvmMsrFilter,
  KvmMsrs,
  KvmRegs,
  KvmRun,
  KvmSregs,
  MsrExitReason,
  MsrFilterFlag,
} from "@mkvm/kvm-abi";
import { BenchVm, type Calls, CODE, fails, ok, STACK } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const HLT = 0xf4;
const RDMSR = [0x0f, 0x32];
const WRMSR = [0x0f, 0x30];
const UNKNOWN = 0x1234_5678;
const MTRR_DEF_TYPE = 0x2ff;
const KERNEL_GS_BASE = 0xc000_0102;
const X2APIC_VERSION = 0x803;
const { KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, KVM_MSR_FILTER_DEFAULT_DENY } = MsrFilterFlag;
const READ_WRITE = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
const { KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_MSR_EXIT_REASON_FILTER } = MsrExitReason;
const { msr } = KvmRun.fields.exit.members;

const enable = (calls: Calls, vm: BenchVm, reasons: number): Promise<number> =>
  calls.set(vm.vmFd, Ioctl.KVM_ENABLE_CAP, KvmEnableCap, {
    cap: Capability.KVM_CAP_X86_USER_SPACE_MSR,
    args: [BigInt(reasons), 0n, 0n, 0n],
  });

interface Range {
  base: number;
  nmsrs: number;
  flags: number;
  bitmap: bigint;
}
const filter = (calls: Calls, vm: BenchVm, flags: number, ranges: readonly Range[]): Promise<number> =>
  calls.set(vm.vmFd, Ioctl.KVM_X86_SET_MSR_FILTER, KvmMsrFilter, {
    flags,
    ranges: ranges.map((range) => ({ ...range, _pad: 0 })),
  });

/** From CODE on with an MSR's number and a value; #GP ends in HLT at 0x3000. */
async function start(calls: Calls, vm: BenchVm, index: number, value = 0n): Promise<void> {
  vm.put(13 * 4, 0x00, 0x30, 0x00, 0x00).put(0x3000, HLT);
  const registers = { rcx: BigInt(index), rax: value & 0xffff_ffffn, rdx: value >> 32n };
  ok(
    await calls.set(vm.vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, {
      ...registers,
      rip: BigInt(CODE),
      rsp: BigInt(STACK),
      rflags: 2n,
    }),
  );
}
async function stoppedAt(vm: BenchVm): Promise<number> {
  await vm.exit("KVM_EXIT_HLT");
  return Number((await vm.regs()).rip) - 1;
}
const DONE = CODE + 2;
const FAULTED = 0x3000;

export const msrChecks: readonly Check[] = [
  {
    name: "MSRs to user space: an unknown one and a refused value, answered or failed",
    async run(calls) {
      const vm = await BenchVm.create(calls);
      assert.equal(await vm.has("KVM_CAP_X86_USER_SPACE_MSR"), 1);
      fails(await enable(calls, vm, 8), "EINVAL");
      const cap = { cap: Capability.KVM_CAP_X86_USER_SPACE_MSR, flags: 1 };
      fails(await calls.set(vm.vmFd, Ioctl.KVM_ENABLE_CAP, KvmEnableCap, cap), "EINVAL");
      // Not asked for: #GP
      vm.code(...RDMSR, HLT);
      await start(calls, vm, UNKNOWN);
      assert.equal(await stoppedAt(vm), FAULTED);

      ok(await enable(calls, vm, KVM_MSR_EXIT_REASON_UNKNOWN));
      await start(calls, vm, UNKNOWN);
      let run = await vm.exit("KVM_EXIT_X86_RDMSR");
      const { index, reason, error } = msr.read(run, 0);
      assert.deepEqual([index, reason, error], [UNKNOWN, KVM_MSR_EXIT_REASON_UNKNOWN, 0]);
      run.setBigUint64(msr.offsets.data, 0x0102_0304_0506_0708n, true);
      assert.equal(await stoppedAt(vm), DONE);
      const regs = await vm.regs();
      assert.deepEqual([regs.rax, regs.rdx], [0x0506_0708n, 0x0102_0304n]);
      await start(calls, vm, UNKNOWN, 5n);
      run = await vm.exit("KVM_EXIT_X86_RDMSR");
      run.setUint8(msr.offsets.error, 1);
      assert.equal(await stoppedAt(vm), FAULTED);
      assert.equal((await vm.regs()).rax, 5n);

      vm.code(...WRMSR, HLT);
      await start(calls, vm, UNKNOWN, 0x1122_3344_5566_7788n);
      run = await vm.exit("KVM_EXIT_X86_WRMSR");
      assert.equal(msr.read(run, 0).data, 0x1122_3344_5566_7788n);
      assert.equal(await stoppedAt(vm), DONE);
      // A value that a known MSR does not take is another reason
      await start(calls, vm, MTRR_DEF_TYPE, 0x7n);
      assert.equal(await stoppedAt(vm), FAULTED);
      ok(await enable(calls, vm, KVM_MSR_EXIT_REASON_INVAL));
      await start(calls, vm, MTRR_DEF_TYPE, 0x7n);
      run = await vm.exit("KVM_EXIT_X86_WRMSR");
      assert.equal(msr.read(run, 0).reason, KVM_MSR_EXIT_REASON_INVAL);
      run.setUint8(msr.offsets.error, 1);
      assert.equal(await stoppedAt(vm), FAULTED);
      await start(calls, vm, UNKNOWN);
      assert.equal(await stoppedAt(vm), FAULTED);
      ok(await enable(calls, vm, 0));
    },
  },
  {
    name: "MSR filters: ranges, defaults, what cannot be filtered, and what is no filter",
    async run(calls) {
      const vm = await BenchVm.create(calls);
      const { u8 } = calls.sys.memory;
      assert.equal(await vm.has("KVM_CAP_X86_MSR_FILTER"), 1);
      const bitmap = ok(calls.sys.mmap(4096, -1, 0));
      const range = { base: KERNEL_GS_BASE - 1, nmsrs: 3, flags: READ_WRITE, bitmap: BigInt(bitmap) };
      fails(await filter(calls, vm, 2, []), "EINVAL");
      fails(await filter(calls, vm, KVM_MSR_FILTER_DEFAULT_DENY, []), "EINVAL");
      fails(await filter(calls, vm, 0, [{ ...range, flags: 0 }]), "EINVAL");
      fails(await filter(calls, vm, 0, [{ ...range, flags: 4 }]), "EINVAL");
      fails(await filter(calls, vm, 0, [{ ...range, nmsrs: 0x600 * 8 + 1 }]), "EINVAL");
      fails(await filter(calls, vm, 0, [{ ...range, nmsrs: 0xffff_ffff }]), "EINVAL");
      fails(await filter(calls, vm, 0, [{ ...range, bitmap: 0xffff_f000n }]), "EFAULT");
      fails(await calls.call(vm.vmFd, Ioctl.KVM_X86_SET_MSR_FILTER, 0xffff_f000), "EFAULT");
      ok(await filter(calls, vm, 0, [{ ...range, nmsrs: 0x600 * 8 }]));

      // Denied: #GP, or user space where it wants to know. The processor has this MSR for itself otherwise
      u8[bitmap] = 0b101;
      ok(await filter(calls, vm, 0, [range]));
      vm.code(...RDMSR, HLT);
      await start(calls, vm, KERNEL_GS_BASE);
      assert.equal(await stoppedAt(vm), FAULTED);
      ok(await enable(calls, vm, KVM_MSR_EXIT_REASON_FILTER));
      await start(calls, vm, KERNEL_GS_BASE);
      let run = await vm.exit("KVM_EXIT_X86_RDMSR");
      const { index, reason } = msr.read(run, 0);
      assert.deepEqual([index, reason], [KERNEL_GS_BASE, KVM_MSR_EXIT_REASON_FILTER]);
      run.setBigUint64(msr.offsets.data, 0x77n, true);
      assert.equal(await stoppedAt(vm), DONE);
      assert.equal((await vm.regs()).rax, 0x77n);
      await start(calls, vm, KERNEL_GS_BASE - 1);
      assert.equal(await stoppedAt(vm), DONE);
      // Reads alone
      ok(await filter(calls, vm, 0, [{ ...range, flags: KVM_MSR_FILTER_READ }]));
      vm.code(...WRMSR, HLT);
      await start(calls, vm, KERNEL_GS_BASE, 0x1234n);
      assert.equal(await stoppedAt(vm), DONE);
      // The first range that has the MSR decides
      u8[bitmap + 64] = 0xff;
      const second = { ...range, bitmap: BigInt(bitmap) + 64n };
      ok(await filter(calls, vm, 0, [range, second]));
      await start(calls, vm, KERNEL_GS_BASE);
      await vm.exit("KVM_EXIT_X86_WRMSR");
      ok(await filter(calls, vm, 0, [second, range]));
      await start(calls, vm, KERNEL_GS_BASE);
      await vm.exit("KVM_EXIT_HLT");

      // Denied by default; what user space reads and writes is not filtered
      ok(await filter(calls, vm, KVM_MSR_FILTER_DEFAULT_DENY, [second]));
      await start(calls, vm, MTRR_DEF_TYPE, 6n);
      run = await vm.exit("KVM_EXIT_X86_WRMSR");
      assert.equal(await stoppedAt(vm), DONE);
      const entry = new Uint8Array(KvmMsrs.tailOffset(1));
      KvmMsrs.set(entry, "nmsrs", 1);
      KvmMsrEntry.set(entry, "index", MTRR_DEF_TYPE, KvmMsrs.tailOffset(0));
      assert.equal(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_MSRS, entry), 1);
      assert.equal(KvmMsrEntry.get(calls.result(entry.length), "data", KvmMsrs.tailOffset(0)), 0n);
      // None any more
      ok(await filter(calls, vm, 0, []));
      await start(calls, vm, MTRR_DEF_TYPE, 6n);
      await vm.exit("KVM_EXIT_HLT");

      // x2APIC registers are the processor's: no filter has them
      const apicVm = await BenchVm.create(calls, { irqchip: true });
      ok(await filter(calls, apicVm, KVM_MSR_FILTER_DEFAULT_DENY, [range]));
      const sregs = await calls.get(apicVm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
      const table = new Uint8Array(8 + 128 * 40);
      new DataView(table.buffer).setUint32(0, 128, true);
      ok(await calls.call(apicVm.systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table));
      ok(await calls.call(apicVm.vcpuFd, Ioctl.KVM_SET_CPUID2, calls.result(table.length)));
      ok(await calls.set(apicVm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, { ...sregs, apic_base: sregs.apic_base | 0xc00n }));
      apicVm.code(...RDMSR, 0xe6, 0x10, HLT);
      await start(calls, apicVm, X2APIC_VERSION);
      await apicVm.exit("KVM_EXIT_IO");
      assert.notEqual((await apicVm.regs()).rax, 0n);
    },
  },
];
