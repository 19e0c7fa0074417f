/**
 * Checks of the VMX controls and the host-state area by VM entry. Source: Intel SDM Vol. 3C, Checks on VMX Controls and
 * Host-State Area. Each function returns undefined when all is well, else the rule that was broken, for the hardware's log.
 */
import type { CpuModel } from "../engine/cpu.ts";
import { Cr4 } from "../engine/system/bits.ts";
import { isCanonicalTop } from "../engine/system/linear-address.ts";
import { isGlobalControl } from "../performance/intel-counters.ts";
import { isPat } from "../root-msrs.ts";
import {
  type AllowedSettings,
  CR0_FIXED0,
  CR3_TARGETS,
  CR4_FIXED0,
  ENTRY_CONTROLS,
  EXIT_CONTROLS,
  MSR_LIST_LIMIT,
  PIN_CONTROLS,
  PRIMARY_CONTROLS,
  SECONDARY_CONTROLS,
} from "./capabilities.ts";
import { EntryControl, ExitControl, Interruption, Pin, Primary, Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

function isAllowed(value: number, settings: AllowedSettings): boolean {
  return (value & settings.mustBe) >>> 0 === settings.mustBe && (value & ~settings.mayBe) === 0;
}

/** 4 KiB aligned and within the physical-address width. */
function isPageAddress(vmcs: Vmcs, field: number, physicalAddressBits: number): boolean {
  return (vmcs.low(field) & 0xfff) === 0 && vmcs.high(field) < 2 ** (physicalAddressBits - 32);
}

function isMsrList(vmcs: Vmcs, address: number, count: number, physicalAddressBits: number): boolean {
  const entries = vmcs.low(count);
  if (entries === 0) return true;
  const last = vmcs.number(address) + entries * 16 - 1;
  return entries <= MSR_LIST_LIMIT && (vmcs.low(address) & 15) === 0 && last < 2 ** physicalAddressBits;
}

/** Bits beyond the processor's linear addresses repeat the top one, whatever the paging mode. */
export function isCanonicalField(vmcs: Vmcs, field: number, model: CpuModel): boolean {
  return isCanonicalTop(vmcs.high(field), model.linearAddressBits);
}

/** The host's RIP is what its own paging mode, as the exit loads it, has addresses for. */
function isHostRip(vmcs: Vmcs): boolean {
  const bits = (vmcs.low(slot.HOST_CR4) & Cr4.LA57) !== 0 ? 57 : 48;
  return isCanonicalTop(vmcs.high(slot.HOST_RIP), bits);
}

/** Page-walk length of an EPT pointer. */
export const eptLevels = (pointerLow: number): number => ((pointerLow >>> 3) & 7) + 1;

export function isEptPointer(low: number, high: number, physicalAddressBits: number): boolean {
  const memoryType = low & 7;
  const levels = eptLevels(low);
  return (
    (memoryType === 0 || memoryType === 6) &&
    (levels === 4 || levels === 5) &&
    (low & 0xf80) === 0 &&
    high < 2 ** (physicalAddressBits - 32)
  );
}

export function checkControls(vmcs: Vmcs, model: CpuModel): string | undefined {
  const width = model.physicalAddressBits;
  const pin = vmcs.low(slot.PIN_CONTROLS);
  const primary = vmcs.low(slot.PRIMARY_CONTROLS);
  const secondary = (primary & Primary.activateSecondary) !== 0 ? vmcs.low(slot.SECONDARY_CONTROLS) : 0;
  const exit = vmcs.low(slot.EXIT_CONTROLS);
  const entry = vmcs.low(slot.ENTRY_CONTROLS);
  if (!isAllowed(pin, PIN_CONTROLS)) return `pin-based controls ${pin.toString(16)}`;
  if (!isAllowed(primary, PRIMARY_CONTROLS)) return `primary controls ${primary.toString(16)}`;
  if (!isAllowed(secondary, SECONDARY_CONTROLS)) return `secondary controls ${secondary.toString(16)}`;
  if (!isAllowed(exit, EXIT_CONTROLS)) return `exit controls ${exit.toString(16)}`;
  if (!isAllowed(entry, ENTRY_CONTROLS)) return `entry controls ${entry.toString(16)}`;
  if (vmcs.low(slot.CR3_TARGET_COUNT) > CR3_TARGETS) return "CR3-target count";
  if ((primary & Primary.useIoBitmaps) !== 0) {
    if (!isPageAddress(vmcs, slot.IO_BITMAP_A, width) || !isPageAddress(vmcs, slot.IO_BITMAP_B, width))
      return "I/O bitmap address";
  }
  if ((primary & Primary.useMsrBitmaps) !== 0 && !isPageAddress(vmcs, slot.MSR_BITMAP, width)) return "MSR bitmap address";
  if ((pin & Pin.nmiExiting) === 0 && (pin & Pin.virtualNmis) !== 0) return "virtual NMIs without NMI exiting";
  if ((pin & Pin.virtualNmis) === 0 && (primary & Primary.nmiWindowExiting) !== 0)
    return "NMI-window exiting without virtual NMIs";
  const apic = checkApicControls(vmcs, pin, primary, secondary, width);
  if (apic !== undefined) return apic;
  if ((secondary & Secondary.enableVpid) !== 0 && (vmcs.low(slot.VPID) & 0xffff) === 0) return "VPID 0";
  if ((secondary & Secondary.enableEpt) !== 0) {
    if (!isEptPointer(vmcs.low(slot.EPT_POINTER), vmcs.high(slot.EPT_POINTER), width)) return "EPT pointer";
  } else if ((secondary & Secondary.unrestrictedGuest) !== 0) return "unrestricted guest without EPT";
  if ((secondary & Secondary.enablePml) !== 0) {
    if ((secondary & Secondary.enableEpt) === 0) return "page-modification logging without EPT";
    if (!isPageAddress(vmcs, slot.PML_ADDRESS, width)) return "PML address";
  }
  if ((pin & Pin.preemptionTimer) === 0 && (exit & ExitControl.savePreemptionTimer) !== 0)
    return "saving a preemption timer that is off";
  if (!isMsrList(vmcs, slot.EXIT_MSR_STORE_ADDRESS, slot.EXIT_MSR_STORE_COUNT, width)) return "VM-exit MSR-store list";
  if (!isMsrList(vmcs, slot.EXIT_MSR_LOAD_ADDRESS, slot.EXIT_MSR_LOAD_COUNT, width)) return "VM-exit MSR-load list";
  if (!isMsrList(vmcs, slot.ENTRY_MSR_LOAD_ADDRESS, slot.ENTRY_MSR_LOAD_COUNT, width)) return "VM-entry MSR-load list";
  return undefined;
}

/** What virtualizes the local APIC, but what depends on the virtual-APIC page: see `checkTprThreshold`. */
function checkApicControls(vmcs: Vmcs, pin: number, primary: number, secondary: number, width: number): string | undefined {
  const delivers = (secondary & Secondary.virtualInterruptDelivery) !== 0;
  const accesses = (secondary & Secondary.virtualizeApicAccesses) !== 0;
  if ((primary & Primary.useTprShadow) !== 0) {
    if (!isPageAddress(vmcs, slot.VIRTUAL_APIC_ADDRESS, width)) return "virtual-APIC address";
    if (!delivers && vmcs.low(slot.TPR_THRESHOLD) > 15) return "TPR threshold above 15";
  } else {
    if ((secondary & Secondary.virtualizeX2apicMode) !== 0) return "virtualized x2APIC mode without TPR shadow";
    if ((secondary & Secondary.apicRegisterVirtualization) !== 0) return "APIC-register virtualization without TPR shadow";
    if (delivers) return "virtual-interrupt delivery without TPR shadow";
  }
  if (accesses && !isPageAddress(vmcs, slot.APIC_ACCESS_ADDRESS, width)) return "APIC-access address";
  if (accesses && (secondary & Secondary.virtualizeX2apicMode) !== 0) return "virtualized APIC accesses in x2APIC mode";
  if (delivers && (pin & Pin.externalInterruptExiting) === 0)
    return "virtual-interrupt delivery without external-interrupt exiting";
  return (pin & Pin.processPostedInterrupts) !== 0 ? checkPosting(vmcs, delivers, width) : undefined;
}

function checkPosting(vmcs: Vmcs, delivers: boolean, width: number): string | undefined {
  if (!delivers) return "posted interrupts without virtual-interrupt delivery";
  if ((vmcs.low(slot.EXIT_CONTROLS) & ExitControl.acknowledgeInterrupt) === 0)
    return "posted interrupts without acknowledgement on exit";
  if ((vmcs.low(slot.POSTED_INTERRUPT_VECTOR) & 0xff00) !== 0) return "posted-interrupt notification vector above 255";
  const descriptor = slot.POSTED_INTERRUPT_DESCRIPTOR;
  if ((vmcs.low(descriptor) & 0x3f) !== 0 || vmcs.high(descriptor) >= 2 ** (width - 32))
    return "posted-interrupt descriptor address";
  return undefined;
}

/** Checks of the VM-entry interruption-information fields, which depend on the guest's CR0 as well. */
export function checkInjection(vmcs: Vmcs): string | undefined {
  const info = vmcs.low(slot.ENTRY_INTERRUPTION_INFO);
  if ((info & Interruption.valid) === 0) return undefined;
  const vector = info & 0xff;
  const type = (info >>> 8) & 7;
  if ((info & 0x7fff_f000) !== 0) return "injection: reserved bits";
  if (type === 1) return "injection: type 1";
  if (type === 2 && vector !== 2) return "injection: NMI with another vector than 2";
  if (type === 3 && vector > 31) return "injection: hardware exception above 31";
  if (type === 7 && vector !== 0) return "injection: other event than a pending monitor trap";
  const unrestricted =
    (vmcs.low(slot.PRIMARY_CONTROLS) & Primary.activateSecondary) !== 0 &&
    (vmcs.low(slot.SECONDARY_CONTROLS) & Secondary.unrestrictedGuest) !== 0;
  const isProtected = !unrestricted || (vmcs.low(slot.GUEST_CR0) & 1) !== 0;
  const pushes = isProtected && type === 3 && ((0x2_7d00 >>> vector) & 1) !== 0; // 8, 10 to 14, 17
  if (((info & Interruption.errorCodeValid) !== 0) !== pushes) return "injection: error code";
  if (pushes && (vmcs.low(slot.ENTRY_ERROR_CODE) & 0xffff_0000) !== 0) return "injection: error code bits";
  if (type >= 4 && type <= 6) {
    const length = vmcs.low(slot.ENTRY_INSTRUCTION_LENGTH);
    if (length < 1 || length > 15) return "injection: instruction length";
  }
  return undefined;
}

export function checkHostState(vmcs: Vmcs, model: CpuModel): string | undefined {
  const width = model.physicalAddressBits;
  const exit = vmcs.low(slot.EXIT_CONTROLS);
  const entry = vmcs.low(slot.ENTRY_CONTROLS);
  const cr4 = vmcs.low(slot.HOST_CR4);
  if ((vmcs.low(slot.HOST_CR0) & CR0_FIXED0) >>> 0 !== CR0_FIXED0 || vmcs.high(slot.HOST_CR0) !== 0) return "host CR0";
  if ((cr4 & CR4_FIXED0) === 0 || vmcs.high(slot.HOST_CR4) !== 0) return "host CR4";
  if ((BigInt(cr4) & ~(model.cr4Allowed | BigInt(CR4_FIXED0))) !== 0n) return "host CR4: reserved bits";
  if (vmcs.high(slot.HOST_CR3) >= 2 ** (width - 32)) return "host CR3";
  for (const field of [
    slot.HOST_SYSENTER_ESP,
    slot.HOST_SYSENTER_EIP,
    slot.HOST_FS_BASE,
    slot.HOST_GS_BASE,
    slot.HOST_GDTR_BASE,
  ]) {
    if (!isCanonicalField(vmcs, field, model)) return "host address not canonical";
  }
  if (!isCanonicalField(vmcs, slot.HOST_IDTR_BASE, model) || !isCanonicalField(vmcs, slot.HOST_TR_BASE, model))
    return "host address not canonical";
  if ((exit & ExitControl.loadPat) !== 0 && !isPat(vmcs.low(slot.HOST_PAT), vmcs.high(slot.HOST_PAT))) return "host PAT";
  const counters = slot.HOST_PERF_GLOBAL_CTRL;
  if ((exit & ExitControl.loadPerfGlobalCtrl) !== 0 && !isGlobalControl(vmcs.low(counters), vmcs.high(counters)))
    return "host IA32_PERF_GLOBAL_CTRL";
  const hostIs64 = (exit & ExitControl.hostAddressSpaceSize) !== 0;
  if ((exit & ExitControl.loadEfer) !== 0) {
    const efer = vmcs.low(slot.HOST_EFER);
    if (vmcs.high(slot.HOST_EFER) !== 0 || (efer & ~0xd01) !== 0) return "host EFER";
    const lma = (efer & 0x400) !== 0;
    const lme = (efer & 0x100) !== 0;
    if (lma !== hostIs64 || lme !== hostIs64) return "host EFER: LMA or LME";
  }
  for (const field of [
    slot.HOST_ES_SELECTOR,
    slot.HOST_CS_SELECTOR,
    slot.HOST_SS_SELECTOR,
    slot.HOST_DS_SELECTOR,
    slot.HOST_FS_SELECTOR,
    slot.HOST_GS_SELECTOR,
    slot.HOST_TR_SELECTOR,
  ]) {
    if ((vmcs.low(field) & 7) !== 0) return "host selector with RPL or TI";
  }
  if (vmcs.low(slot.HOST_CS_SELECTOR) === 0 || vmcs.low(slot.HOST_TR_SELECTOR) === 0) return "host CS or TR null";
  // Root mode is 64-bit here, so VM entry from outside IA-32e mode does not occur
  if (!hostIs64) return "host address-space size 0 in IA-32e mode";
  if ((cr4 & 0x20) === 0) return "host CR4.PAE";
  if (!isHostRip(vmcs)) return "host RIP";
  // A 64-bit host may enter guests of either kind; only the reverse is restricted
  return (entry & EntryControl.ia32eModeGuest) === 0 || hostIs64 ? undefined : "IA-32e guest under a 32-bit host";
}
