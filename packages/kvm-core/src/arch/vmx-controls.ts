/** Bits of the VMX controls and of event and state fields. Source: Intel SDM Vol. 3C, VM-Execution Control Fields and VM-Entry Controls. */
export const PinControl = {
  externalInterruptExiting: 1 << 0,
  nmiExiting: 1 << 3,
  virtualNmis: 1 << 5,
  preemptionTimer: 1 << 6,
  postedInterrupts: 1 << 7,
} as const;

export const PrimaryControl = {
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
  tprShadow: 1 << 21,
  nmiWindowExiting: 1 << 22,
  movDrExiting: 1 << 23,
  unconditionalIoExiting: 1 << 24,
  useIoBitmaps: 1 << 25,
  monitorTrapFlag: 1 << 27,
  useMsrBitmaps: 1 << 28,
  monitorExiting: 1 << 29,
  pauseExiting: 1 << 30,
  activateSecondaryControls: 0x8000_0000,
} as const;

export const SecondaryControl = {
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
  enableVmFunctions: 1 << 13,
  vmcsShadowing: 1 << 14,
  rdseedExiting: 1 << 16,
  enablePml: 1 << 17,
  enableXsaves: 1 << 20,
  useTscScaling: 1 << 25,
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
  clearBndcfgs: 1 << 23,
} as const;

export const EntryControl = {
  loadDebugControls: 1 << 2,
  ia32eModeGuest: 1 << 9,
  entryToSmm: 1 << 10,
  loadPerfGlobalCtrl: 1 << 13,
  loadPat: 1 << 14,
  loadEfer: 1 << 15,
  loadBndcfgs: 1 << 16,
} as const;

/** Interruption-information fields: VM entry, VM exit, IDT vectoring. */
export const InterruptionInfo = {
  vectorMask: 0xff,
  typeMask: 0x700,
  typeShift: 8,
  errorCodeValid: 1 << 11,
  nmiUnblockingByIret: 1 << 12,
  valid: 0x8000_0000,
} as const;
export const InterruptionType = {
  externalInterrupt: 0,
  nmi: 2,
  hardwareException: 3,
  softwareInterrupt: 4,
  privilegedSoftwareException: 5,
  softwareException: 6,
  otherEvent: 7,
} as const;

export const Interruptibility = {
  blockingBySti: 1 << 0,
  blockingByMovSs: 1 << 1,
  blockingBySmi: 1 << 2,
  blockingByNmi: 1 << 3,
} as const;
export const ActivityState = { active: 0, hlt: 1, shutdown: 2, waitForSipi: 3 } as const;

/** Segment access rights as the VMCS has them. */
export const AccessRights = {
  typeMask: 0xf,
  s: 1 << 4,
  dplShift: 5,
  present: 1 << 7,
  avl: 1 << 12,
  l: 1 << 13,
  db: 1 << 14,
  g: 1 << 15,
  unusable: 1 << 16,
} as const;

/** Bits of an EPT entry and of the EPT pointer. */
export const EptEntry = {
  read: 1n,
  write: 2n,
  execute: 4n,
  memoryTypeShift: 3n,
  memoryTypeWb: 6n << 3n,
  ignorePat: 1n << 6n,
  largePage: 1n << 7n,
  accessed: 1n << 8n,
  dirty: 1n << 9n,
  addressMask: 0x000f_ffff_ffff_f000n,
} as const;
export const Eptp = { memoryTypeWb: 6n, walkLength4: 3n << 3n, accessedDirty: 1n << 6n } as const;

/** Exit qualification of an EPT violation. */
export const EptViolation = {
  read: 1 << 0,
  write: 1 << 1,
  fetch: 1 << 2,
  readable: 1 << 3,
  writable: 1 << 4,
  executable: 1 << 5,
  linearAddressValid: 1 << 7,
  /** Set: the access is to the translation of the linear address; clear: to a paging structure. */
  translation: 1 << 8,
  nmiUnblocking: 1 << 12,
} as const;

export const InveptType = { singleContext: 1, allContexts: 2 } as const;
export const InvvpidType = {
  individualAddress: 0,
  singleContext: 1,
  allContexts: 2,
  singleContextRetainingGlobals: 3,
} as const;
