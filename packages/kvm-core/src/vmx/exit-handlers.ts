/** What each VM exit means (SDM 3C, "VM Exits"): one handler a reason. */
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import { Gpr, Vector } from "../arch/registers.ts";
import { InterruptionInfo, InterruptionType } from "../arch/vmx-controls.ts";
import { BASIC_REASON_MASK, ENTRY_FAILED, VmxExitReason, vmxExitReasonName } from "../arch/vmx-exit-reasons.ts";
import { executeCpuid } from "../cpuid-table.ts";
import { setXcr } from "../guest/control-registers.ts";
import { cpl } from "../guest/guest-cpu.ts";
import { handleHypercall } from "../guest/hypercall.ts";
import { guestRdmsr, guestWrmsr } from "../guest/msr-access.ts";
import { handlePortExit } from "../guest/port-io.ts";
import type { ExitOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import { handleCrAccess } from "./cr-access.ts";
import { handleEptMisconfiguration, handleEptViolation } from "./ept-exits.ts";
import type { VmxExit, VmxExitHost } from "./exit.ts";

type Handler = (vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost) => ExitOutcome;
const LOW_32 = 0xffff_ffffn;

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

function skip(vcpu: VcpuParts, exit: VmxExit): ExitOutcome {
  vcpu.skip(exit.instructionLength);
  return "resume";
}
function generalProtection(vcpu: VcpuParts): ExitOutcome {
  vcpu.queueException(Vector.GP, 0);
  return "resume";
}
const undefinedOpcode: Handler = (vcpu) => {
  vcpu.queueException(Vector.UD);
  return "resume";
};

function edxEax(vcpu: VcpuParts): bigint {
  return (BigInt(vcpu.gpr32(Gpr.RDX)) << 32n) | BigInt(vcpu.gpr32(Gpr.RAX));
}

const handleCpuid: Handler = (vcpu, exit) => {
  const result = executeCpuid(vcpu.cpuid, vcpu, vcpu.gpr32(Gpr.RAX), vcpu.gpr32(Gpr.RCX));
  vcpu.setGpr32(Gpr.RAX, result.eax);
  vcpu.setGpr32(Gpr.RBX, result.ebx);
  vcpu.setGpr32(Gpr.RCX, result.ecx);
  vcpu.setGpr32(Gpr.RDX, result.edx);
  return skip(vcpu, exit);
};

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

const handleRdmsr: Handler = (vcpu, exit) => {
  const value = guestRdmsr(vcpu, vcpu.gpr32(Gpr.RCX));
  if (value === undefined) return generalProtection(vcpu);
  vcpu.setGpr(Gpr.RAX, value & LOW_32);
  vcpu.setGpr(Gpr.RDX, value >> 32n);
  return skip(vcpu, exit);
};

const handleWrmsr: Handler = (vcpu, exit) =>
  guestWrmsr(vcpu, vcpu.gpr32(Gpr.RCX), edxEax(vcpu)) ? skip(vcpu, exit) : generalProtection(vcpu);

const handleXsetbv: Handler = (vcpu, exit) =>
  cpl(vcpu) === 0 && setXcr(vcpu, vcpu.gpr32(Gpr.RCX), edxEax(vcpu)) ? skip(vcpu, exit) : generalProtection(vcpu);

const handleHlt: Handler = (vcpu, exit) => {
  vcpu.statistics.words[VcpuStat.halt_exits]!++;
  skip(vcpu, exit);
  return "halt";
};

const handleVmcall: Handler = (vcpu, exit) => {
  handleHypercall(vcpu);
  return skip(vcpu, exit);
};

const handleTripleFault: Handler = (vcpu) => {
  vcpu.run.exitReason = ExitReason.KVM_EXIT_SHUTDOWN;
  return "exit";
};

const handleExternalInterrupt: Handler = (vcpu, _exit, host) => {
  vcpu.statistics.words[VcpuStat.irq_exits]!++;
  host.hostInterrupt();
  return "resume";
};

const handleExceptionOrNmi: Handler = (vcpu, exit, host) => {
  const info = exit.interruptionInformation;
  const type = (info & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift;
  // NMIs of the host; the guest's exceptions are not intercepted
  if (type === InterruptionType.nmi) return "resume";
  return unexpectedExit(vcpu, exit, host);
};

const handleTaskSwitch: Handler = (vcpu, _exit, host) =>
  internalError(
    vcpu,
    host,
    InternalError.KVM_INTERNAL_ERROR_EMULATION,
    "hardware task switches (SDM 3A, Task Management) are not emulated",
    [],
  );

/** Without a PMU there is no counter to read. */
const handleRdpmc: Handler = (vcpu) => generalProtection(vcpu);

/** By basic exit reason. */
const HANDLERS: (Handler | undefined)[] = [];
const BY_REASON: readonly (readonly [number, Handler])[] = [
  [VmxExitReason.EXCEPTION_OR_NMI, handleExceptionOrNmi],
  [VmxExitReason.EXTERNAL_INTERRUPT, handleExternalInterrupt],
  [VmxExitReason.TRIPLE_FAULT, handleTripleFault],
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
  [VmxExitReason.TASK_SWITCH, handleTaskSwitch],
  [VmxExitReason.CPUID, handleCpuid],
  [VmxExitReason.HLT, handleHlt],
  [VmxExitReason.INVD, skip],
  [VmxExitReason.WBINVD, skip],
  [VmxExitReason.PAUSE, skip],
  // Not offered in CPUID; as Linux by default, no operation rather than #UD
  [VmxExitReason.MWAIT, skip],
  [VmxExitReason.MONITOR, skip],
  [VmxExitReason.RDPMC, handleRdpmc],
  [VmxExitReason.VMCALL, handleVmcall],
  [VmxExitReason.CR_ACCESS, handleCrAccess],
  [VmxExitReason.IO_INSTRUCTION, handleIo],
  [VmxExitReason.RDMSR, handleRdmsr],
  [VmxExitReason.WRMSR, handleWrmsr],
  [VmxExitReason.EPT_VIOLATION, handleEptViolation],
  [VmxExitReason.EPT_MISCONFIGURATION, handleEptMisconfiguration],
  [VmxExitReason.XSETBV, handleXsetbv],
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
