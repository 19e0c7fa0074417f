/** Finds what belongs to a region: the blocks that its first block leads to, as they lie in the operation arena. */

import type { HandlerNumbers } from "../block-builder.ts";
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import type { Variant } from "../decoder/variant.ts";
import { Synthetic } from "../interpreter/synthetic.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { type CodeRange, rangeOf } from "./code-range.ts";
import { type Ending, type OperationRecord, pageOf, type Region, type RegionBlock, type RegionMode } from "./region.ts";

const MOST_BLOCKS = 200;
const MOST_OPERATIONS = 1200;
const MOST_RETURN_SITES = 12;
/** Entries found beside those that a region is to have. They are blocks found before a region is half as large as it may be, so that most of what follows is in it too. */
const MOST_FURTHER_ENTRIES = 15;
/** Pages of a region. When one of them changes, the region is dropped. */
const MOST_PAGES = 12;

/** Bytes from the head's page to any other: distances are taken apart as 32-bit numbers. */
const FAR = 0x7fff_0000;

/** Blocks that a region may consist of, by their distance from its first page. */
export interface NearBlocks {
  readonly mode: RegionMode;
  /** Where RIP can be, outside flat segments. */
  readonly reach: CodeRange | undefined;
  /** Header of the block at that distance from the start of the page; undefined when it has not been decoded, or is out of reach. */
  at(offset: number): number | undefined;
  /** Where the pointer that lies at that distance leads, as such a distance; undefined when it cannot be read now. */
  pointerAt(offset: number): number | undefined;
}

/** The same, by the distance from a page that lies `distance` bytes behind it. */
export function seenFrom(near: NearBlocks, distance: number): NearBlocks {
  return {
    ...near,
    at: (offset) => near.at(offset + distance),
    pointerAt: (offset) => {
      const target = near.pointerAt(offset + distance);
      return target === undefined ? undefined : target - distance;
    },
  };
}

/** A block and its distance from the start of the page. */
export interface PlacedBlock {
  readonly header: number;
  readonly offset: number;
}

/** How often the interpreter ran blocks. */
export interface Heat {
  /** Whether a block other than the first is to be part of the region. */
  isWorth(header: number): boolean;
  /** Since it was decoded, or since a region has it inside. */
  entriesOf(header: number): number;
  /** No region is entered at the block, so that it is the interpreter that enters it. */
  isCounted(header: number): boolean;
  /** A block is worth an entry of its own that ran so much more often than what leads to it. */
  readonly leastFromElsewhere: number;
}

type Flow = "jump" | "branch" | "call" | "return" | "indirect" | "none";

/** How control goes on after a variant, by what its row is. */
function flowOf(variant: Variant): Flow {
  const { mnemonic } = variant.instruction;
  const isRelative = variant.access.some(({ kind }) => kind === "relative");
  if (isRelative) return mnemonic === "JMP" ? "jump" : mnemonic === "CALL" ? "call" : "branch";
  if (mnemonic === "RET") return "return";
  return "indirect";
}

export class RegionFinder {
  readonly #cpu: Cpu;
  readonly #variants: (Variant | undefined)[] = [];
  readonly #endsBlock: Uint8Array;

  constructor(cpu: Cpu, variants: readonly Variant[], handlers: HandlerNumbers) {
    this.#cpu = cpu;
    this.#endsBlock = handlers.endsBlock;
    for (const numbers of [handlers.general, handlers.flat, handlers.flatNoIndex]) {
      for (const variant of variants) this.#variants[numbers[variant.number]] = variant;
    }
  }

  /** `entries`: blocks that it is to be entered at, the first of them the head. */
  find(entries: readonly [PlacedBlock, ...PlacedBlock[]], near: NearBlocks, heat: Heat): Region {
    const blocks = new Map<number, RegionBlock>();
    const headers = new Set<number>();
    const pages = new Set<number>();
    let operations = 0;
    const add = ({ header, offset }: PlacedBlock): RegionBlock => {
      const found = this.#read(header, offset, near);
      blocks.set(offset, found);
      headers.add(header);
      pages.add(pageOf(found));
      operations += found.operations.length;
      return found;
    };
    const [head, ...others] = entries;
    const first = add(head);
    const begins = others.filter(({ header, offset }) => near.at(offset) === header).map(add);
    const mayBeEntries: RegionBlock[] = [];
    const queue = [first, ...begins];
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      for (const offset of [...targets(next.ending), behindCall(next.ending)]) {
        if (offset === undefined || blocks.has(offset) || Math.abs(offset) > FAR) continue;
        if (blocks.size >= MOST_BLOCKS || operations >= MOST_OPERATIONS) break;
        const header = near.at(offset);
        // A block that is mapped at two addresses is in a region once, since it is entered by its header
        if (header === undefined || headers.has(header) || !heat.isWorth(header)) continue;
        if (!pages.has(pageOf({ offset })) && pages.size >= MOST_PAGES) continue;
        const found = add({ header, offset });
        queue.push(found);
        const isEarly = blocks.size * 2 <= MOST_BLOCKS && operations * 2 <= MOST_OPERATIONS;
        if (isEarly) mayBeEntries.push(found);
      }
    }
    const all = [...blocks.values()];
    const sites: RegionBlock[] = [];
    for (const { ending } of all) {
      const behind = behindCall(ending);
      if (behind === undefined || !targets(ending).some((target) => blocks.has(target))) continue;
      const site = blocks.get(behind);
      if (site !== undefined && !sites.includes(site) && sites.length < MOST_RETURN_SITES) sites.push(site);
    }
    for (const found of all) found.successors = successors(found.ending, blocks, sites);
    const range = near.reach && rangeOf(all, near.reach);
    return {
      head: first,
      blocks: all,
      entries: [first, ...begins, ...enteredFromElsewhere(all, mayBeEntries, heat)],
      returnSites: sites,
      mode: near.mode,
      range,
    };
  }

  #read(header: number, offset: number, near: NearBlocks): RegionBlock {
    const { u32 } = this.#cpu;
    const count = u32[(header + block.count) >>> 2];
    const operations: OperationRecord[] = [];
    let ending: Ending | undefined;
    for (let at = header + OP_BYTES; operations.length < count; at += OP_BYTES) {
      const variant = this.#variants[this.#cpu.u16[(at + op.handler) >>> 1]];
      if (variant === undefined) {
        ending = { kind: "interpreter", at };
        break;
      }
      operations.push(this.#operation(at, variant));
    }
    const page = (u32[(header + block.physical) >>> 2] & ~4095) >>> 0;
    return {
      header,
      offset,
      page,
      count,
      operations,
      ending: ending ?? this.#ending(header, offset, operations, near),
      successors: [],
    };
  }

  #ending(header: number, offset: number, operations: readonly OperationRecord[], near: NearBlocks): Ending {
    const last = operations[operations.length - 1] as OperationRecord;
    const behind = offset + last.ripOffset + last.length;
    if (this.#endsBlock[last.variant.number] === 0) {
      const end = header + (operations.length + 1) * OP_BYTES;
      const isEnd = this.#cpu.u16[(end + op.handler) >>> 1] === Synthetic.end;
      return isEnd ? { kind: "jump", target: behind } : { kind: "interpreter", at: end };
    }
    const target = offset + Number(BigInt.asIntN(64, last.immediate));
    switch (flowOf(last.variant)) {
      case "jump":
        return { kind: "jump", target };
      case "branch":
        return { kind: "branch", taken: target, next: behind };
      case "call":
        return { kind: "call", target, returnsTo: behind };
      case "return":
        return { kind: "return" };
      default:
        return {
          kind: "indirect",
          returnsTo: last.variant.instruction.mnemonic === "CALL" ? behind : undefined,
          expected: expectedTarget(last, offset, near),
        };
    }
  }

  #operation(at: number, variant: Variant): OperationRecord {
    const { u8, u16, i32, u64 } = this.#cpu;
    return {
      at,
      variant,
      length: u8[at + op.length],
      scale: u8[at + op.scale],
      a: u16[(at + op.a) >>> 1],
      b: u16[(at + op.b) >>> 1],
      c: u16[(at + op.c) >>> 1],
      base: u16[(at + op.base) >>> 1],
      index: u16[(at + op.index) >>> 1],
      segment: u16[(at + op.segment) >>> 1],
      ripOffset: u16[(at + op.ripOffset) >>> 1],
      displacement: i32[(at + op.displacement) >>> 2],
      addressSize: u8[at + op.addressSize],
      immediate: u64[(at + op.immediate) >>> 3],
    };
  }
}

/**
 * Where a jump through a pointer at a fixed distance probably goes: where the pointer leads now. A procedure linkage table is made of
 * such jumps, and its pointers are written once.
 */
function expectedTarget(
  { variant, base, index, displacement }: OperationRecord,
  offset: number,
  near: NearBlocks,
): number | undefined {
  const isThroughPointer = variant.isMemory && base === state.blockRip && index === state.zero;
  return isThroughPointer ? near.pointerAt(offset + displacement) : undefined;
}

/** Where a block goes by itself. */
function targets(ending: Ending): readonly number[] {
  switch (ending.kind) {
    case "jump":
    case "call":
      return [ending.target];
    case "branch":
      return [ending.next, ending.taken];
    case "indirect":
      return ending.expected === undefined ? [] : [ending.expected];
    default:
      return [];
  }
}
function behindCall(ending: Ending): number | undefined {
  return ending.kind === "call" || ending.kind === "indirect" ? ending.returnsTo : undefined;
}

/**
 * Blocks that are entered from elsewhere: that ran more often than what leads to them in the region. They are functions that others call
 * too, and what is behind calls that leave the region, and behind the blocks of other regions that end there.
 */
export function enteredFromElsewhere<Block extends { readonly header: number; readonly successors: readonly Block[] }>(
  all: readonly Block[],
  candidates: readonly Block[],
  heat: Heat,
): Block[] {
  const arrivals = new Map<Block, number>();
  for (const { header, successors } of all) {
    if (!heat.isCounted(header)) continue;
    for (const to of successors) arrivals.set(to, (arrivals.get(to) ?? 0) + heat.entriesOf(header));
  }
  const fromElsewhere = (found: Block): number => heat.entriesOf(found.header) - (arrivals.get(found) ?? 0);
  return candidates
    .filter((found) => heat.isCounted(found.header) && fromElsewhere(found) >= heat.leastFromElsewhere)
    .sort((a, b) => fromElsewhere(b) - fromElsewhere(a))
    .slice(0, MOST_FURTHER_ENTRIES);
}

function successors(ending: Ending, blocks: ReadonlyMap<number, RegionBlock>, sites: readonly RegionBlock[]): RegionBlock[] {
  if (ending.kind === "return") return [...sites];
  const found = new Set<RegionBlock>();
  for (const offset of targets(ending)) {
    const to = blocks.get(offset);
    if (to !== undefined) found.add(to);
  }
  return [...found];
}
