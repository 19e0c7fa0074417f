/** kvmclock: what the guest's MSRs set up, and the pages that KVM writes for it. */

import { Msr } from "../arch/msr-index.ts";
import { findCpuid } from "../cpuid-table.ts";
import { PVCLOCK_TIME_BYTES, PVCLOCK_WALL_CLOCK_BYTES, PvclockFlag, writePvclockTime, writeWallClock } from "../kvmclock.ts";
import type { VcpuParts, VmParts } from "./vcpu-parts.ts";

const KVM_CPUID_FEATURES = 0x4000_0001;
const FEATURE_CLOCKSOURCE = 1 << 0;
const FEATURE_CLOCKSOURCE2 = 1 << 3;

/** Guest time of a VM now, ns. */
export function guestTimeNs(vm: VmParts): bigint {
  return BigInt(vm.clock.monotonicNs()) + vm.clockState.offsetNs;
}

/** Takes a new pair of host time and TSC, from which all vCPUs extrapolate. */
export function renewMasterClock(vm: VmParts): void {
  vm.clockState.masterMonotonicNs = BigInt(vm.clock.monotonicNs());
  vm.clockState.masterTsc = BigInt(vm.hostTsc());
}

/** KVM_SET_CLOCK: guest time is `clockNs` now. */
export function setGuestTime(vm: VmParts, clockNs: bigint): void {
  vm.clockState.offsetNs = clockNs - BigInt(vm.clock.monotonicNs());
  renewMasterClock(vm);
  for (const vcpu of vm.vcpus()) vcpu.requestClockUpdate();
}

/** Writes the vCPU's time page, if it has set one up. */
export function updateClockPage(vcpu: VcpuParts): void {
  const { vm, pv } = vcpu;
  if ((pv.systemTime & 1n) === 0n) return;
  const address = Number(pv.systemTime & ~1n);
  const page = vm.memory.read(address, PVCLOCK_TIME_BYTES);
  if (page === undefined) return;
  writePvclockTime(page, {
    tscTimestamp: BigInt.asUintN(64, vm.clockState.masterTsc + vcpu.tscOffset),
    systemTimeNs: vm.clockState.masterMonotonicNs + vm.clockState.offsetNs,
    tscKhz: vm.tscKhz,
    flags: PvclockFlag.tscStable | pv.flags,
  });
  vm.memory.write(address, page);
  pv.flags = 0;
}

function features(vcpu: VcpuParts): number {
  return findCpuid(vcpu.cpuid, KVM_CPUID_FEATURES, 0)?.eax ?? 0;
}

/** undefined: not an MSR of kvmclock; false: #GP. */
export function writeClockMsr(vcpu: VcpuParts, index: number, value: bigint, byHost: boolean): boolean | undefined {
  switch (index) {
    case Msr.MSR_KVM_SYSTEM_TIME:
    case Msr.MSR_KVM_SYSTEM_TIME_NEW: {
      if (!vcpu.vm.kvmclock) return undefined;
      const legacy = index === Msr.MSR_KVM_SYSTEM_TIME;
      if (!byHost && (features(vcpu) & (legacy ? FEATURE_CLOCKSOURCE : FEATURE_CLOCKSOURCE2)) === 0) return false;
      // The structure must not cross a page; KVM takes addresses aligned to 4 bytes
      if ((value & 1n) !== 0n && ((value & 2n) !== 0n || Number(value & 0xffen) + PVCLOCK_TIME_BYTES > 4096)) return false;
      vcpu.pv.systemTime = value;
      vcpu.pv.legacy = legacy;
      if ((value & 1n) !== 0n) vcpu.requestClockUpdate();
      return true;
    }
    case Msr.MSR_KVM_WALL_CLOCK:
    case Msr.MSR_KVM_WALL_CLOCK_NEW: {
      if (!vcpu.vm.kvmclock) return undefined;
      const legacy = index === Msr.MSR_KVM_WALL_CLOCK;
      if (!byHost && (features(vcpu) & (legacy ? FEATURE_CLOCKSOURCE : FEATURE_CLOCKSOURCE2)) === 0) return false;
      vcpu.pv.wallClock = value;
      if (value !== 0n) writeWallClockPage(vcpu, Number(value));
      return true;
    }
    default:
      return undefined;
  }
}

function writeWallClockPage(vcpu: VcpuParts, address: number): void {
  const { memory, clock } = vcpu.vm;
  if ((address & 0xfff) + PVCLOCK_WALL_CLOCK_BYTES > 4096) return;
  const page = memory.read(address, PVCLOCK_WALL_CLOCK_BYTES);
  if (page === undefined) return;
  writeWallClock(page, clock.realtimeNs() - guestTimeNs(vcpu.vm));
  memory.write(address, page);
}

export function readClockMsr(vcpu: VcpuParts, index: number): bigint | undefined {
  if (!vcpu.vm.kvmclock) return undefined;
  if (index === Msr.MSR_KVM_SYSTEM_TIME || index === Msr.MSR_KVM_SYSTEM_TIME_NEW) return vcpu.pv.systemTime;
  if (index === Msr.MSR_KVM_WALL_CLOCK || index === Msr.MSR_KVM_WALL_CLOCK_NEW) return vcpu.pv.wallClock;
  return undefined;
}
