/** What a vCPU counts, with the clock readings behind its latencies. */
import type { Clock } from "@mkvm/kvm-abi";
import { VmxExitReason } from "../arch/vmx-exit-reasons.ts";
import { Statistics } from "./statistics.ts";
import { statisticsTable } from "./table.ts";
import { EXIT_REASONS, VCPU_ROWS } from "./vcpu-rows.ts";

export const VCPU_TABLE = statisticsTable<(typeof VCPU_ROWS)[number]["name"]>(VCPU_ROWS);
/** Place of each statistic of a vCPU in `words`. */
export const VcpuStat = VCPU_TABLE.word;

/** By basic exit reason, a power of two of them: place of its counter, and of its latency's first bucket. */
const REASONS = 128;
const EXIT_WORD = new Uint16Array(REASONS).fill(VcpuStat.exit_unknown);
const EXIT_LATENCY_WORD = new Uint16Array(REASONS);
for (const { name, reason } of EXIT_REASONS) {
  EXIT_WORD[reason] = VcpuStat[`exit_${name}`];
  EXIT_LATENCY_WORD[reason] = VcpuStat[`exit_latency_${name}`];
}

/** What each exit, or each one to user space, touches, as plain constants: a look into VcpuStat would cost as much as the increment. */
const EXITS = VcpuStat.exits;
const REQ_EVENT = VcpuStat.req_event;
const GUEST_INSTRUCTIONS = VcpuStat.guest_instructions;
const HOST_STATE_RELOAD = VcpuStat.host_state_reload;
const FPU_RELOAD = VcpuStat.fpu_reload;

/** Stands for the 8259 among the vectors whose requests are timed. */
export const PIC_REQUEST = 256;
const NOT_STAMPED = -1;

export class VcpuCounters extends Statistics {
  readonly #clock: Clock;
  /** When each vector was requested (monotonic ns); undefined: latencies are not taken. */
  readonly #requestedNs: Float64Array | undefined;
  #exitedNs = NOT_STAMPED;
  #lastReason = 0;
  #eventRequested = false;
  #retiredBefore = 0;

  /** `latency`: the module's parameter exit_latency, without which no exit reads the clock. */
  constructor(pid: number, vcpu: number, clock: Clock, latency: boolean) {
    super(VCPU_TABLE, `kvm-${pid}/vcpu-${vcpu}`);
    this.#clock = clock;
    if (latency) this.#requestedNs = new Float64Array(PIC_REQUEST + 1).fill(NOT_STAMPED);
  }

  // Exits

  /** A VM exit with this basic reason. */
  exited(reason: number): void {
    const known = reason < REASONS ? reason : REASONS - 1;
    const { words } = this;
    words[EXITS]!++;
    words[EXIT_WORD[known]!]!++;
    this.#lastReason = known;
    if (this.#requestedNs !== undefined) this.#exitedNs = this.#clock.monotonicNs();
  }
  /** The next thing is VM entry. */
  entering(): void {
    if (this.#eventRequested) {
      this.#eventRequested = false;
      this.words[REQ_EVENT]!++;
    }
    if (this.#exitedNs !== NOT_STAMPED) this.#measureExit();
  }
  #measureExit(): void {
    const word = EXIT_LATENCY_WORD[this.#lastReason]!;
    if (word !== 0) this.addTime(word, this.#clock.monotonicNs() - this.#exitedNs);
    this.#exitedNs = NOT_STAMPED;
  }

  // On and off the CPU

  /** The vCPU's state is on the CPU now. `retired`: the CPU's count of guest instructions. */
  loaded(retired: number): void {
    this.#retiredBefore = retired;
  }
  /** It is off again, with FPU and MSRs. */
  put(retired: number): void {
    const { words } = this;
    words[GUEST_INSTRUCTIONS]! += retired - this.#retiredBefore;
    words[HOST_STATE_RELOAD]!++;
    words[FPU_RELOAD]!++;
  }
  /** Others get the CPU though the guest had more to do. */
  preempted(): void {
    const between = this.#lastReason === VmxExitReason.EXTERNAL_INTERRUPT;
    this.words[between ? VcpuStat.preemption_reported : VcpuStat.preemption_other]!++;
  }

  // Waiting

  /** The vCPU blocks; give the result to `unblocked`. */
  blocked(): number {
    this.words[VcpuStat.blocking] = 1;
    return this.#clock.monotonicNs();
  }
  /** `halted`: it was HLT that made it wait. */
  unblocked(sinceNs: number, halted: boolean): void {
    this.words[VcpuStat.blocking] = 0;
    if (!halted) return;
    const ns = this.#clock.monotonicNs() - sinceNs;
    this.words[VcpuStat.halt_wait_ns]! += ns;
    this.addTime(VcpuStat.halt_wait_hist, ns);
  }
  /** A halted vCPU has looked for events for so long. */
  polled(ns: number, success: boolean): void {
    this.words[VcpuStat.halt_attempted_poll]!++;
    if (success) this.words[VcpuStat.halt_successful_poll]!++;
    this.words[success ? VcpuStat.halt_poll_success_ns : VcpuStat.halt_poll_fail_ns]! += ns;
    this.addTime(success ? VcpuStat.halt_poll_success_hist : VcpuStat.halt_poll_fail_hist, ns);
  }
  /** Something happened that the vCPU may wait for. */
  kicked(): void {
    this.#eventRequested = true;
    if (this.words[VcpuStat.blocking] === 0) return;
    // The first event ends the wait; those that come before the vCPU's turn do not end it again
    this.words[VcpuStat.blocking] = 0;
    this.words[VcpuStat.halt_wakeup]!++;
  }

  // Interrupts

  /** The local APIC has accepted a vector that was not pending, or the 8259 has raised its output (PIC_REQUEST). */
  interruptRequested(vector: number): void {
    if (this.#requestedNs !== undefined) this.#requestedNs[vector] = this.#clock.monotonicNs();
  }
  /** It goes into the guest. */
  interruptTaken(vector: number): void {
    const requested = this.#requestedNs;
    if (requested === undefined || requested[vector] === NOT_STAMPED) return;
    this.addTime(VcpuStat.interrupt_latency, this.#clock.monotonicNs() - requested[vector]!);
    requested[vector] = NOT_STAMPED;
  }
}
