/**
 * Translated code of one bank: makes regions of hot blocks, hooks them into the blocks' headers, and unhooks them when code
 * changes. The functions stand in the interpreter's table of handlers, behind those of its own.
 */
import type { HandlerNumbers } from "../blocks.ts";
import type { Cpu } from "../cpu.ts";
import type { Variant } from "../decoder/variant.ts";
import type { InterpreterInstance } from "../interpreter/instance.ts";
import { REGION_SUPPORT } from "../interpreter/region-support.ts";
import { block } from "../operation.ts";
import { type PageBlocks, RegionFinder } from "./region-finder.ts";
import { buildRegionModule } from "./region-module.ts";

/** off: everything is interpreted. hot: what ran often is translated. always: every block is, before it runs first. */
export type TranslateMode = "off" | "hot" | "always";

/** Entries of a block after which it is translated. */
const HOT_ENTRIES = 2000;
/** A block belongs to its neighbour's region when it ran at least once in so many of the neighbour's entries. */
const RARE = 40;
/** A block that a region has inside is translated as the first of another after so many times more entries. */
const MEMBER_PATIENCE = 4;
/** Regions kept; when there are more, all are dropped and what is still hot is translated anew. */
const MOST_REGIONS = 6000;
/** Regions of a page that changes more often than this stay with the interpreter. */
const MOST_CHANGES = 20;
/** Never reached by counting down. */
const NEVER = 0xffff_ffff;

export interface TranslatorStatistics {
  /** Regions made since the start, and those that are in use. */
  regionsMade: number;
  regionsInUse: number;
  /** Guest instructions and bytes of WebAssembly in the regions made. */
  instructions: number;
  bytes: number;
  /** Regions dropped because their page changed, and times that all were dropped. */
  invalidated: number;
  flushes: number;
  /** Host milliseconds spent translating. */
  milliseconds: number;
}

interface PageRegions {
  /** Headers of the blocks that regions are entered at, with their table index. */
  readonly regions: Map<number, number>;
  /** Table indexes of all of them. */
  readonly indexes: number[];
  /** Headers of the other blocks in them. */
  readonly members: Set<number>;
  changes: number;
}

export class Translator {
  readonly mode: TranslateMode;
  /** What a new block's `entries` begins at. */
  readonly initialEntries: number;
  readonly #cpu: Cpu;
  readonly #finder: RegionFinder;
  readonly #handlers: WebAssembly.Table;
  readonly #imports: WebAssembly.Imports;
  readonly #free: number[] = [];
  readonly #pages = new Map<number, PageRegions>();
  readonly #statistics: TranslatorStatistics = {
    regionsMade: 0,
    regionsInUse: 0,
    instructions: 0,
    bytes: 0,
    invalidated: 0,
    flushes: 0,
    milliseconds: 0,
  };

  constructor(
    mode: TranslateMode,
    cpu: Cpu,
    memory: WebAssembly.Memory,
    interpreter: InterpreterInstance,
    variants: readonly Variant[],
    numbers: HandlerNumbers,
  ) {
    this.mode = mode;
    this.initialEntries = mode === "off" ? NEVER : mode === "always" ? 1 : HOT_ENTRIES;
    this.#cpu = cpu;
    this.#finder = new RegionFinder(cpu, variants, numbers);
    this.#handlers = interpreter.handlers;
    const support: Record<string, WebAssembly.ImportValue> = {};
    for (const name of Object.keys(REGION_SUPPORT)) support[name] = interpreter.exports[name] as WebAssembly.ImportValue;
    this.#imports = { bank: { memory }, support };
  }

  statistics(): TranslatorStatistics {
    return { ...this.#statistics };
  }

  /** The block at that header, in a page of such blocks, is to be translated. */
  translate(header: number, page: PageBlocks): void {
    const { u32 } = this.#cpu;
    const number = u32[(header + block.physical) >>> 2] >>> 12;
    let regions = this.#pages.get(number);
    if (regions === undefined) {
      regions = { regions: new Map(), indexes: [], members: new Set(), changes: 0 };
      this.#pages.set(number, regions);
    }
    if (this.mode === "hot" && regions.changes > MOST_CHANGES) return;
    if (this.mode === "hot" && regions.members.has(header)) {
      // Reached from the inside of a region that was left in the middle, most likely
      regions.members.delete(header);
      u32[(header + block.entries) >>> 2] = HOT_ENTRIES * MEMBER_PATIENCE;
      return;
    }
    const started = performance.now();
    const least = this.mode === "always" ? 0 : HOT_ENTRIES / RARE;
    const region = this.#finder.find(header, page, (other) => {
      if (u32[(other + block.charge) >>> 2] !== u32[(other + block.count) >>> 2]) return false;
      return HOT_ENTRIES - (u32[(other + block.entries) >>> 2] | 0) >= least || u32[(other + block.region) >>> 2] !== 0;
    });
    const code = buildRegionModule(region);
    if (code === undefined) return;
    if (this.#statistics.regionsInUse >= MOST_REGIONS) this.#dropAll();
    const instance = new WebAssembly.Instance(new WebAssembly.Module(code.bytes), this.#imports);
    const index = this.#free.pop() ?? this.#handlers.grow(1);
    this.#handlers.set(index, instance.exports.region);
    for (const entry of code.entries) {
      const before = u32[(entry + block.region) >>> 2];
      if (before !== 0) continue;
      regions.regions.set(entry, index);
      u32[(entry + block.region) >>> 2] = index;
    }
    regions.indexes.push(index);
    for (const member of region.blocks) if (!regions.regions.has(member.header)) regions.members.add(member.header);
    const statistics = this.#statistics;
    statistics.regionsMade++;
    statistics.regionsInUse++;
    statistics.instructions += code.instructions;
    statistics.bytes += code.bytes.length;
    statistics.milliseconds += performance.now() - started;
  }

  /** Blocks of the page were dropped: no region of it may run again. */
  pageChanged(pageOffset: number): void {
    const page = this.#pages.get(pageOffset >>> 12);
    if (page === undefined || page.regions.size === 0) return;
    page.changes++;
    this.#statistics.invalidated += page.indexes.length;
    this.#drop(page);
  }

  /** The operation arena was emptied. */
  flush(): void {
    this.#dropAll();
    this.#pages.clear();
  }

  #dropAll(): void {
    for (const page of this.#pages.values()) this.#drop(page);
    this.#statistics.flushes++;
  }
  #drop(page: PageRegions): void {
    const { u32 } = this.#cpu;
    for (const header of page.regions.keys()) {
      u32[(header + block.region) >>> 2] = 0;
      u32[(header + block.entries) >>> 2] = this.initialEntries;
    }
    for (const index of page.indexes) {
      this.#handlers.set(index, null);
      this.#free.push(index);
    }
    this.#statistics.regionsInUse -= page.indexes.length;
    page.indexes.length = 0;
    page.regions.clear();
    page.members.clear();
  }
}
