/**
 * What this machine's VMX can do, as the capability MSRs tell it. Source: Intel SDM Vol. 3D, VMX Capability Reporting Facility.
 * Everything offered here is implemented; nothing else can be switched on.
 */
import type { CpuModel } from "../engine/cpu.ts";
import { Msr } from "../msr.ts";
import { EntryControl, ExitControl, Pin, Primary, Secondary } from "./controls.ts";
import { HIGHEST_FIELD_INDEX } from "./fields.ts";
import { VMCS_REVISION } from "./vmcs.ts";

const all = (bits: Readonly<Record<string, number>>): number => Object.values(bits).reduce((sum, bit) => sum | bit, 0) >>> 0;

/** Which bits of a control field must be 1, and which may be. */
export interface AllowedSettings {
  readonly mustBe: number;
  readonly mayBe: number;
}

function allowed(defaultOnes: number, offered: number, alsoRequired = 0): AllowedSettings {
  const mustBe = (defaultOnes | alsoRequired) >>> 0;
  return { mustBe, mayBe: (mustBe | offered) >>> 0 };
}

// Reserved controls that are 1 in every VMCS ("default1 class"), without those that the TRUE capability MSRs let software clear
// This machine has no interrupt delivery in root mode but the exit, so external interrupts must exit
export const PIN_CONTROLS = allowed(0x16, all(Pin), Pin.externalInterruptExiting);
export const PRIMARY_CONTROLS = allowed(0x0400_6172, all(Primary));
export const SECONDARY_CONTROLS = allowed(0, all(Secondary));
export const EXIT_CONTROLS = allowed(0x0003_6dfb, all(ExitControl));
export const ENTRY_CONTROLS = allowed(0x0000_11fb, all(EntryControl));

/** Default1 controls that only the TRUE MSRs let software clear. */
const PRIMARY_LEGACY_ONES = Primary.cr3LoadExiting | Primary.cr3StoreExiting;
const EXIT_LEGACY_ONES = ExitControl.saveDebugControls;
const ENTRY_LEGACY_ONES = EntryControl.loadDebugControls;

/** The VMX-preemption timer counts down when this bit of the TSC changes. */
export const PREEMPTION_TIMER_SHIFT = 5;
export const CR3_TARGETS = 4;
/** Entries in each MSR area. */
export const MSR_LIST_LIMIT = 512;

export const CR0_FIXED0 = 0x8000_0021;
export const CR4_FIXED0 = 0x2000;

/** IA32_VMX_EPT_VPID_CAP. */
export const EptVpid = {
  executeOnly: 1n << 0n,
  pageWalk4: 1n << 6n,
  pageWalk5: 1n << 7n,
  uncacheable: 1n << 8n,
  writeBack: 1n << 14n,
  pages2M: 1n << 16n,
  pages1G: 1n << 17n,
  invept: 1n << 20n,
  accessedDirty: 1n << 21n,
  inveptSingle: 1n << 25n,
  inveptAll: 1n << 26n,
  invvpid: 1n << 32n,
  invvpidAddress: 1n << 40n,
  invvpidSingle: 1n << 41n,
  invvpidAll: 1n << 42n,
  invvpidKeepGlobals: 1n << 43n,
} as const;

function pair(settings: AllowedSettings, legacyOnes = 0): bigint {
  return (BigInt(settings.mayBe) << 32n) | BigInt((settings.mustBe | legacyOnes) >>> 0);
}

const basic =
  BigInt(VMCS_REVISION) |
  (4096n << 32n) | // size of a region
  (6n << 50n) | // write-back
  (1n << 54n) | // instruction information for INS and OUTS
  (1n << 55n); // TRUE capability MSRs

const misc =
  BigInt(PREEMPTION_TIMER_SHIFT) |
  (1n << 5n) | // EFER.LMA is stored in "IA-32e mode guest" on exit, as unrestricted guests need
  (0b011n << 6n) | // activity states HLT and shutdown
  (BigInt(CR3_TARGETS) << 16n);

/** Value of a VMX capability MSR or IA32_FEATURE_CONTROL, undefined for other MSRs. */
export function vmxCapability(msr: number, model: CpuModel): bigint | undefined {
  switch (msr) {
    case Msr.FEATURE_CONTROL:
      return 5n; // locked, VMXON allowed outside SMX
    case Msr.VMX_BASIC:
      return basic;
    case Msr.VMX_PIN_CONTROLS:
    case Msr.VMX_TRUE_PIN_CONTROLS:
      return pair(PIN_CONTROLS);
    case Msr.VMX_PRIMARY_CONTROLS:
      return pair(PRIMARY_CONTROLS, PRIMARY_LEGACY_ONES);
    case Msr.VMX_TRUE_PRIMARY_CONTROLS:
      return pair(PRIMARY_CONTROLS);
    case Msr.VMX_EXIT_CONTROLS:
      return pair(EXIT_CONTROLS, EXIT_LEGACY_ONES);
    case Msr.VMX_TRUE_EXIT_CONTROLS:
      return pair(EXIT_CONTROLS);
    case Msr.VMX_ENTRY_CONTROLS:
      return pair(ENTRY_CONTROLS, ENTRY_LEGACY_ONES);
    case Msr.VMX_TRUE_ENTRY_CONTROLS:
      return pair(ENTRY_CONTROLS);
    case Msr.VMX_MISC:
      return misc;
    case Msr.VMX_CR0_FIXED0:
      return BigInt(CR0_FIXED0);
    case Msr.VMX_CR0_FIXED1:
      return 0xffff_ffffn;
    case Msr.VMX_CR4_FIXED0:
      return BigInt(CR4_FIXED0);
    case Msr.VMX_CR4_FIXED1:
      return model.cr4Allowed | BigInt(CR4_FIXED0);
    case Msr.VMX_VMCS_ENUM:
      return BigInt(HIGHEST_FIELD_INDEX << 1);
    case Msr.VMX_SECONDARY_CONTROLS:
      return pair(SECONDARY_CONTROLS);
    case Msr.VMX_EPT_VPID_CAP:
      return Object.values(EptVpid).reduce((sum, bit) => sum | bit, 0n);
    default:
      return undefined;
  }
}
