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
import type { Region } from "./region.ts";
import { type NearBlocks, RegionFinder } from "./region-finder.ts";
import { LAYOUT_IMPORT } from "./region-layout.ts";
import { codeOf, type RegionAnswer, type RegionThread, requestOf } from "./region-thread.ts";

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
/** Instructions a run, at the most, that may go on in the interpreter behind the places where runs leave a region. */
const MOST_BEHIND_RUNS = 2000;
/** Regions kept; when there are more, all are dropped and what is still hot is translated anew. */
const MOST_REGIONS = 6000;
/** Regions of a page that changes more often than this stay with the interpreter. */
const MOST_CHANGES = 20;
/** Regions that wait for their code. A block that is hot while there are more waits for half as many entries again. */
const MOST_WAITING = 100;
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
  /** Host milliseconds spent translating, on whatever thread. */
  milliseconds: number;
}

/** A block that is not to be translated yet. */
interface Member {
  /** That has it inside. */
  readonly region: LiveRegion;
  /** Runs of the engine when it was last made to wait. */
  since: number;
}

interface LiveRegion {
  /** Table index of its function; 0 as long as it waits for its code. */
  index: number;
  /** Headers of its blocks; of those that lead to it; and of those that lead to no region, but are inside of this one. */
  readonly headers: readonly number[];
  entries: readonly number[];
  members: readonly number[];
  /** Numbers of the pages that its code lies in. */
  readonly pages: ReadonlySet<number>;
  /** In all of its blocks. */
  readonly instructions: number;
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
  readonly #thread: RegionThread | undefined;
  /** Code that came for regions, to be had from the next run on. */
  #arrived: (() => void)[] = [];
  #waiting = 0;
  /** By header. */
  readonly #members = new Map<number, Member>();
  /** Times that the engine began to run. */
  #runs = 0;
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
    thread?: RegionThread,
  ) {
    this.mode = mode;
    // "always" means before it runs
    this.#thread = mode === "hot" ? thread : undefined;
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
    if (this.mode === "hot" && this.#waitsFurther(header)) return;
    if (this.#waiting >= MOST_WAITING) {
      u32[(header + block.entries) >>> 2] = this.#hotEntries >>> 1;
      return;
    }
    const least = this.mode === "always" ? 0 : this.#hotEntries / RARE;
    const region = this.#finder.find(header, near, {
      isWorth: (other) => {
        if (u32[(other + block.charge) >>> 2] !== u32[(other + block.count) >>> 2]) return false;
        if (this.mode === "hot" && this.#page(pageOf(other)).changes > MOST_CHANGES) return false;
        return this.#heatOf(other) >= least;
      },
      entriesOf: (other) => this.#heatOf(other),
      isCounted: (other) => this.#isCounted(other),
      leastFromElsewhere: this.#hotEntries / FEW_ENTRIES,
    });
    this.#statistics.linked += region.blocks.reduce((sum, { successors }) => sum + successors.length, 0);
    const live = this.#await(region, pageOf);
    if (this.#thread === undefined) {
      this.#install(live, codeOf(region), allocate);
      return;
    }
    this.#waiting++;
    this.#thread.request(requestOf(region), (code) => {
      this.#waiting--;
      // Another engine may be about to run, and another CPU may have this one's bank by now
      this.#arrived.push(() => this.#install(live, code, allocate));
    });
  }

  /**
   * Whether a block that has been entered often enough is still to wait since a region has it inside. Its code may be to come. Or the
   * region is left in the middle at the ends of runs, and the interpreter goes on until it meets an entry: a region that begins
   * in the middle of others' loops is worse than one that begins where they do. It is translated when that is much: from one entry of the block to
   * the next, it may be all of the region.
   */
  #waitsFurther(header: number): boolean {
    const member = this.#members.get(header);
    if (member === undefined) return false;
    const runs = this.#runs - member.since;
    const isLittle = this.#hotEntries * MEMBER_PATIENCE * member.region.instructions <= runs * MOST_BEHIND_RUNS;
    this.#letWait(header, member);
    if (member.region.index !== 0 && !isLittle) this.#members.delete(header);
    return true;
  }
  #letWait(header: number, member: Member): void {
    this.#cpu.u32[(header + block.entries) >>> 2] = this.#hotEntries * MEMBER_PATIENCE;
    member.since = this.#runs;
  }

  /** Call when the engine begins to run: takes in what has been translated since the last time. */
  takeArrived(): void {
    this.#runs++;
    this.#thread?.poll();
    if (this.#arrived.length === 0) return;
    const arrived = this.#arrived;
    this.#arrived = [];
    for (const install of arrived) install();
  }

  /** A region whose code is to come. What changes its pages meanwhile drops it. */
  #await({ head, blocks }: Region, pageOf: (header: number) => number): LiveRegion {
    const headers = blocks.map(({ header }) => header);
    const live: LiveRegion = {
      index: 0,
      headers,
      entries: [head.header],
      members: headers.filter((header) => header !== head.header && this.#cpu.u32[(header + block.region) >>> 2] === 0),
      pages: new Set(headers.map(pageOf)),
      instructions: blocks.reduce((sum, { count }) => sum + count, 0),
    };
    this.#regions.add(live);
    for (const member of live.members) this.#members.set(member, { region: live, since: this.#runs });
    for (const page of live.pages) this.#page(page).regions.add(live);
    return live;
  }

  #install(live: LiveRegion, code: RegionAnswer, allocate: (bytes: number) => number): void {
    if (!this.#regions.has(live)) return;
    if (this.#statistics.regionsInUse >= MOST_REGIONS) this.#dropAll(({ index }) => index !== 0);
    const { u32 } = this.#cpu;
    const layout = code === undefined ? 0 : allocate(code.layout.length * u32.BYTES_PER_ELEMENT);
    if (code === undefined || layout === 0) {
      this.#forget(live);
      return;
    }
    u32.set(code.layout, layout >>> 2);
    const imports = { ...this.#imports, [LAYOUT_IMPORT.module]: { [LAYOUT_IMPORT.name]: layout } };
    const instance = new WebAssembly.Instance(code.module, imports);
    const index = this.#free.pop() ?? this.#handlers.grow(1);
    this.#handlers.set(index, instance.exports.region);
    const entries: number[] = [];
    code.entries.forEach((entry, number) => {
      if (u32[(entry + block.region) >>> 2] !== 0) return;
      u32[(entry + block.region) >>> 2] = index;
      u32[(entry + block.entries) >>> 2] = number;
      this.#members.delete(entry);
      entries.push(entry);
    });
    live.index = index;
    live.entries = entries;
    live.members = live.members.filter((member) => !entries.includes(member));
    for (const header of live.members) {
      const member = this.#members.get(header);
      if (member?.region === live) this.#letWait(header, member);
    }
    const statistics = this.#statistics;
    statistics.regionsMade++;
    statistics.regionsInUse++;
    statistics.instructions += code.instructions;
    statistics.bytes += code.bytes;
    statistics.milliseconds += code.milliseconds;
  }

  /** Times that the interpreter entered the block, as far as it counts. */
  #heatOf(header: number): number {
    if (!this.#isCounted(header)) return this.#hotEntries * MEMBER_PATIENCE;
    return this.#hotEntries - (this.#cpu.u32[(header + block.entries) >>> 2] | 0);
  }
  /** What has a region is not counted any more, and what is inside of one was counted, then made to wait. */
  #isCounted(header: number): boolean {
    const { u32 } = this.#cpu;
    return u32[(header + block.region) >>> 2] === 0 && (u32[(header + block.entries) >>> 2] | 0) <= this.#hotEntries;
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

  #dropAll(isDropped: (region: LiveRegion) => boolean = () => true): void {
    for (const region of this.#regions) if (isDropped(region)) this.#drop(region);
    this.#statistics.flushes++;
  }
  #drop(region: LiveRegion): void {
    const { u32 } = this.#cpu;
    for (const header of region.entries) {
      u32[(header + block.region) >>> 2] = 0;
      u32[(header + block.entries) >>> 2] = this.initialEntries;
    }
    if (region.index !== 0) {
      this.#handlers.set(region.index, null);
      this.#free.push(region.index);
      this.#statistics.regionsInUse--;
    }
    this.#forget(region);
  }
  #forget(region: LiveRegion): void {
    for (const header of region.members) {
      if (this.#members.get(header)?.region === region) this.#members.delete(header);
    }
    for (const page of region.pages) this.#pages.get(page)?.regions.delete(region);
    this.#regions.delete(region);
  }
}
