/** What the engine of a CPU did for each process, and where its thread's time went while one wants to know. */
import type { EngineReport, TimePart } from "../control/types.ts";
import { timeParts } from "../control/types.ts";
import type { KernelProcess } from "../processes/process.ts";
import type { CpuKernel } from "./cpu-kernel.ts";
import { ThreadProfile } from "./thread-profile.ts";
import type { ProfileSources } from "./time-parts.ts";

export class EngineAccounts {
  readonly #kernel: CpuKernel;
  /** Runs while a process wants it: how many do. */
  #profile: ThreadProfile | undefined;
  #profiled = 0;
  /** Entries of all programs that ever ran. */
  readonly programs = new Set<string>();

  constructor(kernel: CpuKernel) {
    this.#kernel = kernel;
  }

  /** Samples for a process until `close`. */
  open(process: KernelProcess): void {
    this.#profile ??= new ThreadProfile(() => this.#sources());
    process.profiled = this.#profile.times();
    this.#profiled++;
  }

  close(process: KernelProcess): void {
    if (!process.profiled || --this.#profiled > 0) return;
    this.#profile?.stop();
    this.#profile = undefined;
  }

  /** Null for a process whose guest has not run. */
  report(process: KernelProcess): EngineReport | null {
    const { cpu } = this.#kernel;
    const statistics = cpu.engineStatistics(process.bank);
    if (!statistics) return null;
    const report: EngineReport = {
      pid: process.pid,
      seconds: (Date.now() - process.startedMs) / 1000,
      retiredInstructions: cpu.retiredInstructions() - process.startRetired,
      ...statistics,
    };
    const before = process.profiled;
    const now = this.#profile?.times();
    if (before && now) {
      const spent = (part: TimePart): number => Math.round((now.get(part) ?? 0) - (before.get(part) ?? 0));
      report.timeMs = Object.fromEntries(timeParts.map((part) => [part, spent(part)])) as Record<TimePart, number>;
    }
    return report;
  }

  #sources(): ProfileSources {
    return {
      hardware: import.meta.resolve("@mkvm/hw-x86"),
      kernel: [new URL("..", import.meta.url).href, import.meta.resolve("@mkvm/vac")],
      modules: this.#kernel.modules.urls(),
      programs: [...this.programs],
    };
  }
}
