/** What a region is made of: blocks that jump to each other, and where their code goes. */
import type { Variant } from "../decoder/variant.ts";
import type { REGION_SUPPORT } from "../interpreter/region-support.ts";
import type { Label } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";
import type { CodeRange } from "./code-range.ts";
import type { Facts } from "./facts.ts";
import type { PlaceCache } from "./place-cache.ts";
import type { RegionLayout } from "./region-layout.ts";
import type { VectorRegisters } from "./vector-registers.ts";

/** Default operand size of CS; 64: 64-bit mode. */
export type CodeSize = 16 | 32 | 64;

/** An operation record, read. Field names as in operation.ts. */
export interface OperationRecord {
  /** Bank offset of the record. */
  readonly at: number;
  readonly variant: Variant;
  readonly length: number;
  readonly scale: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly base: number;
  readonly index: number;
  readonly segment: number;
  readonly ripOffset: number;
  readonly displacement: number;
  readonly addressSize: number;
  /** Unsigned 64 bits. */
  readonly immediate: bigint;
}

/** How a block ends. Targets are offsets from the start of the head's page, in bytes; they may lie outside of it. */
export type Ending =
  | { kind: "jump"; target: number }
  | { kind: "branch"; taken: number; next: number }
  | { kind: "call"; target: number; returnsTo: number }
  | { kind: "return" }
  /** `returnsTo`: behind a call. `expected`: where it probably goes. */
  | { kind: "indirect"; returnsTo: number | undefined; expected: number | undefined }
  /** The rest is the interpreter's, from that operation on. */
  | { kind: "interpreter"; at: number }
  /** Goes to the successor whose number is in the local `entry`. */
  | { kind: "dispatch" };

export interface RegionBlock {
  readonly header: number;
  /** Distance of its linear address from the start of the head's page, in bytes. */
  readonly offset: number;
  /** Bank offset of the page that it lies in. */
  readonly page: number;
  /** Instructions, and what entering costs. */
  readonly count: number;
  readonly operations: readonly OperationRecord[];
  readonly ending: Ending;
  /** Blocks of the region that it can go to; see flow.ts. */
  successors: RegionBlock[];
}

/** Distance of the block's page from the head's, by address: one page of memory may be mapped at two. */
export const pageOf = ({ offset }: Pick<RegionBlock, "offset">): number => offset & ~4095;

export interface Region {
  readonly head: RegionBlock;
  readonly blocks: readonly RegionBlock[];
  /** Blocks at which it is to be entered, the head first. */
  readonly entries: readonly [RegionBlock, ...RegionBlock[]];
  /** Blocks behind calls whose target is in the region too. */
  readonly returnSites: readonly RegionBlock[];
  readonly mode: RegionMode;
  /** What RIP must be able to reach; undefined where segments are flat. */
  readonly range: CodeRange | undefined;
}

/** What the processor's mode is where a region is made. It runs in no other. */
export interface RegionMode {
  readonly codeSize: CodeSize;
  /** As `state.stackMask`. */
  readonly stackMask: bigint;
}

/** Locals and labels of a region's function, shared by all of its operations. */
export interface RegionFrame {
  readonly fn: FunctionBuilder;
  readonly support: Readonly<Record<keyof typeof REGION_SUPPORT, number>>;
  readonly layout: RegionLayout;
  readonly codeSize: CodeSize;
  /** As in the region. */
  readonly range: CodeRange | undefined;
  readonly stackMask: bigint;
  /** Locals of the general registers. */
  readonly gpr: readonly number[];
  readonly vectors: VectorRegisters;
  /** What is known where code is being emitted. */
  readonly facts: Facts;
  /** RIP of the start of the head's page; outside flat segments it may be below 0. */
  readonly base: number;
  /** Where execution goes on after an exit, when `next` is 0; else `next` is an operation of the block `header`. */
  readonly rip: number;
  readonly next: number;
  readonly header: number;
  readonly budget: number;
  /** Flags where paths with different ones have met: see flag-kinds.ts. */
  readonly flagKind: number;
  readonly flagFirst: number;
  readonly flagSecond: number;
  readonly flagResult: number;
  readonly flagCarry: number;
  readonly flagOverflow: number;
  /** Operands of the last operation that wrote flags, as far as they are in no register: see flag-state.ts. */
  readonly pinFirst: number;
  readonly pinSecond: number;
  readonly pinResult: number;
  readonly pinCarry: number;
  readonly pinOverflow: number;
  /** Result of the condition that ends a block. */
  readonly condition: number;
  /** Number of the entry that the dispatching block, if there is one, goes to. */
  readonly entry: number;
  /** i32, by number of the general register: the bit that it is made of, where it is a mask; see facts.ts. */
  readonly spreadBits: number[];
  /** Translations remembered. */
  readonly places: PlaceCache;
  /** Leaves the region: as `rip` and `next` say; because a miss returned 0. */
  exit: Label;
  bail: Label;
  /** Registers that the region reads or writes, and writes, by bit. */
  usedRegisters: number;
  /** It is entered with SSE instructions enabled only. */
  usesSse: boolean;
  /** It is entered with VEX-encoded vector instructions enabled only. */
  usesAvx: boolean;
  /** It is entered with this `stackMask` only. */
  usesStackMask: boolean;
  writtenRegisters: number;
}

/** Thrown by the emitter for an operation that only the interpreter runs. */
export class Untranslatable extends Error {}
