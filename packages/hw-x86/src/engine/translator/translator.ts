/**
 * Translated code of one bank: makes regions of hot blocks, hooks them into the blocks' headers, and unhooks them when code
 * changes. The functions stand in the interpreter's table of handlers, behind those of its own.
 */
import type { HandlerNumbers } from "../block-builder.ts";
import type { Cpu } from "../cpu.ts";
import type { Variant } from "../decoder/variant.ts";
import type { InterpreterInstance } from "../interpreter/instance.ts";
import { REGION_SUPPORT } from "../interpreter/region-support.ts";
import { block } from "../operation.ts";
import { type NearBlocks, RegionFinder } from "./region-finder.ts";
import { LAYOUT_IMPORT } from "./region-layout.ts";
import { buildRegionModule } from "./region-module.ts";

/** off: everything is interpreted. hot: what ran often is translated. always: every block is, before it runs first. */
export type TranslateMode = "off" | "hot" | "always";

/**
 * Entries of a block after which it is translated. A region costs the compilers milliseconds: with 2,000 a Linux kernel's boot, and then
 * 300 starts of a program, each take 1.7 times the CPU time.
 */
const HOT_ENTRIES = 20_000;
/** A block belongs to its neighbour's region when it ran at least once in so many of the neighbour's entries. */
const RARE = 40;
/** A block that a region has inside is an entry as well if it was entered from elsewhere a hot block's entries by so many. */
const FEW_ENTRIES = 8;
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
  /** Jumps from block to block that stay within a region. */
  linked: number;
  /** Regions dropped because their page changed, and times that all were dropped. */
  invalidated: number;
  flushes: number;
  /** Host milliseconds spent translating. */
  milliseconds: number;
}

interface LiveRegion {
  /** Table index of its function. */
  readonly index: number;
  /** Headers of its blocks; of those that lead to it; and of those that lead to no region, but are inside of this one. */
  readonly headers: readonly number[];
  readonly entries: readonly number[];
  readonly members: readonly number[];
  /** Numbers of the pages that its code lies in. */
  readonly pages: ReadonlySet<number>;
}

/** A page of the bank that code was translated from. */
interface PageRegions {
  readonly regions: Set<LiveRegion>;
  changes: number;
}

export class Translator {
  readonly mode: TranslateMode;
  /** What a new block's `entries` begins at. */
  readonly initialEntries: number;
  readonly #hotEntries: number;
  readonly #cpu: Cpu;
  readonly #finder: RegionFinder;
  readonly #handlers: WebAssembly.Table;
  readonly #imports: Readonly<WebAssembly.Imports>;
  readonly #free: number[] = [];
  readonly #pages = new Map<number, PageRegions>();
  readonly #regions = new Set<LiveRegion>();
  /** Headers of blocks that regions have inside. */
  readonly #members = new Set<number>();
  readonly #statistics: TranslatorStatistics = {
    regionsMade: 0,
    regionsInUse: 0,
    instructions: 0,
    bytes: 0,
    linked: 0,
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
    hotEntries = HOT_ENTRIES,
  ) {
    this.mode = mode;
    this.#hotEntries = hotEntries;
    this.initialEntries = mode === "off" ? NEVER : mode === "always" ? 1 : hotEntries;
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

  /** The block at that header is to be translated, with what is near it. `allocate`: room beside the operations; 0 when there is none. */
  translate(header: number, near: NearBlocks, allocate: (bytes: number) => number): void {
    const { u32 } = this.#cpu;
    const pageOf = (at: number): number => u32[(at + block.physical) >>> 2] >>> 12;
    if (this.mode === "hot" && this.#page(pageOf(header)).changes > MOST_CHANGES) return;
    if (this.mode === "hot" && this.#members.delete(header)) {
      // Reached from the inside of a region that was left in the middle, most likely
      u32[(header + block.entries) >>> 2] = this.#hotEntries * MEMBER_PATIENCE;
      return;
    }
    const started = performance.now();
    const least = this.mode === "always" ? 0 : this.#hotEntries / RARE;
    const region = this.#finder.find(header, near, {
      isWorth: (other) => {
        if (u32[(other + block.charge) >>> 2] !== u32[(other + block.count) >>> 2]) return false;
        if (this.mode === "hot" && this.#page(pageOf(other)).changes > MOST_CHANGES) return false;
        return this.#heatOf(other) >= least;
      },
      entriesOf: (other) => this.#heatOf(other),
      mayBeEntry: (other) => u32[(other + block.region) >>> 2] === 0,
      leastFromElsewhere: this.#hotEntries / FEW_ENTRIES,
    });
    const linked = region.blocks.reduce((sum, { successors }) => sum + successors.length, 0);
    const code = buildRegionModule(region);
    if (code === undefined) return;
    if (this.#statistics.regionsInUse >= MOST_REGIONS) this.#dropAll();
    const layout = allocate(code.layout.length * u32.BYTES_PER_ELEMENT);
    if (layout === 0) return;
    u32.set(code.layout, layout >>> 2);
    const imports = { ...this.#imports, [LAYOUT_IMPORT.module]: { [LAYOUT_IMPORT.name]: layout } };
    const instance = new WebAssembly.Instance(new WebAssembly.Module(code.bytes), imports);
    const index = this.#free.pop() ?? this.#handlers.grow(1);
    this.#handlers.set(index, instance.exports.region);
    const entries: number[] = [];
    code.entries.forEach((entry, number) => {
      if (u32[(entry + block.region) >>> 2] !== 0) return;
      u32[(entry + block.region) >>> 2] = index;
      u32[(entry + block.entries) >>> 2] = number;
      entries.push(entry);
    });
    const headers = region.blocks.map((own) => own.header);
    const members = headers.filter((own) => u32[(own + block.region) >>> 2] === 0);
    for (const member of members) this.#members.add(member);
    const live = { index, headers, entries, members, pages: new Set(headers.map(pageOf)) };
    this.#regions.add(live);
    for (const page of live.pages) this.#page(page).regions.add(live);
    const statistics = this.#statistics;
    statistics.regionsMade++;
    statistics.regionsInUse++;
    statistics.instructions += code.instructions;
    statistics.bytes += code.bytes.length;
    statistics.linked += linked;
    statistics.milliseconds += performance.now() - started;
  }

  /** Times that the interpreter entered the block, as far as it counts. */
  #heatOf(header: number): number {
    const { u32 } = this.#cpu;
    const left = u32[(header + block.entries) >>> 2] | 0;
    // What has a region is not counted any more, and what is inside of one was counted, then made to wait
    if (u32[(header + block.region) >>> 2] !== 0 || left > this.#hotEntries) return this.#hotEntries * MEMBER_PATIENCE;
    return this.#hotEntries - left;
  }

  #page(number: number): PageRegions {
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = { regions: new Set(), changes: 0 };
      this.#pages.set(number, page);
    }
    return page;
  }

  /** Headers of all blocks that regions have. */
  headers(): Set<number> {
    const all = new Set<number>();
    for (const { headers } of this.#regions) for (const header of headers) all.add(header);
    return all;
  }
  /** How often the interpreter has entered the block; more than any number that one compares with where it was made to wait. */
  entriesOf(header: number): number {
    return (this.initialEntries - this.#cpu.u32[(header + block.entries) >>> 2]) >>> 0;
  }

  /** Blocks of the page were dropped: no region of it may run again. */
  pageChanged(pageOffset: number): void {
    const page = this.#pages.get(pageOffset >>> 12);
    if (page === undefined || page.regions.size === 0) return;
    page.changes++;
    this.#statistics.invalidated += page.regions.size;
    for (const region of page.regions) this.#drop(region);
  }

  /** The operation arena was emptied. */
  flush(): void {
    this.#dropAll();
    this.#pages.clear();
    this.#members.clear();
  }

  #dropAll(): void {
    for (const region of this.#regions) this.#drop(region);
    this.#statistics.flushes++;
  }
  #drop(region: LiveRegion): void {
    const { u32 } = this.#cpu;
    for (const header of region.entries) {
      u32[(header + block.region) >>> 2] = 0;
      u32[(header + block.entries) >>> 2] = this.initialEntries;
    }
    for (const header of region.members) this.#members.delete(header);
    for (const page of region.pages) this.#pages.get(page)?.regions.delete(region);
    this.#regions.delete(region);
    this.#handlers.set(region.index, null);
    this.#free.push(region.index);
    this.#statistics.regionsInUse--;
  }
}
