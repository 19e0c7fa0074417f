/** Bits of the VMX control fields. Source: Intel SDM Vol. 3C, VM-Execution Control Fields, VM-Exit and VM-Entry Control Fields. */

export const Pin = {
  externalInterruptExiting: 1 << 0,
  nmiExiting: 1 << 3,
  virtualNmis: 1 << 5,
  preemptionTimer: 1 << 6,
  processPostedInterrupts: 1 << 7,
} as const;

export const Primary = {
  interruptWindowExiting: 1 << 2,
  useTscOffsetting: 1 << 3,
  hltExiting: 1 << 7,
  invlpgExiting: 1 << 9,
  mwaitExiting: 1 << 10,
  rdpmcExiting: 1 << 11,
  rdtscExiting: 1 << 12,
  cr3LoadExiting: 1 << 15,
  cr3StoreExiting: 1 << 16,
  cr8LoadExiting: 1 << 19,
  cr8StoreExiting: 1 << 20,
  useTprShadow: 1 << 21,
  nmiWindowExiting: 1 << 22,
  movDrExiting: 1 << 23,
  unconditionalIoExiting: 1 << 24,
  useIoBitmaps: 1 << 25,
  monitorTrapFlag: 1 << 27,
  useMsrBitmaps: 1 << 28,
  monitorExiting: 1 << 29,
  pauseExiting: 1 << 30,
  activateSecondary: 1 << 31,
} as const;

export const Secondary = {
  virtualizeApicAccesses: 1 << 0,
  enableEpt: 1 << 1,
  descriptorTableExiting: 1 << 2,
  enableRdtscp: 1 << 3,
  virtualizeX2apicMode: 1 << 4,
  enableVpid: 1 << 5,
  wbinvdExiting: 1 << 6,
  unrestrictedGuest: 1 << 7,
  apicRegisterVirtualization: 1 << 8,
  virtualInterruptDelivery: 1 << 9,
  pauseLoopExiting: 1 << 10,
  rdrandExiting: 1 << 11,
  enableInvpcid: 1 << 12,
  rdseedExiting: 1 << 16,
  enablePml: 1 << 17,
  enableXsaves: 1 << 20,
  tscScaling: 1 << 25,
} as const;

export const ExitControl = {
  saveDebugControls: 1 << 2,
  hostAddressSpaceSize: 1 << 9,
  loadPerfGlobalCtrl: 1 << 12,
  acknowledgeInterrupt: 1 << 15,
  savePat: 1 << 18,
  loadPat: 1 << 19,
  saveEfer: 1 << 20,
  loadEfer: 1 << 21,
  savePreemptionTimer: 1 << 22,
} as const;

export const EntryControl = {
  loadDebugControls: 1 << 2,
  ia32eModeGuest: 1 << 9,
  loadPerfGlobalCtrl: 1 << 13,
  loadPat: 1 << 14,
  loadEfer: 1 << 15,
} as const;

/** Interruptibility-state field. */
export const Blocking = { bySti: 1, byMovSs: 2, bySmi: 4, byNmi: 8 } as const;

export const Activity = { active: 0, hlt: 1, shutdown: 2, waitForSipi: 3 } as const;

/** Interruption-information fields: bits 7:0 vector, 10:8 type. */
export const Interruption = { errorCodeValid: 1 << 11, nmiUnblocking: 1 << 12, valid: 1 << 31 } as const;

/** Basic exit reasons. Source: Intel SDM Vol. 3D, VMX Basic Exit Reasons. */
export const ExitReason = {
  exceptionOrNmi: 0,
  externalInterrupt: 1,
  tripleFault: 2,
  interruptWindow: 7,
  nmiWindow: 8,
  taskSwitch: 9,
  cpuid: 10,
  hlt: 12,
  invd: 13,
  invlpg: 14,
  rdpmc: 15,
  rdtsc: 16,
  vmcall: 18,
  vmclear: 19,
  vmlaunch: 20,
  vmptrld: 21,
  vmptrst: 22,
  vmread: 23,
  vmresume: 24,
  vmwrite: 25,
  vmxoff: 26,
  vmxon: 27,
  controlRegister: 28,
  moveDr: 29,
  io: 30,
  rdmsr: 31,
  wrmsr: 32,
  entryFailureGuestState: 33,
  entryFailureMsrLoad: 34,
  mwait: 36,
  monitorTrapFlag: 37,
  monitor: 39,
  pause: 40,
  tprBelowThreshold: 43,
  apicAccess: 44,
  virtualizedEoi: 45,
  gdtrIdtr: 46,
  ldtrTr: 47,
  eptViolation: 48,
  eptMisconfiguration: 49,
  invept: 50,
  rdtscp: 51,
  preemptionTimer: 52,
  invvpid: 53,
  wbinvd: 54,
  xsetbv: 55,
  apicWrite: 56,
  rdrand: 57,
  invpcid: 58,
  vmfunc: 59,
  rdseed: 61,
  xsaves: 63,
  xrstors: 64,
  pageModificationLogFull: 62,
} as const;

const exitReasonNames = new Map<number, string>(Object.entries(ExitReason).map(([name, reason]) => [reason, name]));

/** The name of a basic exit reason, as ExitReason has it; its number for one that this machine does not have. */
export function exitReasonName(reason: number): string {
  return exitReasonNames.get(reason) ?? String(reason);
}

/** Bit 31 of the exit reason: the VM entry failed. */
export const ENTRY_FAILURE = 0x8000_0000;

/** VM-instruction error numbers. Source: Intel SDM Vol. 3D, VM-Instruction Error Numbers. */
export const VmxError = {
  vmclearInvalidAddress: 2,
  vmclearVmxonPointer: 3,
  vmlaunchNotClear: 4,
  vmresumeNotLaunched: 5,
  entryInvalidControls: 7,
  entryInvalidHostState: 8,
  vmptrldInvalidAddress: 9,
  vmptrldVmxonPointer: 10,
  vmptrldWrongRevision: 11,
  unsupportedField: 12,
  readOnlyField: 13,
  vmxonInRootOperation: 15,
  invalidInveptInvvpidOperand: 28,
} as const;

/** Pending debug exceptions: B0 to B3 as DR6 has them, whether one of them is enabled, BS. */
export const PendingDebug = { breakpoints: 0xf, enabled: 1 << 12, singleStep: 1 << 14 } as const;
