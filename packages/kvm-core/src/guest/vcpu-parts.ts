/**
 * A vCPU and its VM as unchanged code sees them: the parts that every version has, however it lays them out. The versions' own
 * classes implement these interfaces.
 */
import type { Clock, Process } from "@mkvm/kvm-abi";
import type { CpuidEntry } from "../cpuid-table.ts";
import type { MmioEmulator } from "../instruction-emulator/mmio-emulator.ts";
import type { Irqchip } from "../irqchip.ts";
import type { Lapic } from "../lapic.ts";
import type { MsrStore } from "../msr-table.ts";
import type { Pit } from "../pit.ts";
import type { VcpuCounters } from "../statistics/vcpu-statistics.ts";
import type { VmCounters } from "../statistics/vm-statistics.ts";
import type { GuestCpu } from "./guest-cpu.ts";
import type { DebugIntercepts, GuestDebug } from "./guest-debug.ts";
import type { Ioeventfds } from "./ioeventfds.ts";
import type { MsrFilter } from "./msr-filter.ts";
import type { RunPage } from "./run-page.ts";

/** What a handler decided: "resume" the guest; "exit" to user space with kvm_run filled in; "halt" (the vCPU waits for an event);
 *  "pause" (it spins, and somebody else may have a better use for the CPU); or a negative errno for KVM_RUN. */
export type ExitOutcome = "resume" | "exit" | "halt" | "pause" | number;

/**
 * Outcome of an EPT violation. Enter again: mapped, made writable again where it was mapped, or there already. MMIO: no memory
 * there, or a write to a read-only slot. Or a negative errno.
 */
export type FaultOutcome = "mapped" | "unprotected" | "spurious" | "no-slot" | "read-only" | number;

/** Guest memory by guest-physical address, within one page. */
export interface GuestMemory {
  /** A copy; undefined where no slot is. */
  read(gpa: number, length: number): Uint8Array | undefined;
  /** false where no writable slot is. Marks the page dirty. */
  write(gpa: number, bytes: Uint8Array): boolean;
}

/** kvmclock of a VM: guest time is host monotonic time plus `offsetNs`; pages extrapolate from the master pair. */
export interface VmClockState {
  offsetNs: bigint;
  masterMonotonicNs: bigint;
  masterTsc: bigint;
}

/** Settings of a VM by ioctls, which cross in section vm.shape. */
export interface VmSettings {
  tssAddress: number;
  identityMapAddress: number;
  bootCpuId: number;
  splitIrqchip: boolean;
  pitConfigFlags: number;
  exceptionPayload: boolean;
  tripleFaultEvent: boolean;
  mmuPages: number;
  /** MsrExitReason: refusals of RDMSR and WRMSR that go to user space. */
  msrExitReasons: number;
  /** undefined: all is allowed. */
  msrFilter: MsrFilter | undefined;
}
export function defaultVmSettings(): VmSettings {
  return {
    tssAddress: 0,
    identityMapAddress: 0,
    bootCpuId: 0,
    splitIrqchip: false,
    pitConfigFlags: 0,
    exceptionPayload: false,
    tripleFaultEvent: false,
    mmuPages: 0,
    msrExitReasons: 0,
    msrFilter: undefined,
  };
}

export interface VmParts {
  readonly process: Process;
  readonly clock: Clock;
  readonly memory: GuestMemory;
  readonly ioeventfds: Ioeventfds;
  readonly irqchip: Irqchip | undefined;
  readonly pit: Pit | undefined;
  readonly clockState: VmClockState;
  readonly settings: VmSettings;
  readonly statistics: VmCounters;
  /** kvmclock is offered (module parameter). */
  readonly kvmclock: boolean;
  /** Bits of a guest-physical address. */
  readonly physicalBits: number;
  readonly tscKhz: number;
  /** State components of XCR0 that the processor has (CPUID leaf 0xd). */
  readonly supportedXcr0: bigint;
  vcpus(): readonly VcpuParts[];
  hostTsc(): number;
  log(level: "err" | "warn" | "info" | "debug", message: string): void;
  /** True the first time that `key` is asked for: for messages that are logged once. */
  firstTime(key: string): boolean;
}

/** A port access that is at user space. Data is in the run pages. */
export interface PendingPort {
  isIn: boolean;
  size: number;
  port: number;
  count: number;
  /** String forms; undefined for IN and OUT. */
  string: { rep: boolean; addressSize: number; segment: number } | undefined;
  rip: bigint;
  /** RIP moves by this at completion; 0: it does not. */
  instructionLength: number;
}

/** An RDMSR or WRMSR that is at user space. Data is in kvm_run. */
export interface PendingMsr {
  readonly isWrite: boolean;
  readonly index: number;
  readonly instructionLength: number;
}

/** Paravirtual interfaces that the guest has set up. */
export interface PvState {
  systemTime: bigint;
  wallClock: bigint;
  /** The MSRs were written by their old numbers. */
  legacy: boolean;
  /** PvclockFlag bits to show at the next update. */
  flags: number;
}

export interface SignalMask {
  set: bigint | undefined;
}

export interface VcpuParts extends GuestCpu {
  readonly vm: VmParts;
  readonly lapic: Lapic | undefined;
  readonly msrs: MsrStore;
  cpuid: readonly CpuidEntry[];
  readonly run: RunPage;
  readonly emulator: MmioEmulator;
  readonly statistics: VcpuCounters;
  /** KVM_SET_GUEST_DEBUG. */
  readonly debug: GuestDebug;
  /** What exits for a debugger from the next entry on. */
  interceptDebug(wanted: DebugIntercepts): void;
  pendingPort: PendingPort | undefined;
  pendingMsr: PendingMsr | undefined;
  readonly pv: PvState;
  tscAdjust: bigint;
  /** MpState */
  mpState: number;
  signalMask: SignalMask;
  /** IA32_APIC_BASE and CR8 of a vCPU without an in-kernel APIC. */
  userApicBase: bigint;
  userCr8: number;
  /** Moves past the instruction that exited: RIP by `length` bytes, shadow cleared, single-step trap noted. */
  skip(length: number): void;
  /** A pvclock page must be written before the guest runs again. */
  requestClockUpdate(): void;
  /** Such a request is open. */
  readonly clockUpdateRequested: boolean;
  /** Translations of linear addresses are void. */
  requestTlbFlush(): void;
  /** Something the vCPU may wait for has happened. */
  kick(): void;
  /** Brings PDPTEs, features and such in step after CPUID or special registers were set. */
  cpuidChanged(): void;
  /** Takes the vCPU to the state after INIT (or power-on). */
  reset(kind: "power-on" | "init"): void;
}
