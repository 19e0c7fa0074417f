/** What the VMX or SVM unit needs of the logical CPU around it. */

import type { Clock } from "./clock.ts";
import type { Cpu, CpuModel } from "./engine/cpu.ts";
import type { EngineControl } from "./engine/system-interface.ts";
import type { InterruptLines } from "./interrupt-lines.ts";
import type { MemoryBanks } from "./memory-banks.ts";
import type { CounterUnit } from "./performance/counter-unit.ts";
import type { MemoryBank } from "./physical-memory.ts";
import type { RootMsrs } from "./root-msrs.ts";
import type { FreedPages } from "./sanitizer/freed-pages.ts";
import type { TranslationTags } from "./translation-tags.ts";

export type GuestEngine = Cpu & EngineControl;

/** An engine with the names of the translations that it caches. */
export interface BankEngine {
  readonly bank: MemoryBank;
  readonly engine: GuestEngine;
  readonly tags: TranslationTags;
}

export interface RootCpu {
  readonly id: number;
  readonly model: CpuModel;
  readonly memory: MemoryBanks;
  readonly clock: Clock;
  readonly lines: InterruptLines;
  readonly msrs: RootMsrs;
  readonly counters: CounterUnit;
  readonly timerDeadline: number;
  readonly atGuestEntry: (() => void) | undefined;
  readonly freedPages: FreedPages;
  /** Vector of the most urgent interrupt that waits at TSC `now`, -1 when there is none. */
  waitingInterrupt(now: number): number;
  /** Acknowledges the most urgent pending interrupt; its vector. */
  takeInterrupt(): number;
  /** Takes an NMI in root mode; false when there was none. */
  takeNmi(): boolean;
  log(line: string): void;
  /** Turns to a bank: its engine, holding the CPU's registers. */
  turnTo(bank: MemoryBank): BankEngine;
  engines(): Iterable<BankEngine>;
  rdtsc(): number;
  retiredInstructions(): number;
}
