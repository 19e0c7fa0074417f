/** VMCALL and VMMCALL (Linux, Documentation/virt/kvm/x86/hypercalls.rst). Calls whose CPUID feature is not offered (KICK_CPU, SCHED_YIELD, ...) do not exist. */
import { Errno } from "@mkvm/kvm-abi";
import { Gpr } from "../arch/registers.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import { cpl, in64BitMode } from "./guest-cpu.ts";
import { guestTsc } from "./msr-access.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const KVM_HC_VAPIC_POLL_IRQ = 1;
const KVM_HC_CLOCK_PAIRING = 9;
const KVM_ENOSYS = 1000;

/** Handles the call; RAX has the result. The caller moves past the instruction. */
export function handleHypercall(vcpu: VcpuParts): void {
  vcpu.statistics.words[VcpuStat.hypercalls]!++;
  const wide = in64BitMode(vcpu);
  const argument = (register: number): bigint => (wide ? vcpu.gpr(register) : vcpu.gpr(register) & 0xffff_ffffn);
  const result = cpl(vcpu) !== 0 ? -Errno.EPERM : dispatch(vcpu, Number(BigInt.asUintN(32, argument(Gpr.RAX))), argument);
  vcpu.setGpr(Gpr.RAX, wide ? BigInt.asUintN(64, BigInt(result)) : BigInt.asUintN(32, BigInt(result)));
}

function dispatch(vcpu: VcpuParts, number: number, argument: (register: number) => bigint): number {
  switch (number) {
    case KVM_HC_VAPIC_POLL_IRQ:
      return 0;
    case KVM_HC_CLOCK_PAIRING:
      return clockPairing(vcpu, Number(argument(Gpr.RBX)), Number(argument(Gpr.RCX)));
    default:
      return -KVM_ENOSYS;
  }
}

/** Wall-clock time and TSC of one moment: struct kvm_clock_pairing. */
function clockPairing(vcpu: VcpuParts, address: number, clockType: number): number {
  if (clockType !== 0) return -Errno.EOPNOTSUPP;
  const page = new DataView(new ArrayBuffer(64));
  const now = vcpu.vm.clock.realtimeNs();
  page.setBigInt64(0, now / 1_000_000_000n, true);
  page.setBigInt64(8, now % 1_000_000_000n, true);
  page.setBigUint64(16, guestTsc(vcpu), true);
  const bytes = new Uint8Array(page.buffer);
  const first = Math.min(64, 4096 - (address & 0xfff));
  if (!vcpu.vm.memory.write(address, bytes.subarray(0, first))) return -Errno.EFAULT;
  if (first < 64 && !vcpu.vm.memory.write(address + first, bytes.subarray(first))) return -Errno.EFAULT;
  return 0;
}
