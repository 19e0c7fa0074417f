/** First contents of a vCPU's VMCS: controls, host state, and the state after reset. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { VmcsField as Vmcs } from "../arch/vmcs-fields.ts";
import { ExitControl, SecondaryControl } from "../arch/vmx-controls.ts";
import type { MsrFilter } from "../guest/msr-filter.ts";
import type { VmxCapabilities } from "./capabilities.ts";

/** CR0 bits that the guest changes without an exit: MP, EM, TS, WP, AM. */
export const CR0_GUEST_OWNED = 0x0005_000en;
/** CR4 bits that the guest changes without an exit: PVI, TSD, DE, PCE, OSFXSR, OSXMMEXCPT, PGE. */
export const CR4_GUEST_OWNED = 0x7_8en;

const HOST_CODE_SELECTOR = 0x10;
const HOST_DATA_SELECTOR = 0x18;
const HOST_TASK_SELECTOR = 0x40;

export interface VmcsSetup {
  capabilities: VmxCapabilities;
  vpid: number;
  eptPointer: bigint;
  msrBitmap: Hpa;
}

/** Fills the current VMCS. */
export function setUpVmcs(cpu: LogicalCpu, setup: VmcsSetup): void {
  const { vmx } = cpu;
  const { capabilities } = setup;
  const write = (field: number, value: bigint | number): void => {
    vmx.vmwrite(field, value);
  };

  write(Vmcs.PIN_BASED_CONTROLS, capabilities.pin);
  write(Vmcs.PRIMARY_PROCESSOR_CONTROLS, capabilities.primary);
  write(Vmcs.SECONDARY_PROCESSOR_CONTROLS, capabilities.secondary & ~SecondaryControl.pauseLoopExiting);
  // IA32_XSS is zero, so that no component can ask for an exit
  if ((capabilities.cpuidControls & SecondaryControl.enableXsaves) !== 0) write(Vmcs.XSS_EXITING_BITMAP, 0);
  write(Vmcs.VM_EXIT_CONTROLS, capabilities.exit & ~ExitControl.acknowledgeInterrupt);
  write(Vmcs.VM_ENTRY_CONTROLS, capabilities.entry);

  write(Vmcs.VPID, setup.vpid);
  write(Vmcs.EPT_POINTER, setup.eptPointer);
  write(Vmcs.MSR_BITMAP, setup.msrBitmap);
  write(Vmcs.VMCS_LINK_POINTER, 0xffff_ffff_ffff_ffffn);
  write(Vmcs.CR3_TARGET_COUNT, 0);
  write(Vmcs.VM_EXIT_MSR_STORE_COUNT, 0);
  write(Vmcs.VM_EXIT_MSR_LOAD_COUNT, 0);
  write(Vmcs.VM_ENTRY_MSR_LOAD_COUNT, 0);
  write(Vmcs.VM_ENTRY_INTERRUPTION_INFO, 0);
  write(Vmcs.PAGE_FAULT_ERROR_CODE_MASK, 0);
  write(Vmcs.PAGE_FAULT_ERROR_CODE_MATCH, 0);
  // Nothing is intercepted: with EPT the guest handles its own exceptions
  write(Vmcs.EXCEPTION_BITMAP, 0);
  write(Vmcs.CR0_GUEST_HOST_MASK, ~CR0_GUEST_OWNED & 0xffff_ffff_ffff_ffffn);
  write(Vmcs.CR4_GUEST_HOST_MASK, ~CR4_GUEST_OWNED & 0xffff_ffff_ffff_ffffn);

  // Host: 64-bit kernel. The hardware checks this state at entry and loads it at exit; JavaScript goes on in any case
  write(Vmcs.HOST_CR0, 0x8005_0033n | capabilities.cr0Fixed0);
  write(Vmcs.HOST_CR3, 0);
  write(Vmcs.HOST_CR4, cpu.cr4 | capabilities.cr4Fixed0 | 0x20n);
  for (const field of [Vmcs.HOST_DS_SELECTOR, Vmcs.HOST_ES_SELECTOR, Vmcs.HOST_FS_SELECTOR, Vmcs.HOST_GS_SELECTOR])
    write(field, 0);
  write(Vmcs.HOST_CS_SELECTOR, HOST_CODE_SELECTOR);
  write(Vmcs.HOST_SS_SELECTOR, HOST_DATA_SELECTOR);
  write(Vmcs.HOST_TR_SELECTOR, HOST_TASK_SELECTOR);
  for (const field of [Vmcs.HOST_FS_BASE, Vmcs.HOST_GS_BASE, Vmcs.HOST_TR_BASE, Vmcs.HOST_GDTR_BASE, Vmcs.HOST_IDTR_BASE]) {
    write(field, 0);
  }
  write(Vmcs.HOST_IA32_SYSENTER_CS, 0);
  write(Vmcs.HOST_IA32_SYSENTER_ESP, 0);
  write(Vmcs.HOST_IA32_SYSENTER_EIP, 0);
  write(Vmcs.HOST_RSP, 0);
  write(Vmcs.HOST_RIP, 0);
  write(Vmcs.HOST_IA32_EFER, 0xd01n);
  write(Vmcs.HOST_IA32_PAT, 0x0007_0406_0007_0406n);

  // State that no ioctl sets before the reset code below it does
  write(Vmcs.GUEST_IA32_DEBUGCTL, 0);
  write(Vmcs.GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
  write(Vmcs.GUEST_INTERRUPTIBILITY_STATE, 0);
  write(Vmcs.GUEST_ACTIVITY_STATE, 0);
  write(Vmcs.TSC_OFFSET, 0);
}

/** MSRs that the guest may read (r) and write (w) without an exit. */
const DIRECT_MSRS: readonly (readonly [number, "r" | "rw"])[] = [
  [0x10, "r"], // TSC
  [0x174, "rw"], // SYSENTER_CS
  [0x175, "rw"], // SYSENTER_ESP
  [0x176, "rw"], // SYSENTER_EIP
  [0xc000_0100, "rw"], // FS_BASE
  [0xc000_0101, "rw"], // GS_BASE
  [0xc000_0102, "rw"], // KERNEL_GS_BASE
];

/** Fills a page as MSR bitmap (SDM 3C, "MSR-Bitmap Address"): all exit but the ones above that the filter allows. */
export function fillMsrBitmap(page: Uint8Array, filter: MsrFilter | undefined): void {
  page.fill(0xff);
  for (const [msr, access] of DIRECT_MSRS) {
    const high = msr >= 0xc000_0000;
    const bit = msr & 0x1fff;
    const clear = (base: number): void => {
      page[base + (bit >> 3)]! &= ~(1 << (bit & 7));
    };
    if (filter?.allows(msr, false) !== false) clear(high ? 1024 : 0);
    if (access === "rw" && filter?.allows(msr, true) !== false) clear(high ? 3072 : 2048);
  }
}
