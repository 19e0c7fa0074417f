/**
 * Translation on another thread: a region as it is sent there, and what comes back. The thread needs nothing of the bank: what it makes
 * depends on the records of the region's operations alone, and where those lie is in the region's layout (region-layout.ts).
 */
import { variants } from "../decoder/decoder.ts";
import type { Variant } from "../decoder/variant.ts";
import type { CodeRange } from "./code-range.ts";
import type { OperationRecord, Region, RegionBlock, RegionMode } from "./region.ts";
import { buildRegionModule, type RegionCode } from "./region-module.ts";

/** A region as plain data. Blocks and variants are numbers. */
export interface RegionRequest {
  readonly blocks: readonly (Omit<RegionBlock, "operations" | "successors"> & {
    readonly operations: readonly (Omit<OperationRecord, "variant"> & { readonly variant: number })[];
    readonly successors: readonly number[];
  })[];
  /** The first is the head. */
  readonly entries: readonly number[];
  readonly returnSites: readonly number[];
  readonly mode: RegionMode;
  readonly range: CodeRange | undefined;
}

/** The region's code, compiled; undefined when not even its first operation can be translated. */
export type RegionAnswer =
  | (Omit<RegionCode, "bytes"> & {
      readonly module: WebAssembly.Module;
      /** Length of the module. */
      readonly bytes: number;
      /** Host milliseconds that it took to make. */
      readonly milliseconds: number;
    })
  | undefined;

/** The way to the thread that translates, as a CPU's thread has it. */
export interface RegionThread {
  /** `answer` is called once, when the code is there. */
  request(region: RegionRequest, answer: (code: RegionAnswer) => void): void;
  /** Hands over what has been made since. Called often: it costs next to nothing where that is nothing. */
  poll(): void;
}

export function requestOf({ blocks, entries, returnSites, mode, range }: Region): RegionRequest {
  const numbers = new Map(blocks.map((block, number) => [block, number]));
  const numbersOf = (some: readonly RegionBlock[]): number[] => some.map((block) => numbers.get(block) as number);
  return {
    blocks: blocks.map(({ operations, successors, ...block }) => ({
      ...block,
      operations: operations.map(({ variant, ...operation }) => ({ ...operation, variant: variant.number })),
      successors: numbersOf(successors),
    })),
    entries: numbersOf(entries),
    returnSites: numbersOf(returnSites),
    mode,
    range,
  };
}

function regionOf(request: RegionRequest): Region {
  const blocks: RegionBlock[] = request.blocks.map((block) => ({
    ...block,
    operations: block.operations.map((operation) => ({ ...operation, variant: variants[operation.variant] as Variant })),
    successors: [],
  }));
  const blocksOf = (numbers: readonly number[]): RegionBlock[] => numbers.map((number) => blocks[number] as RegionBlock);
  request.blocks.forEach(({ successors }, number) => {
    (blocks[number] as RegionBlock).successors = blocksOf(successors);
  });
  const entries = blocksOf(request.entries) as [RegionBlock, ...RegionBlock[]];
  return {
    head: entries[0],
    blocks,
    entries,
    returnSites: blocksOf(request.returnSites),
    mode: request.mode,
    range: request.range,
  };
}

/** Translates a region that a CPU asked for. The thread needs no machine: `request` has all that there is to know. */
export function translateRegion(request: RegionRequest): RegionAnswer {
  return codeOf(regionOf(request));
}

/** Makes and compiles the code of a region. */
export function codeOf(region: Region): RegionAnswer {
  const started = performance.now();
  const code = buildRegionModule(region);
  if (code === undefined) return undefined;
  const { bytes, ...rest } = code;
  const module = new WebAssembly.Module(bytes);
  return { ...rest, module, bytes: bytes.length, milliseconds: performance.now() - started };
}
