export { type CapabilityContext, checkExtension, MAX_VCPU_ID } from "./api/capabilities.ts";
export {
  checkMemoryRegion,
  MEM_LOG_DIRTY_PAGES,
  MEM_READONLY,
  type MemoryRegion,
  PAGE_BYTES,
  type RawMemoryRegion,
  type RegionChange,
  SlotTable,
} from "./api/memory-region.ts";
export { type ManagedVcpu, type ManagedVm, ModuleFiles } from "./api/module-files.ts";
export { slotMemory, watchSlots } from "./api/slot-memory.ts";
export type { SystemContext } from "./api/system-ioctls.ts";
export { Msr } from "./arch/msr-index.ts";
export { Cr0, Cr4, Efer, Gpr, PageFaultError, Rflags, SegmentRegister, Vector } from "./arch/registers.ts";
export { SvmExitCode, svmExitCodeName } from "./arch/svm-exit-codes.ts";
export { VmcbControl, VmcbSave } from "./arch/vmcb-layout.ts";
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
export { acceptApicEvents } from "./guest/apic-events.ts";
export { resetXsave } from "./guest/fpu-state.ts";
export {
  combineExceptions,
  cpl,
  type DescriptorTableState,
  type EventState,
  type ExceptionEvent,
  exceptionHasErrorCode,
  type GuestCpu,
  in64BitMode,
  type SegmentState,
  SystemSegment,
} from "./guest/guest-cpu.ts";
export { type DebugIntercepts, GuestDebug } from "./guest/guest-debug.ts";
export { hasInterrupt, hasPicInterrupt, InterruptFabric, takeInterrupt } from "./guest/interrupt-fabric.ts";
export { Ioeventfds } from "./guest/ioeventfds.ts";
export { renewMasterClock, updateClockPage } from "./guest/kvmclock-msrs.ts";
export { guestTsc } from "./guest/msr-access.ts";
export { MsrFilter, type MsrFilterRange } from "./guest/msr-filter.ts";
export { readPdptrs, usesPdptrs } from "./guest/paging.ts";
export { resetRegisters } from "./guest/reset-state.ts";
export { RunPage } from "./guest/run-page.ts";
export { pauseExits, yieldsOnPause } from "./guest/spinning.ts";
export { storeValidRegs, takeDirtyRegs } from "./guest/sync-regs.ts";
export { completeUserExit } from "./guest/user-exits.ts";
export {
  defaultVmSettings,
  type ExitOutcome,
  type FaultOutcome,
  type GuestMemory,
  type PendingMsr,
  type PendingPort,
  type PvState,
  type SignalMask,
  type VcpuParts,
  type VmClockState,
  type VmParts,
  type VmSettings,
} from "./guest/vcpu-parts.ts";
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
export { createLapic, type Lapic, type LapicHost, X2APIC_READABLE } from "./lapic.ts";
export { decodeMsi } from "./msi.ts";
export { createMsrStore, MSR_INDEX_LIST, type MsrStore } from "./msr-table.ts";
export { createPic, type Pic, type PicHost } from "./pic.ts";
export { createPit, type Pit, type PitHost } from "./pit.ts";
export { PIT_HZ } from "./pit-channel.ts";
export type { PortableSlot, ShapeValue } from "./portable/vm-sections.ts";
export { sameRegion, type TransferableVm, type TransferHost, VmTransfer } from "./portable/vm-transfer.ts";
export { HISTOGRAM_BUCKETS, type Row, type StatisticKind, type StatisticUnit } from "./statistics/row.ts";
export { histogramBucket, Statistics } from "./statistics/statistics.ts";
export { type StatisticsTable, statisticsTable } from "./statistics/table.ts";
export { PIC_REQUEST, VCPU_TABLE, VcpuCounters, VcpuStat } from "./statistics/vcpu-statistics.ts";
export { VM_TABLE, VmCounters, VmStat } from "./statistics/vm-statistics.ts";
export { type StringIo, stringIoCount, stringIoFinished, stringIoIn, stringIoOut } from "./string-io.ts";
export type { SvmCapabilities } from "./svm/capabilities.ts";
export { interceptByCpuid } from "./svm/cpuid-intercepts.ts";
export { handleSvmExit, type SvmExit, type SvmExitHost } from "./svm/exit-handlers.ts";
export { SvmStructures } from "./svm/svm-structures.ts";
export { type CutShort, type SvmInjection, SvmVcpu, type SvmVcpuSetup } from "./svm/svm-vcpu.ts";
export { setUpVmcb, type VmcbSetup } from "./svm/vmcb-setup.ts";
export { claimVac, type VacClaim, type VendorClaim } from "./vac-claim.ts";
export type { EptCapabilities, VmxCapabilities } from "./vmx/capabilities.ts";
export { followCpuid } from "./vmx/cpuid-controls.ts";
export type { VmxExit, VmxExitHost } from "./vmx/exit.ts";
export { handleVmxExit } from "./vmx/exit-handlers.ts";
export { dumpVmcs } from "./vmx/vmcs-dump.ts";
export { CR0_GUEST_OWNED, CR4_GUEST_OWNED, fillMsrBitmap, setUpVmcs, type VmcsSetup } from "./vmx/vmcs-setup.ts";
