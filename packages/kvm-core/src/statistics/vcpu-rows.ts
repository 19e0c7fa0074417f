/** Statistics of a vCPU. The order is the layout of the data block, and only grows at its end: readers keep offsets over a move. */
import { VmxExitReason } from "../arch/vmx-exit-reasons.ts";
import { counter, flag, histogramNs, type Row, timeNs } from "./row.ts";

const NO_POLLING = { neverInV1: "it blocks at once" };
const NO_NESTING = { never: "there is no nested virtualization" };

const LINUX_ROWS = [
  counter("halt_successful_poll", "halts that ended while polling", NO_POLLING),
  counter("halt_attempted_poll", "halts that polled", NO_POLLING),
  counter("halt_poll_invalid", "polls that ended with nothing to do", { never: "on x86 every wake-up is valid" }),
  counter("halt_wakeup", "wake-ups of a blocked vCPU by an event"),
  timeNs("halt_poll_success_ns", "time polled in halts that ended while polling", NO_POLLING),
  timeNs("halt_poll_fail_ns", "time polled in halts that went on to block", NO_POLLING),
  timeNs("halt_wait_ns", "time blocked in halts"),
  histogramNs("halt_poll_success_hist", "halt_poll_success_ns by halt", NO_POLLING),
  histogramNs("halt_poll_fail_hist", "halt_poll_fail_ns by halt", NO_POLLING),
  histogramNs("halt_wait_hist", "halt_wait_ns by halt"),
  flag("blocking", "the vCPU is blocked: halted, or waiting for INIT or SIPI"),
  counter("pf_taken", "EPT violations"),
  counter("pf_fixed", "EPT violations that a mapping answered"),
  counter("pf_emulate", "EPT violations that are MMIO: the instruction is emulated"),
  counter("pf_spurious", "EPT violations at a page whose mapping allowed the access already"),
  counter("pf_fast", "EPT violations at a write-protected page that became writable again, also in pf_fixed"),
  counter("pf_mmio_spte_created", "entries that mark MMIO", { never: "MMIO is found by the slots, not marked in entries" }),
  counter("pf_guest", "page faults passed on to the guest", { never: "the guest takes its own page faults under EPT" }),
  counter("tlb_flush", "INVVPID: translations of guest-linear addresses dropped"),
  counter("invlpg", "INVLPG carried out for the guest", { never: "the guest carries out its own INVLPG under EPT" }),
  counter("exits", "VM exits"),
  counter("io_exits", "VM exits by IN, OUT, INS, OUTS"),
  counter("mmio_exits", "MMIO accesses handed to user space"),
  counter("signal_exits", "returns to user space for a signal"),
  counter("irq_window_exits", "VM exits when the guest became able to take an interrupt"),
  counter("nmi_window_exits", "VM exits when the guest became able to take an NMI"),
  counter("l1d_flush", "flushes of the first-level data cache before entry", {
    never: "works around an erratum (L1TF) that this hardware does not have",
  }),
  counter("halt_exits", "HLT"),
  counter("request_irq_exits", "returns to user space because it asked for an interrupt window"),
  counter("irq_exits", "VM exits by interrupts of the host"),
  counter("host_state_reload", "times that the host's state was put back on the CPU after the vCPU ran"),
  counter("fpu_reload", "times that the guest's FPU state was taken off the CPU"),
  counter("insn_emulation", "instructions emulated for MMIO"),
  counter("insn_emulation_fail", "instructions that the emulator does not know"),
  counter("hypercalls", "VMCALL"),
  counter("irq_injections", "interrupts injected, those that go in again included"),
  counter("nmi_injections", "NMIs injected, those that go in again included"),
  counter("req_event", "entries before which an event had asked to be looked at"),
  counter("nested_run", "entries into nested guests", NO_NESTING),
  counter("directed_yield_attempted", "PAUSEs of a vCPU that spins, where the VM has more than one"),
  counter("directed_yield_successful", "such PAUSEs at which it gave way, since others could run"),
  counter("preemption_reported", "slices that ended at an interrupt of the host, so between two guest instructions"),
  counter("preemption_other", "slices that ended at any other exit"),
  flag("guest_mode", "the vCPU runs a nested guest", NO_NESTING),
  counter("notify_window_exits", "VM exits after long stretches without an interrupt window", {
    never: "the hardware has no notify window",
  }),
] as const;

export type ExitName = Lowercase<keyof typeof VmxExitReason>;

/** Why an exit reason cannot come up: what would have to be on is off, in the controls of every version or in the hardware. */
const NEVER_EXITS: Partial<Record<ExitName, string>> = {
  exception_or_nmi: "exceptions are the guest's own, and the host has no NMIs",
  init_signal: "INIT between vCPUs is a matter of the module",
  sipi: "INIT and SIPI between vCPUs are a matter of the module",
  io_smi: "there is no SMM",
  other_smi: "there is no SMM",
  rsm: "there is no SMM",
  getsec: "CR4.SMXE cannot be set, so GETSEC is #UD",
  invlpg: "INVLPG does not exit",
  rdtsc: "RDTSC does not exit",
  vmfunc: "VMFUNC is #UD without its control",
  dr_access: "MOV DR does not exit",
  entry_failure_msr_loading: "no MSRs are loaded at entry",
  entry_failure_machine_check: "the hardware has no machine checks",
  monitor_trap_flag: "not used",
  tpr_below_threshold: "no version sets a threshold",
  gdtr_or_idtr_access: "descriptor tables do not exit",
  ldtr_or_tr_access: "descriptor tables do not exit",
  ept_misconfiguration: "no version writes such an entry",
  preemption_timer: "not used: the CPU's own timer ends slices",
  encls: "there is no SGX",
  xsaves: "there are no supervisor states",
  xrstors: "there are no supervisor states",
};

/** Those that version 2's vCPUs have alone. */
const NEVER_IN_V1: Partial<Record<ExitName, string>> = {
  apic_access: "it has the local APIC in software",
  virtualized_eoi: "it has the local APIC in software",
  apic_write: "it has the local APIC in software",
  pml_full: "it write-protects the pages that it logs",
};
function neverExits(name: ExitName): Pick<Row, "never" | "neverInV1"> {
  const never = NEVER_EXITS[name];
  if (never !== undefined) return { never };
  const neverInV1 = NEVER_IN_V1[name];
  return neverInV1 === undefined ? {} : { neverInV1 };
}

export const EXIT_REASONS = Object.entries(VmxExitReason).map(([name, reason]) => ({
  name: name.toLowerCase() as ExitName,
  reason,
}));

function exitRow({ name }: { name: ExitName }): Row<`exit_${ExitName}`> {
  const options = { source: "mkvm", ...neverExits(name) } as const;
  return counter(`exit_${name}`, `VM exits with basic reason ${name.toUpperCase()}`, options);
}
function exitLatencyRow({ name }: { name: ExitName }): Row<`exit_latency_${ExitName}`> {
  return histogramNs(`exit_latency_${name}`, `from such an exit to the next entry; with exit_latency=1`, {
    source: "mkvm",
    ...neverExits(name),
  });
}

export const VCPU_ROWS = [
  ...LINUX_ROWS,
  counter("guest_instructions", "instructions that the vCPU has retired in guest mode", { source: "mkvm" }),
  histogramNs(
    "interrupt_latency",
    "from the moment that the local APIC or the 8259 has a new request to its injection; with exit_latency=1",
    { source: "mkvm" },
  ),
  counter("exit_unknown", "VM exits with a basic reason that has no name", {
    source: "mkvm",
    never: "the hardware gives none",
  }),
  ...EXIT_REASONS.map(exitRow),
  ...EXIT_REASONS.map(exitLatencyRow),
] as const;
