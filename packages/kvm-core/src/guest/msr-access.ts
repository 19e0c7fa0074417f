/** RDMSR and WRMSR by the guest, KVM_GET_MSRS and KVM_SET_MSRS by user space: which part of the vCPU has which MSR. */
import { Msr } from "../arch/msr-index.ts";
import { type CpuidEntry, findCpuid } from "../cpuid-table.ts";
import { writeEfer } from "./control-registers.ts";
import { type GuestFeature, hasFeature } from "./cpuid-features.ts";
import { readClockMsr, writeClockMsr } from "./kvmclock-msrs.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const MASK64 = 0xffff_ffff_ffff_ffffn;

/** MSRs in the hardware or in VAC, ascending: they travel in section vcpu.msrs beside those of the store. */
export const HARDWARE_MSRS: readonly number[] = [
  Msr.IA32_SYSENTER_CS,
  Msr.IA32_SYSENTER_ESP,
  Msr.IA32_SYSENTER_EIP,
  Msr.IA32_DEBUGCTL,
  Msr.IA32_PAT,
  Msr.IA32_STAR,
  Msr.IA32_LSTAR,
  Msr.IA32_CSTAR,
  Msr.IA32_FMASK,
  Msr.IA32_KERNEL_GS_BASE,
  Msr.IA32_TSC_AUX,
];
/** Segment bases: in KVM_GET_SREGS as well, hence not sent twice. */
const SEGMENT_BASE_MSRS: readonly number[] = [Msr.IA32_FS_BASE, Msr.IA32_GS_BASE];
const CANONICAL_MSRS: ReadonlySet<number> = new Set([
  Msr.IA32_SYSENTER_ESP,
  Msr.IA32_SYSENTER_EIP,
  Msr.IA32_LSTAR,
  Msr.IA32_CSTAR,
  Msr.IA32_FS_BASE,
  Msr.IA32_GS_BASE,
  Msr.IA32_KERNEL_GS_BASE,
]);
const HARDWARE = new Set([...HARDWARE_MSRS, ...SEGMENT_BASE_MSRS]);

/** MSRs that are neither in the store nor in hardware; for KVM_GET_MSR_INDEX_LIST. */
export const MODULE_MSRS: readonly number[] = [
  Msr.IA32_TSC,
  Msr.IA32_TSC_ADJUST,
  Msr.IA32_TSC_DEADLINE,
  Msr.IA32_EFER,
  ...HARDWARE_MSRS,
  ...SEGMENT_BASE_MSRS,
];
export const CLOCK_MSRS: readonly number[] = [
  Msr.MSR_KVM_WALL_CLOCK,
  Msr.MSR_KVM_SYSTEM_TIME,
  Msr.MSR_KVM_WALL_CLOCK_NEW,
  Msr.MSR_KVM_SYSTEM_TIME_NEW,
];

export function guestTsc(vcpu: VcpuParts): bigint {
  return BigInt.asUintN(64, BigInt(vcpu.vm.hostTsc()) + vcpu.tscOffset);
}

export function isCanonical(value: bigint, bits = 48): boolean {
  return BigInt.asUintN(64, BigInt.asIntN(bits, value)) === BigInt.asUintN(64, value);
}

function isX2apic(index: number): boolean {
  return index >= Msr.X2APIC_BASE && index <= Msr.X2APIC_LAST;
}

/** "unknown": no such MSR; "refused": it cannot be read as things are. */
export function readMsr(vcpu: VcpuParts, index: number, byHost: boolean): bigint | "unknown" | "refused" {
  if (!byHost && lacks(vcpu.cpuid, index)) return "refused";
  switch (index) {
    case Msr.IA32_TSC:
      return guestTsc(vcpu);
    case Msr.IA32_TSC_ADJUST:
      return vcpu.tscAdjust;
    case Msr.IA32_APIC_BASE:
      return vcpu.lapic?.apicBase ?? vcpu.userApicBase;
    case Msr.IA32_TSC_DEADLINE:
      return vcpu.lapic?.tscDeadline ?? 0n;
    case Msr.IA32_EFER:
      return vcpu.efer;
    default:
  }
  if (HARDWARE.has(index)) {
    return vcpu.hardwareMsr(index) ?? "unknown";
  }
  if (isX2apic(index)) return (vcpu.lapic?.x2apic ? vcpu.lapic.msrRead(index) : undefined) ?? "refused";
  return readClockMsr(vcpu, index) ?? vcpu.msrs.read(index) ?? "unknown";
}

/** "unknown": no such MSR; "refused": the value is not allowed. */
export function writeMsr(vcpu: VcpuParts, index: number, value: bigint, byHost: boolean): "ok" | "unknown" | "refused" {
  if (!byHost && lacks(vcpu.cpuid, index)) return "refused";
  const verdict = (accepted: boolean): "ok" | "refused" => (accepted ? "ok" : "refused");
  switch (index) {
    case Msr.IA32_TSC:
      writeTsc(vcpu, value, byHost);
      return "ok";
    case Msr.IA32_TSC_ADJUST:
      if (!byHost) {
        setTscOffset(vcpu, vcpu.tscOffset + value - vcpu.tscAdjust);
      }
      vcpu.tscAdjust = value;
      return "ok";
    case Msr.IA32_APIC_BASE:
      if (vcpu.lapic !== undefined) return verdict(vcpu.lapic.setApicBase(value));
      vcpu.userApicBase = value;
      return "ok";
    case Msr.IA32_TSC_DEADLINE:
      vcpu.lapic?.setTscDeadline(value);
      return "ok";
    case Msr.IA32_EFER:
      return verdict(writeEfer(vcpu, value, byHost));
    default:
  }
  if (HARDWARE.has(index)) {
    if (index === Msr.IA32_PAT && !isValidPat(value)) return "refused";
    if (CANONICAL_MSRS.has(index) && !isCanonical(value, byHost || hasWideAddresses(vcpu) ? 57 : 48)) return "refused";
    if (index === Msr.IA32_TSC_AUX && value >> 32n !== 0n) return "refused";
    // Branch records are not offered: LBR is taken and forgotten, as Linux does. BTF the processor has
    if (index === Msr.IA32_DEBUGCTL && (value & ~3n) !== 0n) return "refused";
    if (index === Msr.IA32_DEBUGCTL) return verdict(vcpu.setHardwareMsr(index, value & 2n));
    return verdict(vcpu.setHardwareMsr(index, value));
  }
  if (isX2apic(index)) return verdict(vcpu.lapic?.x2apic ? vcpu.lapic.msrWrite(index, value) : false);
  const clock = writeClockMsr(vcpu, index, value, byHost);
  if (clock !== undefined) return verdict(clock);
  return vcpu.msrs.write(index, value, byHost);
}

/** Addresses in MSRs may have as many bits as the processor's, whatever the paging mode. What user space restores was the guest's. */
function hasWideAddresses(vcpu: VcpuParts): boolean {
  return ((findCpuid(vcpu.cpuid, 7, 0)?.ecx ?? 0) & (1 << 16)) !== 0;
}

/** MSRs that a guest has with one of these features, as with Linux KVM. */
const WITH_FEATURES: ReadonlyMap<number, readonly (keyof typeof GuestFeature)[]> = new Map([
  [Msr.IA32_TSC_AUX, ["RDTSCP", "RDPID"]],
  [Msr.IA32_XSS, ["XSAVES"]],
  [Msr.IA32_ARCH_CAPABILITIES, ["ARCH_CAPABILITIES"]],
]);
function lacks(table: readonly CpuidEntry[], index: number): boolean {
  return WITH_FEATURES.get(index)?.some((feature) => hasFeature(table, feature)) === false;
}

function isValidPat(value: bigint): boolean {
  for (let shift = 0n; shift < 64n; shift += 8n) {
    const type = (value >> shift) & 0xffn;
    if (type > 7n || type === 2n || type === 3n) return false;
  }
  return true;
}

function setTscOffset(vcpu: VcpuParts, offset: bigint): void {
  vcpu.tscOffset = offset & MASK64;
  vcpu.lapic?.guestTscChanged();
  vcpu.requestClockUpdate();
}

/** A write by the guest moves its offset and IA32_TSC_ADJUST; one by user space near another vCPU's TSC joins that vCPU. */
function writeTsc(vcpu: VcpuParts, value: bigint, byHost: boolean): void {
  const offset = BigInt.asUintN(64, value - BigInt(vcpu.vm.hostTsc()));
  if (!byHost) {
    vcpu.tscAdjust = BigInt.asUintN(64, vcpu.tscAdjust + offset - vcpu.tscOffset);
    setTscOffset(vcpu, offset);
    return;
  }
  const second = BigInt(vcpu.vm.tscKhz) * 1000n;
  const peer = vcpu.vm.vcpus().find((other) => other !== vcpu);
  const distance = peer === undefined ? undefined : BigInt.asIntN(64, offset - peer.tscOffset);
  const joins = peer !== undefined && (value === 0n || (distance! < second && distance! > -second));
  setTscOffset(vcpu, joins ? peer.tscOffset : offset);
}

/** Why a guest's access did not happen. */
export type MsrRefusal = "unknown" | "refused" | "filtered";

/** Guest RDMSR. */
export function guestRdmsr(vcpu: VcpuParts, index: number): bigint | MsrRefusal {
  if (vcpu.vm.settings.msrFilter?.allows(index, false) === false) return "filtered";
  const value = readMsr(vcpu, index, false);
  if (typeof value === "string" && vcpu.vm.firstTime(`rdmsr ${index}`)) {
    vcpu.vm.log("debug", `vcpu ${vcpu.id}: RDMSR 0x${index.toString(16)} is ${value}`);
  }
  return value;
}

/** Guest WRMSR. */
export function guestWrmsr(vcpu: VcpuParts, index: number, value: bigint): "ok" | MsrRefusal {
  if (vcpu.vm.settings.msrFilter?.allows(index, true) === false) return "filtered";
  const result = writeMsr(vcpu, index, value, false);
  if (result !== "ok" && vcpu.vm.firstTime(`wrmsr ${index}`)) {
    vcpu.vm.log("debug", `vcpu ${vcpu.id}: WRMSR 0x${index.toString(16)} = 0x${value.toString(16)} is ${result}`);
  }
  return result;
}
