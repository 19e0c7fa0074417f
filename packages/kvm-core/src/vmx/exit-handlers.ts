/** What each VM exit means (SDM 3C, "VM Exits"): one handler a reason. */
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import { Rflags, Vector } from "../arch/registers.ts";
import { EptViolation, InterruptionInfo, InterruptionType } from "../arch/vmx-controls.ts";
import { BASIC_REASON_MASK, ENTRY_FAILED, VmxExitReason, vmxExitReasonName } from "../arch/vmx-exit-reasons.ts";
import {
  exitCpuid,
  exitHlt,
  exitHypercall,
  exitShutdown,
  exitXsetbv,
  finish,
  generalProtection,
  undefinedOpcode,
} from "../guest/instruction-exits.ts";
import { handleMmio } from "../guest/mmio.ts";
import { exitRdmsr, exitWrmsr } from "../guest/msr-exits.ts";
import { handlePortExit } from "../guest/port-io.ts";
import { exitPause } from "../guest/spinning.ts";
import { exitTaskSwitch } from "../guest/task-switch.ts";
import type { ExitOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import { handleCrAccess } from "./cr-access.ts";
import { handleEptMisconfiguration, handleEptViolation } from "./ept-exits.ts";
import type { VmxExit, VmxExitHost } from "./exit.ts";

type Handler = (vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost) => ExitOutcome;

/** Decides what an exit needs; kvm_run is filled in where the answer is "exit". */
export function handleVmxExit(vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost): ExitOutcome {
  const { reason } = exit;
  vcpu.statistics.exited(reason & BASIC_REASON_MASK);
  if ((reason & ENTRY_FAILED) !== 0) return failedEntry(vcpu, exit, host);
  const basic = reason & BASIC_REASON_MASK;
  const handler = HANDLERS[basic];
  if (handler === undefined) return unexpectedExit(vcpu, exit, host);
  // An exit in the middle of an event's delivery that is not a memory access cannot be resumed from
  if ((exit.vectoringInformation & InterruptionInfo.valid) !== 0 && !DURING_DELIVERY.has(basic)) {
    return deliveryError(vcpu, exit, host);
  }
  return handler(vcpu, exit, host);
}

const DURING_DELIVERY: ReadonlySet<number> = new Set([
  VmxExitReason.EXCEPTION_OR_NMI,
  VmxExitReason.PML_FULL,
  VmxExitReason.EXTERNAL_INTERRUPT,
  VmxExitReason.EPT_VIOLATION,
  VmxExitReason.EPT_MISCONFIGURATION,
  VmxExitReason.TASK_SWITCH,
  VmxExitReason.TRIPLE_FAULT,
]);

function failedEntry(vcpu: VcpuParts, { reason }: VmxExit, host: VmxExitHost): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: VM entry failed, ${vmxExitReasonName(reason)}: ${host.dump()}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_FAIL_ENTRY;
  vcpu.run.setFailEntry(reason, host.cpuId);
  return "exit";
}

function internalError(
  vcpu: VcpuParts,
  host: VmxExitHost,
  suberror: number,
  why: string,
  data: readonly bigint[],
): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: ${why}: ${host.dump()}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
  vcpu.run.setInternalError(suberror, data);
  return "exit";
}

function unexpectedExit(vcpu: VcpuParts, { reason }: VmxExit, host: VmxExitHost): ExitOutcome {
  const data = [BigInt(reason), BigInt(host.cpuId)];
  const why = `unexpected VM exit ${vmxExitReasonName(reason)}`;
  return internalError(vcpu, host, InternalError.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, why, data);
}

export function deliveryError(vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost): ExitOutcome {
  const data = [
    BigInt(exit.vectoringInformation),
    BigInt(exit.reason),
    BigInt(exit.qualification),
    BigInt(exit.guestPhysicalAddress),
  ];
  const why = `${vmxExitReasonName(exit.reason)} while an event was being delivered`;
  return internalError(vcpu, host, InternalError.KVM_INTERNAL_ERROR_DELIVERY_EV, why, data);
}

const skip: Handler = (vcpu, exit) => finish(vcpu, true, exit.instructionLength);

const handleIo: Handler = (vcpu, exit) => {
  vcpu.statistics.words[VcpuStat.io_exits]!++;
  const qualification = exit.qualification;
  const isIn = (qualification & 8) !== 0;
  let string: { rep: boolean; addressSize: number; segment: number } | undefined;
  if ((qualification & 0x10) !== 0) {
    const information = exit.instructionInformation;
    string = {
      rep: (qualification & 0x20) !== 0,
      addressSize: 2 << ((information >>> 7) & 7),
      segment: isIn ? 0 : (information >>> 15) & 7,
    };
  }
  return handlePortExit(vcpu, {
    isIn,
    size: (qualification & 7) + 1,
    port: (qualification >>> 16) & 0xffff,
    string,
    instructionLength: exit.instructionLength,
  });
};

const handleExternalInterrupt: Handler = (vcpu, _exit, host) => {
  vcpu.statistics.words[VcpuStat.irq_exits]!++;
  host.hostInterrupt();
  return "resume";
};

const handleExceptionOrNmi: Handler = (vcpu, exit, host) => {
  const info = exit.interruptionInformation;
  const type = (info & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift;
  // NMIs of the host; of the guest's exceptions a debugger's are intercepted
  if (type === InterruptionType.nmi) {
    host.hostNmi();
    return "resume";
  }
  const vector = info & InterruptionInfo.vectorMask;
  const vectoring = (exit.vectoringInformation & InterruptionInfo.valid) !== 0;
  // As for EPT violations: IRET runs again
  if (!vectoring && (info & InterruptionInfo.nmiUnblockingByIret) !== 0) vcpu.nmiMasked = true;
  if (vector === Vector.DB && vcpu.debug.takesTraps) return vcpu.debug.exit(vcpu, vector, BigInt(exit.qualification));
  if (vector === Vector.BP && vcpu.debug.takesBreakpoints) return vcpu.debug.exit(vcpu, vector, 0n);
  return unexpectedExit(vcpu, exit, host);
};

const handleDrAccess: Handler = (vcpu, { qualification, instructionLength }) =>
  vcpu.debug.move(vcpu, qualification & 7, (qualification >>> 8) & 15, (qualification & 0x10) !== 0, instructionLength);

const TASK_SWITCH_SOURCES = ["call", "iret", "jmp", "gate"] as const;
const handleTaskSwitch: Handler = (vcpu, { qualification, instructionLength, vectoringInformation }) => {
  const source = TASK_SWITCH_SOURCES[qualification >>> 30]!;
  const isEvent = source === "gate" && (vectoringInformation & InterruptionInfo.valid) !== 0;
  const event = isEvent
    ? eventOf((vectoringInformation & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift)
    : undefined;
  return exitTaskSwitch(vcpu, {
    // As the exit saved it
    resumes: (vcpu.rflags & Rflags.RF) !== 0n,
    selector: qualification & 0xffff,
    source,
    event,
    errorCode: event === "exception" ? vcpu.events().exception?.errorCode : undefined,
    instructionLength: event === undefined || event === "software" ? instructionLength : 0,
  });
};
function eventOf(type: number): "software" | "exception" | "interrupt" | "nmi" {
  if (type === InterruptionType.nmi) return "nmi";
  if (type === InterruptionType.externalInterrupt) return "interrupt";
  return type === InterruptionType.hardwareException ? "exception" : "software";
}

const handleLogFull: Handler = (vcpu, { qualification, vectoringInformation }) => {
  // As for EPT violations: IRET runs again
  const vectoring = (vectoringInformation & InterruptionInfo.valid) !== 0;
  if (!vectoring && (qualification & EptViolation.nmiUnblocking) !== 0) vcpu.nmiMasked = true;
  return "resume";
};

/** By basic exit reason. */
const HANDLERS: (Handler | undefined)[] = [];
const BY_REASON: readonly (readonly [number, Handler])[] = [
  [VmxExitReason.EXCEPTION_OR_NMI, handleExceptionOrNmi],
  [VmxExitReason.EXTERNAL_INTERRUPT, handleExternalInterrupt],
  [VmxExitReason.TRIPLE_FAULT, exitShutdown],
  [
    VmxExitReason.INTERRUPT_WINDOW,
    (vcpu, _exit, host) => {
      vcpu.statistics.words[VcpuStat.irq_window_exits]!++;
      host.closeInterruptWindow();
      return "resume";
    },
  ],
  [
    VmxExitReason.NMI_WINDOW,
    (vcpu, _exit, host) => {
      vcpu.statistics.words[VcpuStat.nmi_window_exits]!++;
      host.closeNmiWindow();
      return "resume";
    },
  ],
  // The log is emptied on every exit
  [VmxExitReason.PML_FULL, handleLogFull],
  [VmxExitReason.TASK_SWITCH, handleTaskSwitch],
  [VmxExitReason.CPUID, (vcpu, exit) => exitCpuid(vcpu, exit.instructionLength)],
  [VmxExitReason.HLT, (vcpu, exit) => exitHlt(vcpu, exit.instructionLength)],
  [VmxExitReason.INVD, skip],
  [VmxExitReason.WBINVD, skip],
  [VmxExitReason.PAUSE, (vcpu, exit) => exitPause(vcpu, exit.instructionLength)],
  // Not offered in CPUID; as Linux by default, no operation rather than #UD
  [VmxExitReason.MWAIT, skip],
  [VmxExitReason.MONITOR, skip],
  // Without a PMU there is no counter to read
  [VmxExitReason.RDPMC, generalProtection],
  [VmxExitReason.VMCALL, (vcpu, exit) => exitHypercall(vcpu, exit.instructionLength)],
  [VmxExitReason.CR_ACCESS, handleCrAccess],
  [VmxExitReason.DR_ACCESS, handleDrAccess],
  [VmxExitReason.IO_INSTRUCTION, handleIo],
  [VmxExitReason.RDMSR, (vcpu, exit) => exitRdmsr(vcpu, exit.instructionLength)],
  [VmxExitReason.WRMSR, (vcpu, exit) => exitWrmsr(vcpu, exit.instructionLength)],
  [VmxExitReason.EPT_VIOLATION, handleEptViolation],
  [VmxExitReason.EPT_MISCONFIGURATION, handleEptMisconfiguration],
  [VmxExitReason.XSETBV, (vcpu, exit) => exitXsetbv(vcpu, exit.instructionLength)],
  // Where the local APIC is virtualized: accesses that software makes, and what writes and EOIs leave to it
  [VmxExitReason.APIC_ACCESS, (vcpu) => handleMmio(vcpu)],
  [
    VmxExitReason.VIRTUALIZED_EOI,
    (vcpu, exit) => {
      vcpu.lapic?.interruptEnded(exit.qualification & 0xff);
      return "resume";
    },
  ],
  [
    VmxExitReason.APIC_WRITE,
    (vcpu, exit) => {
      vcpu.lapic?.registerWritten(exit.qualification & 0xfff);
      return "resume";
    },
  ],
  // Where the guest's CPUID has none
  [VmxExitReason.RDRAND, undefinedOpcode],
  [VmxExitReason.RDSEED, undefinedOpcode],
  // There is no nested virtualization
  ...[
    VmxExitReason.VMCLEAR,
    VmxExitReason.VMLAUNCH,
    VmxExitReason.VMPTRLD,
    VmxExitReason.VMPTRST,
    VmxExitReason.VMREAD,
    VmxExitReason.VMRESUME,
    VmxExitReason.VMWRITE,
    VmxExitReason.VMXOFF,
    VmxExitReason.VMXON,
    VmxExitReason.INVEPT,
    VmxExitReason.INVVPID,
    VmxExitReason.VMFUNC,
    VmxExitReason.GETSEC,
    VmxExitReason.ENCLS,
  ].map((reason): [number, Handler] => [reason, undefinedOpcode]),
];
for (const [reason, handler] of BY_REASON) HANDLERS[reason] = handler;
