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
export {
  type CpuidEntry,
  type CpuidResult,
  type CpuidState,
  executeCpuid,
  findCpuid,
  type HardwareCpuid,
  KVM_CPUID_FEATURES,
  KVM_CPUID_SIGNATURE,
  KvmFeature,
  supportedCpuid,
} from "./cpuid-table.ts";
export { type GuestTranslation, type PagingState, translateGuest } from "./guest-paging.ts";
export type { EmulatedCpu, Emulation, GuestFault } from "./instruction-emulator/emulated-cpu.ts";
export { createMmioEmulator, type MmioEmulator } from "./instruction-emulator/mmio-emulator.ts";
export { DeliveryMode, deliverInterrupt, type InterruptMessage, Shorthand } from "./interrupt-message.ts";
export { createIoapic, type Ioapic, type IoapicHost, type IoapicSaved } from "./ioapic.ts";
export {
  createIrqRouting,
  defaultRoutes,
  type IrqRoute,
  type IrqRouting,
  irqchipRoute,
  MAX_IRQ_ROUTES,
} from "./irq-routing.ts";
export { createIrqchip, type Irqchip, type IrqchipHost } from "./irqchip.ts";
export {
  PVCLOCK_TIME_BYTES,
  PVCLOCK_WALL_CLOCK_BYTES,
  PvclockFlag,
  type PvclockTime,
  pvclockScale,
  readPvclock,
  writePvclockTime,
  writeWallClock,
} from "./kvmclock.ts";
export { createLapic, type Lapic, type LapicHost } from "./lapic.ts";
export * from "./modules.ts";
export { decodeMsi } from "./msi.ts";
export { createMsrStore, MSR_INDEX_LIST, type MsrStore } from "./msr-table.ts";
export { createPic, type Pic, type PicHost } from "./pic.ts";
export { createPit, type Pit, type PitHost } from "./pit.ts";
export { PIT_HZ } from "./pit-channel.ts";
export { type StringIo, stringIoCount, stringIoFinished, stringIoIn, stringIoOut } from "./string-io.ts";
