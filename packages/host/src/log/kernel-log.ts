import type { LogEntry, LogLevel } from "../control/types.ts";

const capacity = 8192;

/** The kernel's log: the last entries of all CPUs and the control plane, in order of arrival. */
export class KernelLog {
  readonly #entries: LogEntry[] = [];
  readonly #listeners = new Set<(entry: LogEntry) => void>();
  readonly #startedMs: number;

  /** `startedMs`: milliseconds since the epoch, as `nowMs` gives them. */
  constructor(startedMs: number) {
    this.#startedMs = startedMs;
  }

  add(entry: LogEntry): void {
    if (this.#entries.length >= capacity) this.#entries.splice(0, capacity >> 2);
    this.#entries.push(entry);
    for (const listener of this.#listeners) listener(entry);
  }

  write(level: LogLevel, message: string): void {
    this.add({ timeUs: timeStampUs(this.#startedMs), level, source: "host", message });
  }

  entries(): LogEntry[] {
    return [...this.#entries];
  }

  /** Returns how to stop listening. */
  listen(listener: (entry: LogEntry) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

/** Milliseconds since the epoch on a clock that never steps back; comparable between threads of one process. */
export function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

export function timeStampUs(startedMs: number): number {
  return Math.round((nowMs() - startedMs) * 1000);
}

/** As dmesg prints it: "[    1.234567] kvm1: text". */
export function formatLogEntry(entry: LogEntry): string {
  const seconds = Math.max(0, entry.timeUs) / 1e6;
  const level = entry.level === "err" || entry.level === "warn" ? `${entry.level}: ` : "";
  return `[${seconds.toFixed(6).padStart(12)}] ${entry.source}: ${level}${entry.message}`;
}
