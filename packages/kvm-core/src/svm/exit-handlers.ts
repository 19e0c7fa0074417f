/** What each #VMEXIT means (AMD64 APM Vol. 2, SVM Intercept Exit Codes): one handler a code. */
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import { Vector } from "../arch/registers.ts";
import { SvmExitCode, svmExitCodeName } from "../arch/svm-exit-codes.ts";
import { NestedPageFault, SvmEvent } from "../arch/vmcb-layout.ts";
import { VmxExitReason } from "../arch/vmx-exit-reasons.ts";
import {
  exitCpuid,
  exitHlt,
  exitHypercall,
  exitMoveFromCr,
  exitMoveToCr,
  exitShutdown,
  exitXsetbv,
  finish,
  generalProtection,
  undefinedOpcode,
} from "../guest/instruction-exits.ts";
import { settleMemoryFault } from "../guest/memory-fault.ts";
import { handleMmio } from "../guest/mmio.ts";
import { exitRdmsr, exitWrmsr } from "../guest/msr-exits.ts";
import { handlePortExit } from "../guest/port-io.ts";
import { exitPause } from "../guest/spinning.ts";
import { exitTaskSwitch } from "../guest/task-switch.ts";
import type { ExitOutcome, FaultOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";

/** A #VMEXIT as the VMCB tells of it. */
export interface SvmExit {
  /** Low word of EXITCODE. */
  readonly code: number;
  /** Low words of EXITINFO1 and EXITINTINFO. */
  readonly info1: number;
  readonly interruptInfo: number;
  /** EXITINFO2. */
  readonly info2: number;
  /** From RIP to nRIP. */
  readonly instructionLength: number;
}

/** What the handlers ask of the version. */
export interface SvmExitHost {
  readonly cpuId: number;
  /** Nested page fault: maps what is to be mapped. */
  memoryFault(guestPhysicalAddress: number, write: boolean): FaultOutcome;
  closeInterruptWindow(): void;
  /** IRET is about to end the blocking of NMIs. */
  interruptReturn(): void;
  /** #DB: true when it is the guest's, and not a step over such an IRET alone. */
  stepped(): boolean;
  hostInterrupt(): void;
  dump(): string;
}

type Handler = (vcpu: VcpuParts, exit: SvmExit, host: SvmExitHost) => ExitOutcome;

export function handleSvmExit(vcpu: VcpuParts, exit: SvmExit, host: SvmExitHost): ExitOutcome {
  const { code } = exit;
  vcpu.statistics.exited(COUNTED_AS.get(code) ?? NO_REASON);
  if (code === SvmExitCode.INVALID) return failedEntry(vcpu, host);
  const handler = HANDLERS.get(code);
  if (handler === undefined) return unexpectedExit(vcpu, exit, host);
  // An exit in the middle of an event's delivery that is not a memory access cannot be resumed from
  if ((exit.interruptInfo & SvmEvent.valid) !== 0 && !DURING_DELIVERY.has(code)) return deliveryError(vcpu, exit, host);
  return handler(vcpu, exit, host);
}

const DURING_DELIVERY: ReadonlySet<number> = new Set([
  SvmExitCode.INTR,
  SvmExitCode.NMI,
  SvmExitCode.NPF,
  SvmExitCode.TASK_SWITCH,
  SvmExitCode.SHUTDOWN,
  SvmExitCode.EXCEPTION_DB,
  SvmExitCode.EXCEPTION_BP,
]);

function failedEntry(vcpu: VcpuParts, host: SvmExitHost): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: VMRUN does not take the VMCB: ${host.dump()}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_FAIL_ENTRY;
  vcpu.run.setFailEntry(SvmExitCode.INVALID, host.cpuId);
  return "exit";
}
function internalError(vcpu: VcpuParts, host: SvmExitHost, error: number, why: string, data: readonly bigint[]): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: ${why}: ${host.dump()}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
  vcpu.run.setInternalError(error, data);
  return "exit";
}
function unexpectedExit(vcpu: VcpuParts, { code }: SvmExit, host: SvmExitHost): ExitOutcome {
  const data = [BigInt(code), BigInt(host.cpuId)];
  const why = `unexpected #VMEXIT ${svmExitCodeName(code)}`;
  return internalError(vcpu, host, InternalError.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, why, data);
}
function deliveryError(vcpu: VcpuParts, exit: SvmExit, host: SvmExitHost): ExitOutcome {
  const data = [exit.interruptInfo >>> 0, exit.code, exit.info1 >>> 0, exit.info2].map(BigInt);
  const why = `${svmExitCodeName(exit.code)} while an event was being delivered`;
  return internalError(vcpu, host, InternalError.KVM_INTERNAL_ERROR_DELIVERY_EV, why, data);
}

const skip: Handler = (vcpu, exit) => finish(vcpu, true, exit.instructionLength);

const handleIo: Handler = (vcpu, exit) => {
  vcpu.statistics.words[VcpuStat.io_exits]!++;
  const { info1 } = exit;
  const isIn = (info1 & 1) !== 0;
  const isString = (info1 & 4) !== 0;
  // A16, A32, A64 in bits 9:7; the segment of OUTS in bits 12:10; sizes 8, 16, 32 in bits 6:4
  const string = {
    rep: (info1 & 8) !== 0,
    addressSize: 2 * ((info1 >>> 7) & 7),
    segment: isIn ? 0 : (info1 >>> 10) & 7,
  };
  return handlePortExit(vcpu, {
    isIn,
    size: (info1 >>> 4) & 7,
    port: info1 >>> 16,
    string: isString ? string : undefined,
    instructionLength: exit.instructionLength,
  });
};

const handleNestedPageFault: Handler = (vcpu, exit, host) => {
  const settled = settleMemoryFault(vcpu, host.memoryFault(exit.info2, (exit.info1 & NestedPageFault.write) !== 0));
  if (settled !== undefined) return settled;
  if ((exit.interruptInfo & SvmEvent.valid) !== 0) return deliveryError(vcpu, exit, host);
  return handleMmio(vcpu);
};

const SINGLE_STEP = 1n << 14n;
const DEBUG_REGISTERS = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const moveDr =
  (number: number, isRead: boolean): Handler =>
  (vcpu, exit) =>
    vcpu.debug.move(vcpu, number, exit.info1 & 15, isRead, exit.instructionLength);

/** High word of EXITINFO2 of a task switch. */
const TaskSwitch = { iret: 1 << 4, jump: 1 << 6, hasErrorCode: 1 << 12, resumes: 1 << 16 } as const;
const handleTaskSwitch: Handler = (vcpu, { info1, info2, interruptInfo, instructionLength }) => {
  const kind = Math.floor(info2 / 0x1_0000_0000);
  const isEvent = (interruptInfo & SvmEvent.valid) !== 0;
  const source = (kind & TaskSwitch.iret) !== 0 ? "iret" : (kind & TaskSwitch.jump) !== 0 ? "jmp" : isEvent ? "gate" : "call";
  const event = source === "gate" ? eventOf(interruptInfo) : undefined;
  return exitTaskSwitch(vcpu, {
    selector: info1 & 0xffff,
    source,
    event,
    resumes: (kind & TaskSwitch.resumes) !== 0,
    errorCode: event === "exception" && (kind & TaskSwitch.hasErrorCode) !== 0 ? info2 % 0x1_0000_0000 : undefined,
    instructionLength: event === undefined || event === "software" ? instructionLength : 0,
  });
};
function eventOf(interruptInfo: number): "software" | "exception" | "interrupt" | "nmi" {
  const vector = interruptInfo & SvmEvent.vectorMask;
  switch ((interruptInfo & SvmEvent.typeMask) >>> SvmEvent.typeShift) {
    case SvmEvent.interrupt:
      return "interrupt";
    case SvmEvent.nmi:
      return "nmi";
    case SvmEvent.exception:
      return vector === Vector.BP || vector === Vector.OF ? "software" : "exception";
    default:
      return "software";
  }
}

const register = (exit: SvmExit): number => exit.info1 & 15;

/** Handlers, with the VMX exit reason that statistics count them under. */
const ROWS: readonly (readonly [number, number, Handler])[] = [
  [SvmExitCode.READ_CR8, VmxExitReason.CR_ACCESS, (v, exit) => exitMoveFromCr(v, 8, register(exit), exit.instructionLength)],
  [SvmExitCode.WRITE_CR8, VmxExitReason.CR_ACCESS, (v, exit) => exitMoveToCr(v, 8, register(exit), exit.instructionLength)],
  [SvmExitCode.WRITE_CR4, VmxExitReason.CR_ACCESS, (v, exit) => exitMoveToCr(v, 4, register(exit), exit.instructionLength)],
  [
    SvmExitCode.EXCEPTION_DB,
    VmxExitReason.EXCEPTION_OR_NMI,
    (vcpu, _exit, host) => {
      const isGuests = host.stepped();
      if (isGuests && vcpu.debug.takesTraps) return vcpu.debug.exit(vcpu, Vector.DB, vcpu.debugRegister(6));
      if (isGuests) vcpu.queueException(Vector.DB, undefined, SINGLE_STEP);
      return "resume";
    },
  ],
  [
    SvmExitCode.EXCEPTION_BP,
    VmxExitReason.EXCEPTION_OR_NMI,
    (vcpu, exit, host) =>
      vcpu.debug.takesBreakpoints ? vcpu.debug.exit(vcpu, Vector.BP, 0n) : unexpectedExit(vcpu, exit, host),
  ],
  ...DEBUG_REGISTERS.flatMap((number): [number, number, Handler][] => [
    [SvmExitCode.READ_DR0 + number, VmxExitReason.DR_ACCESS, moveDr(number, true)],
    [SvmExitCode.WRITE_DR0 + number, VmxExitReason.DR_ACCESS, moveDr(number, false)],
  ]),
  [
    SvmExitCode.INTR,
    VmxExitReason.EXTERNAL_INTERRUPT,
    (vcpu, _exit, host) => {
      vcpu.statistics.words[VcpuStat.irq_exits]!++;
      host.hostInterrupt();
      return "resume";
    },
  ],
  // NMIs of the host, which STGI has let through
  [SvmExitCode.NMI, VmxExitReason.EXCEPTION_OR_NMI, () => "resume"],
  [
    SvmExitCode.VINTR,
    VmxExitReason.INTERRUPT_WINDOW,
    (vcpu, _exit, host) => {
      vcpu.statistics.words[VcpuStat.irq_window_exits]!++;
      host.closeInterruptWindow();
      return "resume";
    },
  ],
  [
    SvmExitCode.IRET,
    VmxExitReason.NMI_WINDOW,
    (vcpu, _exit, host) => {
      vcpu.statistics.words[VcpuStat.nmi_window_exits]!++;
      host.interruptReturn();
      return "resume";
    },
  ],
  // Without a PMU there is no counter to read
  [SvmExitCode.RDPMC, VmxExitReason.RDPMC, generalProtection],
  [SvmExitCode.CPUID, VmxExitReason.CPUID, (vcpu, exit) => exitCpuid(vcpu, exit.instructionLength)],
  [SvmExitCode.INVD, VmxExitReason.INVD, skip],
  [SvmExitCode.PAUSE, VmxExitReason.PAUSE, (vcpu, exit) => exitPause(vcpu, exit.instructionLength)],
  [SvmExitCode.HLT, VmxExitReason.HLT, (vcpu, exit) => exitHlt(vcpu, exit.instructionLength)],
  [SvmExitCode.IOIO, VmxExitReason.IO_INSTRUCTION, handleIo],
  [
    SvmExitCode.MSR,
    VmxExitReason.RDMSR,
    (vcpu, exit) => (exit.info1 & 1 ? exitWrmsr : exitRdmsr)(vcpu, exit.instructionLength),
  ],
  [SvmExitCode.TASK_SWITCH, VmxExitReason.TASK_SWITCH, handleTaskSwitch],
  [SvmExitCode.SHUTDOWN, VmxExitReason.TRIPLE_FAULT, exitShutdown],
  [SvmExitCode.VMMCALL, VmxExitReason.VMCALL, (vcpu, exit) => exitHypercall(vcpu, exit.instructionLength)],
  [SvmExitCode.WBINVD, VmxExitReason.WBINVD, skip],
  // Not offered in CPUID; as Linux by default, no operation rather than #UD
  [SvmExitCode.MONITOR, VmxExitReason.MONITOR, skip],
  [SvmExitCode.MWAIT, VmxExitReason.MWAIT, skip],
  [SvmExitCode.XSETBV, VmxExitReason.XSETBV, (vcpu, exit) => exitXsetbv(vcpu, exit.instructionLength)],
  [SvmExitCode.NPF, VmxExitReason.EPT_VIOLATION, handleNestedPageFault],
  // Where the guest's CPUID has none
  [SvmExitCode.RDTSCP, VmxExitReason.RDTSCP, undefinedOpcode],
  [SvmExitCode.INVPCID, VmxExitReason.INVPCID, undefinedOpcode],
  // There is no nested virtualization
  ...[
    SvmExitCode.INVLPGA,
    SvmExitCode.VMRUN,
    SvmExitCode.VMLOAD,
    SvmExitCode.VMSAVE,
    SvmExitCode.STGI,
    SvmExitCode.CLGI,
    SvmExitCode.SKINIT,
  ].map((code): [number, number, Handler] => [code, VmxExitReason.VMLAUNCH, undefinedOpcode]),
];
const HANDLERS = new Map(ROWS.map(([code, , handler]) => [code, handler]));
const COUNTED_AS = new Map<number, number>([
  ...ROWS.map(([code, reason]): [number, number] => [code, reason]),
  [SvmExitCode.INVALID, VmxExitReason.ENTRY_FAILURE_GUEST_STATE],
]);
/** Beyond what has a name. */
const NO_REASON = 127;
