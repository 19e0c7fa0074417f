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
export { offeredCpuid, type SystemContext, systemIoctl } from "./api/system-ioctls.ts";
export { readUser, writeUser, writeUserBytes } from "./api/user-copy.ts";
export { vcpuStateIoctl } from "./api/vcpu-ioctls.ts";
export { type VmUnderControl, vmStateIoctl } from "./api/vm-state-ioctls.ts";
export { moveToCr0, moveToCr3, moveToCr4, setXcr } from "./guest/control-registers.ts";
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
export { handleHypercall } from "./guest/hypercall.ts";
export { hasInterrupt, InterruptFabric, takeInterrupt } from "./guest/interrupt-fabric.ts";
export { renewMasterClock, updateClockPage } from "./guest/kvmclock-msrs.ts";
export { completeMmio, handleMmio } from "./guest/mmio.ts";
export { guestRdmsr, guestTsc, guestWrmsr } from "./guest/msr-access.ts";
export { usesPdptrs } from "./guest/paging.ts";
export { completePortExit, handlePortExit, type PortExit } from "./guest/port-io.ts";
export { resetRegisters } from "./guest/reset-state.ts";
export { RunPage } from "./guest/run-page.ts";
export {
  defaultVmSettings,
  type ExitOutcome,
  type GuestMemory,
  type PendingPort,
  type PvState,
  type SignalMask,
  type VcpuParts,
  type VmClockState,
  type VmParts,
  type VmSettings,
} from "./guest/vcpu-parts.ts";
export { restoreVcpu, saveVcpu, VCPU_SECTIONS } from "./portable/vcpu-sections.ts";
export {
  applyShape,
  decodeDirtyLog,
  decodeShape,
  decodeSlots,
  type PortableSlot,
  RECEIVED_SECTIONS,
  restoreVmDevices,
  type ShapeValue,
  saveEarly,
  saveVm,
} from "./portable/vm-sections.ts";
export { type EptCapabilities, probeVmx, type VmxCapabilities } from "./vmx/capabilities.ts";
