/** Finds what belongs to a region: the blocks that its first block leads to, as they lie in the operation arena. */

import type { HandlerNumbers } from "../block-builder.ts";
import type { Cpu } from "../cpu.ts";
import type { Variant } from "../decoder/variant.ts";
import { Synthetic } from "../interpreter/synthetic.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { type CodeRange, rangeOf } from "./code-range.ts";
import { type Ending, type OperationRecord, pageOf, type Region, type RegionBlock, type RegionMode } from "./region.ts";

const MOST_BLOCKS = 64;
const MOST_OPERATIONS = 800;
const MOST_RETURN_SITES = 12;
/** Entries beside the head. They are blocks found before a region is half as large as it may be, so that most of what follows is in it too. */
const MOST_FURTHER_ENTRIES = 15;
/** Pages of a region. When one of them changes, the region is dropped. */
const MOST_PAGES = 12;

/** Blocks that a region may consist of, by their distance from its first page. */
export interface NearBlocks {
  readonly mode: RegionMode;
  /** Where RIP can be, outside flat segments. */
  readonly reach: CodeRange | undefined;
  /** Header of the block at that distance from the start of the page; undefined when it has not been decoded, or is out of reach. */
  at(offset: number): number | undefined;
}

/** How often blocks ran. */
export interface Heat {
  /** Whether a block other than the first is to be part of the region. */
  isWorth(header: number): boolean;
  entriesOf(header: number): number;
  /** No region has the block, so that `entriesOf` is how often it ran. */
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

  find(header: number, near: NearBlocks, heat: Heat): Region {
    const offsetOf = (at: number): number => this.#cpu.u32[(at + block.physical) >>> 2] & 4095;
    const head = this.#read(header, offsetOf(header));
    const blocks = new Map<number, RegionBlock>([[head.offset, head]]);
    const headers = new Set([header]);
    const pages = new Set([pageOf(head)]);
    let operations = head.operations.length;
    const mayBeEntries: RegionBlock[] = [];
    const queue = [head];
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      for (const offset of targets(next.ending)) {
        if (blocks.has(offset) || blocks.size >= MOST_BLOCKS || operations >= MOST_OPERATIONS) continue;
        const at = near.at(offset);
        // A block that is mapped at two addresses is in a region once, since it is entered by its header
        if (at === undefined || headers.has(at) || !heat.isWorth(at)) continue;
        const found = this.#read(at, offset);
        if (!pages.has(pageOf(found)) && pages.size >= MOST_PAGES) continue;
        pages.add(pageOf(found));
        headers.add(at);
        operations += found.operations.length;
        blocks.set(offset, found);
        queue.push(found);
        const isEarly = blocks.size * 2 <= MOST_BLOCKS && operations * 2 <= MOST_OPERATIONS;
        if (isEarly && heat.isCounted(at)) mayBeEntries.push(found);
      }
    }
    const all = [...blocks.values()];
    const sites: RegionBlock[] = [];
    for (const { ending } of all) {
      if (ending.kind !== "call" || !blocks.has(ending.target)) continue;
      const site = blocks.get(ending.returnsTo);
      if (site !== undefined && !sites.includes(site) && sites.length < MOST_RETURN_SITES) sites.push(site);
    }
    for (const found of all) found.successors = successors(found.ending, blocks, sites);
    const range = near.reach && rangeOf(all, near.reach);
    return {
      head,
      blocks: all,
      entries: [head, ...furtherEntries(all, mayBeEntries, heat)],
      returnSites: sites,
      mode: near.mode,
      range,
    };
  }

  #read(header: number, offset: number): RegionBlock {
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
      ending: ending ?? this.#ending(header, offset, operations),
      successors: [],
    };
  }

  #ending(header: number, offset: number, operations: readonly OperationRecord[]): Ending {
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
        return last.variant.instruction.mnemonic === "CALL" ? { kind: "indirect", returnsTo: behind } : { kind: "indirect" };
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

function targets(ending: Ending): number[] {
  switch (ending.kind) {
    case "jump":
      return [ending.target];
    case "branch":
      return [ending.next, ending.taken];
    case "call":
      return [ending.target, ending.returnsTo];
    case "indirect":
      return ending.returnsTo === undefined ? [] : [ending.returnsTo];
    default:
      return [];
  }
}

/**
 * Blocks that are entered from elsewhere: that ran more often than what leads to them in the region. They are functions that others call
 * too, and what is behind calls that leave the region, and behind the blocks of other regions that end there. Blocks that are in other regions
 * already are none: their counts do not tell.
 */
function furtherEntries(all: readonly RegionBlock[], candidates: readonly RegionBlock[], heat: Heat): RegionBlock[] {
  const arrivals = new Map<RegionBlock, number>();
  for (const { header, successors } of all) {
    if (!heat.isCounted(header)) continue;
    for (const to of successors) arrivals.set(to, (arrivals.get(to) ?? 0) + heat.entriesOf(header));
  }
  const fromElsewhere = (found: RegionBlock): number => heat.entriesOf(found.header) - (arrivals.get(found) ?? 0);
  return candidates
    .filter((found) => fromElsewhere(found) >= heat.leastFromElsewhere)
    .sort((a, b) => fromElsewhere(b) - fromElsewhere(a))
    .slice(0, MOST_FURTHER_ENTRIES);
}

function successors(ending: Ending, blocks: ReadonlyMap<number, RegionBlock>, sites: readonly RegionBlock[]): RegionBlock[] {
  if (ending.kind === "return") return [...sites];
  if (ending.kind === "indirect") return [];
  const offsets = ending.kind === "call" ? [ending.target] : targets(ending);
  const found = new Set<RegionBlock>();
  for (const offset of offsets) {
    const to = blocks.get(offset);
    if (to !== undefined) found.add(to);
  }
  return [...found];
}
