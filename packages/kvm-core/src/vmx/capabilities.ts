/** What a processor's VMX offers, and the controls that KVM settles on (SDM 3D, appendix "VMX Capability Reporting Facility"). */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { Msr } from "../arch/msr-index.ts";
import { EntryControl, ExitControl, PinControl, PrimaryControl, SecondaryControl } from "../arch/vmx-controls.ts";
import { CPUID_CONTROLS } from "./cpuid-controls.ts";

/** EPT and VPID capabilities that a module can use (MSR IA32_VMX_EPT_VPID_CAP). */
export interface EptCapabilities {
  readonly pages2m: boolean;
  readonly accessedDirty: boolean;
  readonly invvpidSingle: boolean;
}

export interface VmxCapabilities {
  readonly revision: number;
  readonly pin: number;
  readonly primary: number;
  readonly secondary: number;
  /** Secondary controls that a vCPU has by its guest's CPUID: both settings of them are allowed. */
  readonly cpuidControls: number;
  readonly exit: number;
  readonly entry: number;
  readonly ept: EptCapabilities;
  /** The local APIC can be virtualized whole but for posted interrupts. */
  readonly apicVirtualization: boolean;
  /** Pages whose dirty flags are set can be logged. */
  readonly modificationLog: boolean;
  readonly cr0Fixed0: bigint;
  readonly cr0Fixed1: bigint;
  readonly cr4Fixed0: bigint;
  readonly cr4Fixed1: bigint;
}

const APIC_VIRTUALIZATION =
  SecondaryControl.virtualizeApicAccesses |
  SecondaryControl.virtualizeX2apicMode |
  SecondaryControl.apicRegisterVirtualization |
  SecondaryControl.virtualInterruptDelivery;

/** `required` bits with the ones that the processor wants set; undefined when it lacks one of them. */
function adjust(allowed: bigint, required: number, optional: number): number | undefined {
  const mustBe1 = Number(allowed & 0xffff_ffffn);
  const mayBe1 = Number(allowed >> 32n);
  const value = (((required | optional) & mayBe1) | mustBe1) >>> 0;
  return (required & ~value) === 0 ? value : undefined;
}

/** Reads the capability MSRs and settles the controls; a string names what is missing. */
export function probeVmx(cpu: LogicalCpu): VmxCapabilities | string {
  if ((cpu.cpuid(1, 0).ecx & (1 << 5)) === 0) return "the processor has no VMX (CPUID.1:ECX.VMX)";
  const read = (index: number): bigint => cpu.rdmsr(index) ?? 0n;
  const basic = read(Msr.IA32_VMX_BASIC);
  if (basic === 0n) return "IA32_VMX_BASIC is not readable";
  // Bit 55: the TRUE control MSRs exist
  const base = (basic >> 55n) & 1n ? Msr.IA32_VMX_TRUE_PINBASED_CTLS : Msr.IA32_VMX_PINBASED_CTLS;
  const pin = adjust(read(base), PinControl.externalInterruptExiting | PinControl.nmiExiting | PinControl.virtualNmis, 0);
  const primary = adjust(
    read(base + 1),
    PrimaryControl.hltExiting |
      PrimaryControl.useTscOffsetting |
      PrimaryControl.useMsrBitmaps |
      PrimaryControl.unconditionalIoExiting |
      PrimaryControl.cr8LoadExiting |
      PrimaryControl.cr8StoreExiting |
      PrimaryControl.activateSecondaryControls,
    PrimaryControl.mwaitExiting | PrimaryControl.monitorExiting | PrimaryControl.rdpmcExiting,
  );
  const exit = adjust(
    read(base + 2),
    ExitControl.hostAddressSpaceSize | ExitControl.loadEfer | ExitControl.saveEfer | ExitControl.saveDebugControls,
    ExitControl.loadPat | ExitControl.savePat,
  );
  const entry = adjust(read(base + 3), EntryControl.loadEfer | EntryControl.loadDebugControls, EntryControl.loadPat);
  const secondaries = read(Msr.IA32_VMX_PROCBASED_CTLS2);
  const secondary = adjust(
    secondaries,
    SecondaryControl.enableEpt | SecondaryControl.enableVpid | SecondaryControl.unrestrictedGuest,
    SecondaryControl.wbinvdExiting,
  );
  if (pin === undefined) return "pin-based VMX controls for external interrupts and virtual NMIs are missing";
  if (primary === undefined) return "a primary processor-based VMX control that KVM needs is missing";
  if (secondary === undefined) return "EPT, VPID or unrestricted guest is missing";
  if (exit === undefined || entry === undefined) return "VM-entry or VM-exit controls that load IA32_EFER are missing";
  const offers = (allowed: bigint, bits: number): boolean => (Number(allowed >> 32n) & bits) === bits;
  const apicVirtualization = offers(read(base + 1), PrimaryControl.tprShadow) && offers(secondaries, APIC_VIRTUALIZATION);
  const ept = read(Msr.IA32_VMX_EPT_VPID_CAP);
  const bit = (position: bigint): boolean => ((ept >> position) & 1n) !== 0n;
  if (!bit(6n) || !bit(14n)) return "EPT with 4-level walks over write-back tables is missing";
  return {
    revision: Number(basic & 0x7fff_ffffn),
    pin,
    primary,
    secondary,
    cpuidControls: Number(secondaries >> 32n) & ~Number(secondaries & 0xffff_ffffn) & CPUID_CONTROLS,
    exit,
    entry,
    ept: { pages2m: bit(16n), accessedDirty: bit(21n), invvpidSingle: bit(41n) },
    apicVirtualization,
    modificationLog: bit(21n) && offers(secondaries, SecondaryControl.enablePml),
    cr0Fixed0: read(Msr.IA32_VMX_CR0_FIXED0),
    cr0Fixed1: read(Msr.IA32_VMX_CR0_FIXED1),
    cr4Fixed0: read(Msr.IA32_VMX_CR4_FIXED0),
    cr4Fixed1: read(Msr.IA32_VMX_CR4_FIXED1),
  };
}
