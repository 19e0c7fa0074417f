/** What the versions build on besides the device models: ioctl plumbing, exits, and the portable state. */
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
export { slotMemory } from "./api/slot-memory.ts";
export type { SystemContext } from "./api/system-ioctls.ts";
export { acceptApicEvents } from "./guest/apic-events.ts";
export { resetFxsave } from "./guest/fpu-state.ts";
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
export { hasInterrupt, InterruptFabric, takeInterrupt } from "./guest/interrupt-fabric.ts";
export { renewMasterClock, updateClockPage } from "./guest/kvmclock-msrs.ts";
export { completeMmio } from "./guest/mmio.ts";
export { guestTsc } from "./guest/msr-access.ts";
export { usesPdptrs } from "./guest/paging.ts";
export { completePortExit } from "./guest/port-io.ts";
export { resetRegisters } from "./guest/reset-state.ts";
export { RunPage } from "./guest/run-page.ts";
export {
  defaultVmSettings,
  type ExitOutcome,
  type FaultOutcome,
  type GuestMemory,
  type PendingPort,
  type PvState,
  type SignalMask,
  type VcpuParts,
  type VmClockState,
  type VmParts,
  type VmSettings,
} from "./guest/vcpu-parts.ts";
export type { PortableSlot, ShapeValue } from "./portable/vm-sections.ts";
export { sameRegion, type TransferableVm, type TransferHost, VmTransfer } from "./portable/vm-transfer.ts";
export type { EptCapabilities, VmxCapabilities } from "./vmx/capabilities.ts";
export type { VmxExit, VmxExitHost } from "./vmx/exit.ts";
export { handleVmxExit } from "./vmx/exit-handlers.ts";
export { claimVac, USER_RETURN_MSRS, type VacClaim } from "./vmx/vac-claim.ts";
export { dumpVmcs } from "./vmx/vmcs-dump.ts";
export { CR0_GUEST_OWNED, CR4_GUEST_OWNED, fillMsrBitmap, setUpVmcs, type VmcsSetup } from "./vmx/vmcs-setup.ts";
