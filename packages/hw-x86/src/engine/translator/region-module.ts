/** From a region to the WebAssembly module of its function. */
import { REGION_SUPPORT, type RegionSupport } from "../interpreter/region-support.ts";
import { FunctionBuilder, ModuleBuilder, signature } from "../wasm/module-builder.ts";
import { analyseFlow } from "./flow.ts";
import type { Region } from "./region.ts";
import { RegionFunction } from "./region-function.ts";
import { LAYOUT_IMPORT, RegionLayout } from "./region-layout.ts";
import { unrollLoops } from "./unrolling.ts";

/** What profilers call the function of a region: engine-statistics.ts tells it from the interpreter's by this name. */
export const REGION_FUNCTION = "region";

export interface RegionCode {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Guest instructions translated. */
  readonly instructions: number;
  /** Headers of the blocks that it can be entered at. */
  readonly entries: readonly number[];
  /** What LAYOUT_IMPORT is to lead to. */
  readonly layout: readonly number[];
}

/** Undefined when not even the first operation can be translated. */
export function buildRegionModule(region: Region): RegionCode | undefined {
  const module = new ModuleBuilder();
  const support = new ImportsOnDemand(module) as ImportsOnDemand & RegionSupport;
  const layout = new RegionLayout(module.importGlobal(LAYOUT_IMPORT.module, LAYOUT_IMPORT.name, "i32"));
  const fn = new FunctionBuilder(module.typeIndex(signature(["i32"], ["i32"])), 1);
  unrollLoops(region.blocks);
  const flow = analyseFlow(region.entries);
  const instructions = new RegionFunction(region, flow, fn, support, layout).emit();
  if (instructions === 0) return undefined;
  const index = module.add(fn);
  module.export("region", index);
  module.name(index, REGION_FUNCTION);
  const entries = flow.entries.map(({ header }) => header);
  return { bytes: module.encode(), instructions, entries, layout: layout.words };
}

/** Instantiating costs for each import, so that a region has only those that it asks for. */
class ImportsOnDemand {
  readonly #module: ModuleBuilder;

  constructor(module: ModuleBuilder) {
    this.#module = module;
  }
  readonly #indexes: Partial<Record<keyof RegionSupport, number>> = {};
  index(name: keyof RegionSupport): number {
    this.#indexes[name] ??= this.#module.importFunction("support", name, REGION_SUPPORT[name]);
    return this.#indexes[name];
  }
}
for (const name of Object.keys(REGION_SUPPORT) as (keyof RegionSupport)[]) {
  Object.defineProperty(ImportsOnDemand.prototype, name, {
    get(this: ImportsOnDemand) {
      return this.index(name);
    },
  });
}
