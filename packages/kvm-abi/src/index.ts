export { Errno, errnoName } from "./errno.ts";
export type {
  Clock,
  File,
  FileOperations,
  Hva,
  Kernel,
  KernelMemory,
  KernelModule,
  ModuleInstance,
  NewFile,
  ParameterSpec,
  ParameterValues,
  PhysicalAddress,
  Process,
  Scheduler,
  Task,
  Timer,
  UserMemory,
  WaitQueue,
} from "./module-contract.ts";
export type { Main, SystemCalls } from "./system-calls.ts";
export type { FileRole, IncomingVm, Section, SectionSupport, Transfer, VmDescription } from "./transfer.ts";
