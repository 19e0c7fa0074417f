export { Msr } from "./arch/msr-index.ts";
export { Cr0, Cr4, Efer, Gpr, PageFaultError, Rflags, SegmentRegister, Vector } from "./arch/registers.ts";
export { VmcsField } from "./arch/vmcs-fields.ts";
export {
  AccessRights,
  ActivityState,
  EntryControl,
  EptEntry,
  Eptp,
  EptViolation,
  ExitControl,
  Interruptibility,
  InterruptionInfo,
  InterruptionType,
  InveptType,
  InvvpidType,
  PinControl,
  PrimaryControl,
  SecondaryControl,
} from "./arch/vmx-controls.ts";
export { BASIC_REASON_MASK, ENTRY_FAILED, VmxExitReason, vmxExitReasonName } from "./arch/vmx-exit-reasons.ts";
