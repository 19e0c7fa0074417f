/** What the generated interpreter imports, made for the engine of one bank. */
import type { Blocks } from "./blocks.ts";
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import { helperTable } from "./helper-table.ts";
import type { EngineImports } from "./interpreter/instance.ts";
import type { InterruptShadow } from "./interrupt-shadow.ts";
import type { RecordedFault } from "./recorded-fault.ts";
import type { RegionAccess } from "./region-access.ts";
import * as memory from "./system/memory-access.ts";
import { segmentSlow } from "./system/segmentation.ts";

const BUDGET = state.budget >>> 2;

type Helper = (a: number, b: number, c: number, d: number) => number;

/** By name, for rows that call them. */
export function helperImports(cpu: Cpu): Record<string, Helper> {
  const helpers: Record<string, Helper> = {};
  for (const [name, helper] of Object.entries(helperTable)) {
    helpers[name] = (a, b, c, d) => (helper(cpu, a, b, c, d) as number) | 0;
  }
  return helpers;
}

/** The seams of system-interface.ts and what generated code asks the engine itself. */
export function engineImports(
  cpu: Cpu,
  blocks: Blocks,
  shadow: InterruptShadow,
  fault: RecordedFault,
  region: RegionAccess,
): EngineImports {
  return {
    readSlow: (lo, hi, bytes) => memory.readSlow(cpu, lo, hi, bytes),
    writeSlow: (lo, hi, bytes) => memory.writeSlow(cpu, lo, hi, bytes),
    rmwSlow: (lo, hi, bytes) => memory.rmwSlow(cpu, lo, hi, bytes),
    rmwFinish: () => memory.rmwFinish(cpu),
    segmentSlow: (segment, lo, hi, bytes, isWrite) => segmentSlow(cpu, segment, lo, hi, bytes, isWrite !== 0),
    findBlock: () => (cpu.i32[BUDGET] <= 0 ? 0 : blocks.find()),
    raise: (vector, error) => fault.raiseFromRow(vector, error),
    undefinedInstruction: () => fault.undefinedInstruction(),
    divert: () => shadow.settleHelper(),
    hot: (header) => blocks.hot(header),
    regionRead: (lo, hi, bytes) => region.read(lo, hi, bytes),
    regionUpdate: (lo, hi, bytes) => region.update(lo, hi, bytes),
    regionWrite: (lo, hi, bytes) => region.write(lo, hi, bytes),
    regionResume: () => region.resume(),
  };
}
