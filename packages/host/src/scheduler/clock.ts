/** Kernel time on one CPU: everything derives from its TSC, so icount and wall runs take the same path. */
import type { LogicalCpu, MachineDescription } from "@mkvm/hw-x86";

/** CLOCK_REALTIME at power-on under icount: 2024-01-01 00:00 UTC. Fixed, so that a run repeats. */
const icountEpochMs = 1_704_067_200_000;

export class CpuClock {
  readonly isIcount: boolean;
  readonly #cpu: LogicalCpu;
  readonly #epochNs: bigint;
  readonly #nsPerTick: number;

  constructor(cpu: LogicalCpu, machine: MachineDescription) {
    this.#cpu = cpu;
    this.isIcount = machine.clock === "icount";
    this.#epochNs = BigInt(Math.trunc(this.isIcount ? icountEpochMs : machine.poweredOnMs)) * 1_000_000n;
    this.#nsPerTick = 1_000_000 / cpu.tscKhz;
  }

  monotonicNs(): number {
    return this.nsOf(this.#cpu.rdtsc());
  }

  realtimeNs(): bigint {
    return this.#epochNs + BigInt(this.monotonicNs());
  }

  nsOf(tsc: number): number {
    return Math.floor(tsc * this.#nsPerTick);
  }

  /** The first TSC at which `monotonicNs` is at least `ns`. */
  tscOf(ns: number): number {
    let tsc = Math.max(0, Math.floor(ns / this.#nsPerTick) - 1);
    while (this.nsOf(tsc) < ns) tsc++;
    return tsc;
  }
}
