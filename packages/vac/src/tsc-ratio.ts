/** The TSC ratio MSR of one CPU, which whoever runs a guest sets. Source: AMD64 APM Vol. 2, TSC Ratio MSR. */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { CpuBlock, cpuBlock, type VacMemory } from "./layout.ts";
import type { OwnerId } from "./vac.ts";

const TSC_RATIO = 0xc000_0104;
/** 8.32 fixed point. */
const RATIO_1 = 1n << 32n;

export interface TscRatio {
  set(owner: OwnerId, ratio: bigint): boolean;
  /** Back to 1 where the ratio is the owner's, or anybody's. */
  reset(owner: OwnerId | undefined): void;
}

export function createTscRatio(memory: VacMemory, cpu: LogicalCpu): TscRatio {
  const { words, quads } = memory;
  const holder = (cpuBlock(cpu.id) + CpuBlock.tscRatioOwner) >> 2;
  const value = (cpuBlock(cpu.id) + CpuBlock.tscRatio) >> 3;
  const current = () => (words[holder] === 0 ? RATIO_1 : BigInt.asUintN(64, quads[value]));
  return {
    set(owner, ratio) {
      // Processors without the MSR run every guest at the host's frequency
      if (ratio !== current() && !cpu.wrmsr(TSC_RATIO, ratio)) return false;
      quads[value] = BigInt.asIntN(64, ratio);
      words[holder] = ratio === RATIO_1 ? 0 : owner;
      return true;
    },
    reset(owner) {
      if (words[holder] === 0 || (owner !== undefined && words[holder] !== owner)) return;
      if (!cpu.wrmsr(TSC_RATIO, RATIO_1)) throw new Error(`VAC: CPU ${cpu.id} refuses a TSC ratio of 1`);
      words[holder] = 0;
    },
  };
}
