/**
 * vCPUs that spin. All vCPUs of a VM take turns on one logical CPU, so what a spinning one waits for cannot happen before it gives
 * way. Each PAUSE exits then, rather than each so many of them close together (PAUSE-loop exiting, pause filter): the hardware's
 * count starts anew at every VM entry, and where the vCPU gives way would depend on exits that the guest knows nothing of.
 */
import type { Scheduler } from "@mkvm/kvm-abi";
import { type VcpuCounters, VcpuStat } from "../statistics/vcpu-statistics.ts";
import type { ExitOutcome, VcpuParts, VmParts } from "./vcpu-parts.ts";

/** PAUSE is to exit: not where a vCPU is alone, which spins for a device or for time to pass. */
export function pauseExits(vm: VmParts): boolean {
  return vm.vcpus().length > 1;
}

/** `length`: of the instruction. */
export function exitPause(vcpu: VcpuParts, length: number): ExitOutcome {
  vcpu.skip(length);
  return "pause";
}

/** True when the spinning vCPU is to give way now. */
export function yieldsOnPause(scheduler: Scheduler, { words }: Pick<VcpuCounters, "words">): boolean {
  words[VcpuStat.directed_yield_attempted]!++;
  if (scheduler.singleTaskRunning()) return false;
  words[VcpuStat.directed_yield_successful]!++;
  return true;
}
