/**
 * Translated code of one bank: makes regions of hot blocks, hooks them into the blocks' headers, and unhooks them when code
 * changes. The functions stand in the interpreter's table of handlers, behind those of its own.
 */
import type { HandlerNumbers } from "../block-builder.ts";
import type { Cpu } from "../cpu.ts";
import type { Variant } from "../decoder/variant.ts";
import type { InterpreterInstance } from "../interpreter/instance.ts";
import { REGION_SUPPORT } from "../interpreter/region-support.ts";
import { block, ENTRIES_PER_QUESTION } from "../operation.ts";
import { EntryCounts } from "./entry-counts.ts";
import { createLiveRegion, type LiveBlock, type LiveRegion } from "./live-region.ts";
import { enteredFromElsewhere, type Heat, type NearBlocks, type PlacedBlock, RegionFinder, seenFrom } from "./region-finder.ts";
import { LAYOUT_IMPORT } from "./region-layout.ts";
import { codeOf, type RegionAnswer, type RegionThread, requestOf } from "./region-thread.ts";

/** off: everything is interpreted. hot: what ran often is translated. always: every block is, before it runs first. */
export type TranslateMode = "off" | "hot" | "always";

/**
 * Entries of a block after which it is translated. A region costs the compilers milliseconds: with 2,000 a Linux kernel's boot takes 1.7
 * times the CPU time, with 8,000 an eighth more wall time; with 14,000 an md5sum of 64 MiB takes a fifth more, probably since it translates
 * what runs once a page when most of its 16,384 pages are behind it.
 */
const HOT_ENTRIES = 18_000;
/** A block belongs to its neighbour's region when it ran at least once in so many of the neighbour's entries. */
const RARE = 20;
/** A block that a region has inside is an entry as well if it was entered from elsewhere a hot block's entries by so many. */
const FEW_ENTRIES = 8;
/** Times that a region is made anew with further entries. */
const MOST_GENERATIONS = 3;
/**
 * A region is made anew when the interpreter has run so many instructions inside of it, for each of a hot block's entries; and on the average more
 * than so many in a run of the engine, since each end of a run may leave the region in the middle.
 */
const INSTRUCTIONS_INSIDE = 200;
const INSTRUCTIONS_BEHIND_RUNS = 100;
/** Regions kept; when there are more, all are dropped and what is still hot is translated anew. */
const MOST_REGIONS = 6000;
/** Regions of a page that changes more often than this stay with the interpreter. */
const MOST_CHANGES = 20;
/** Regions that wait for their code. A block that is hot while there are more is asked about later. */
const MOST_WAITING = 100;

export interface TranslatorStatistics {
  /** Regions made since the start, how many of them replaced one with fewer entries, and those that are in use. */
  regionsMade: number;
  regionsRemade: number;
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

/** A block at which no region is entered, but which one has inside. */
interface Member {
  readonly region: LiveRegion;
  /** Its count of entries when that region came to have it, or into use. */
  since: number;
}

/** A page of the bank that code was translated from. */
interface PageRegions {
  readonly regions: Set<LiveRegion>;
  changes: number;
}

export class Translator {
  readonly mode: TranslateMode;
  /** Of the blocks that no region is entered at. */
  readonly counts: EntryCounts;
  readonly #heat: Heat;
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
    regionsRemade: 0,
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
    this.counts = new EntryCounts(cpu, mode === "off" ? undefined : mode === "always" ? 1 : hotEntries);
    this.#cpu = cpu;
    this.#heat = {
      isWorth: (header) => this.#isWorth(header),
      entriesOf: (header) => this.#entriesOf(header),
      isCounted: (header) => this.#isCounted(header),
      leastFromElsewhere: hotEntries / FEW_ENTRIES,
    };
    this.#finder = new RegionFinder(cpu, variants, numbers);
    this.#handlers = interpreter.handlers;
    const support: Record<string, WebAssembly.ImportValue> = {};
    for (const name of Object.keys(REGION_SUPPORT)) support[name] = interpreter.exports[name] as WebAssembly.ImportValue;
    this.#imports = { bank: { memory }, support };
  }

  statistics(): TranslatorStatistics {
    return { ...this.#statistics };
  }

  /**
   * The interpreter has come to ask whether the block that it enters is to be translated, with what is near it. `allocate`: room beside the
   * operations; 0 when there is none.
   */
  ask(header: number, near: NearBlocks, allocate: (bytes: number) => number): void {
    const entry = { header, offset: this.#cpu.u32[(header + block.physical) >>> 2] & 4095 };
    if (this.mode === "hot") {
      if (this.#waiting >= MOST_WAITING || this.#changesOften(header)) return;
      const member = this.#members.get(header);
      if (member !== undefined && this.#remake(member.region, header, near, allocate)) return;
      if (this.#entriesOf(header) < this.#hotEntries) return;
    }
    this.#make([entry], near, allocate);
  }

  /**
   * Makes the region anew, with an entry more wherever the interpreter came into it, if that happens much. False: it cannot be, and a
   * block that is entered often inside of it is to have its own.
   */
  #remake(live: LiveRegion, header: number, near: NearBlocks, allocate: (bytes: number) => number): boolean {
    const isToCome = live.successor !== undefined && this.#regions.has(live.successor);
    if (live.index === 0 || isToCome) return true;
    live.inside += ENTRIES_PER_QUESTION * this.#cpu.u32[(header + block.count) >>> 2];
    if (live.inside < this.#hotEntries * INSTRUCTIONS_INSIDE) return true;
    if (live.inside < (this.#runs - live.since) * INSTRUCTIONS_BEHIND_RUNS) return true;
    if (live.generation === MOST_GENERATIONS) return false;
    const { head } = live;
    const asking = live.blocks.find((own) => own.header === header) as LiveBlock;
    const nearHead = seenFrom(near, -(asking.offset & ~4095));
    if (nearHead.at(head.offset) !== head.header) return false;
    const known = live.blocks.filter((own) => own !== head && live.entries.includes(own.header));
    const found = enteredFromElsewhere(live.blocks, live.blocks, this.#heat);
    // In a loop each block is led to by another: the interpreter comes to any of them
    this.#make([head, ...known, ...(found.length > 0 ? found : [asking])], nearHead, allocate, live);
    return true;
  }

  #make(
    entries: readonly [PlacedBlock, ...PlacedBlock[]],
    near: NearBlocks,
    allocate: (bytes: number) => number,
    replaced?: LiveRegion,
  ): void {
    const region = this.#finder.find(entries, near, this.#heat);
    this.#statistics.linked += region.blocks.reduce((sum, { successors }) => sum + successors.length, 0);
    const live = createLiveRegion(region, this.#cpu.u32, replaced === undefined ? 0 : replaced.generation + 1);
    if (replaced !== undefined) replaced.successor = live;
    this.#await(live);
    if (this.#thread === undefined) {
      this.#install(live, codeOf(region), allocate, replaced);
      return;
    }
    this.#waiting++;
    this.#thread.request(requestOf(region), (code) => {
      this.#waiting--;
      // Another engine may be about to run, and another CPU may have this one's bank by now
      this.#arrived.push(() => this.#install(live, code, allocate, replaced));
    });
  }

  /** Call when the engine begins to run: takes in what has been translated since the last time. */
  beginRun(): void {
    this.#runs++;
    this.#thread?.poll();
    if (this.#arrived.length === 0) return;
    const arrived = this.#arrived;
    this.#arrived = [];
    for (const install of arrived) install();
  }

  /** A region whose code is to come. What changes its pages meanwhile drops it. */
  #await(live: LiveRegion): void {
    this.#regions.add(live);
    for (const { header } of live.blocks) {
      if (this.#isCounted(header)) this.#members.set(header, { region: live, since: this.counts.now(header) });
    }
    for (const page of live.pages) this.#page(page).regions.add(live);
  }

  #install(live: LiveRegion, code: RegionAnswer, allocate: (bytes: number) => number, replaced: LiveRegion | undefined): void {
    if (!this.#regions.has(live)) return;
    if (this.#statistics.regionsInUse >= MOST_REGIONS) this.#dropAll(({ index }) => index !== 0);
    const { u32 } = this.#cpu;
    const layout = code === undefined ? 0 : allocate(code.layout.length * u32.BYTES_PER_ELEMENT);
    if (code === undefined || layout === 0) {
      this.#forget(live);
      if (replaced === undefined) this.counts.silence(live.head.header);
      return;
    }
    if (replaced !== undefined && this.#regions.has(replaced)) this.#drop(replaced);
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
    live.since = this.#runs;
    for (const { header } of live.blocks) {
      const member = this.#members.get(header);
      if (member?.region === live) member.since = this.counts.now(header);
    }
    const statistics = this.#statistics;
    statistics.regionsMade++;
    if (replaced !== undefined) statistics.regionsRemade++;
    statistics.regionsInUse++;
    statistics.instructions += code.instructions;
    statistics.bytes += code.bytes;
    statistics.milliseconds += code.milliseconds;
  }

  /** Times that the interpreter entered the block since it was decoded or a region has it inside; enough where a region is entered. */
  #entriesOf(header: number): number {
    return this.#isCounted(header) ? this.counts.since(header, this.#members.get(header)?.since) : this.#hotEntries;
  }
  #isCounted(header: number): boolean {
    return this.#cpu.u32[(header + block.region) >>> 2] === 0;
  }
  /** Whether the block belongs to the regions of those that lead to it. */
  #isWorth(header: number): boolean {
    const { u32 } = this.#cpu;
    if (u32[(header + block.charge) >>> 2] !== u32[(header + block.count) >>> 2]) return false;
    if (this.mode === "always") return true;
    return !this.#changesOften(header) && (this.#members.has(header) || this.#entriesOf(header) >= this.#hotEntries / RARE);
  }
  #changesOften(header: number): boolean {
    return this.#page(this.#cpu.u32[(header + block.physical) >>> 2] >>> 12).changes > MOST_CHANGES;
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
    for (const { blocks } of this.#regions) for (const { header } of blocks) all.add(header);
    return all;
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
      this.counts.restart(header);
    }
    if (region.index !== 0) {
      this.#handlers.set(region.index, null);
      this.#free.push(region.index);
      this.#statistics.regionsInUse--;
    }
    this.#forget(region);
  }
  #forget(region: LiveRegion): void {
    for (const { header } of region.blocks) {
      if (this.#members.get(header)?.region === region) this.#members.delete(header);
    }
    for (const page of region.pages) this.#pages.get(page)?.regions.delete(region);
    this.#regions.delete(region);
  }
}
