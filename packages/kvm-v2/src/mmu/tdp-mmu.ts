/**
 * The MMU of version 2: second-level tables walked with an iterator. Memory is mapped with 2 MiB pages where slot and host allow
 * it and with 4 KiB pages elsewhere, ahead of use when a VM arrives from another module, else by violations.
 */

import type { LogicalCpu, MemoryBank } from "@mkvm/hw-x86";
import { Errno, type Kernel, type Process } from "@mkvm/kvm-abi";
import { type FaultOutcome, MEM_READONLY, PAGE_BYTES, type SlotTable, type VmCounters, VmStat } from "@mkvm/kvm-core";
import type { Vac } from "@mkvm/vac";
import { FRAMES_PER_LARGE_PAGE, type Slot } from "../memory-slots.ts";
import { BANK_SPAN, framesOf, LEVEL_2M, LEVEL_4K, TDP_ADDRESS, TDP_LARGE, TDP_WRITE, type TdpFormat } from "./tdp-entry.ts";
import { TdpIterator } from "./tdp-iterator.ts";

/** Entries that `buildAhead` writes between two looks at whether others want the CPU. */
const BUILD_BATCH = 4096;
const LARGE_PAGE_BYTES = FRAMES_PER_LARGE_PAGE * PAGE_BYTES;

/** A tree of tables with the pages that it is made of. */
interface Root {
  readonly address: number;
  readonly tables: Set<number>;
}

export interface TdpOptions {
  readonly largePages: boolean;
  readonly accessedDirty: boolean;
  /** The processor notes the pages that it makes dirty: logged pages stay writable. */
  readonly logsModifications: boolean;
  readonly format: TdpFormat;
  /** Drops cached translations of this VM on this CPU. */
  flush(): void;
}

export class TdpMmu {
  readonly #kernel: Kernel<Vac, LogicalCpu>;
  readonly #process: Process;
  readonly #bank: MemoryBank;
  readonly #slots: SlotTable<Slot>;
  readonly #largePages: boolean;
  readonly #accessedDirty: boolean;
  readonly #logsModifications: boolean;
  readonly #format: TdpFormat;
  readonly #flushCached: () => void;
  readonly #statistics: VmCounters;
  readonly #roots: Root[] = [];
  /** Frames that `mapOwn` has mapped. */
  readonly #own = new Set<number>();

  constructor(
    kernel: Kernel<Vac, LogicalCpu>,
    process: Process,
    slots: SlotTable<Slot>,
    statistics: VmCounters,
    options: TdpOptions,
  ) {
    this.#kernel = kernel;
    this.#process = process;
    this.#bank = kernel.cpu.memory.bank(process.bank);
    this.#slots = slots;
    this.#statistics = statistics;
    this.#largePages = options.largePages;
    this.#accessedDirty = options.accessedDirty;
    this.#logsModifications = options.logsModifications;
    this.#format = options.format;
    this.#flushCached = options.flush;
  }

  /** Makes the root: 0 or -ENOMEM. */
  create(): number {
    const tables = new Set<number>();
    const address = this.#allocateTable(tables);
    if (address < 0) return address;
    this.#roots.push({ address, tables });
    return 0;
  }

  destroy(): void {
    this.#flush();
    for (const root of this.#roots) for (const table of root.tables) this.#kernel.memory.freePages(table, 1);
    this.#roots.length = 0;
  }

  /** For the control structures of this VM's vCPUs. */
  get rootPointer(): bigint {
    return this.#format.pointer(this.#roots[0]!.address, this.#accessedDirty);
  }

  fault(gpa: number, write: boolean): FaultOutcome {
    const gfn = Math.floor(gpa / PAGE_BYTES);
    const slot = this.#slots.find(gfn);
    if (slot === undefined) return "no-slot";
    if (write && (slot.flags & MEM_READONLY) !== 0) return "read-only";
    if (write) slot.markDirty(gfn);
    return this.#map(this.#roots[0]!, slot, gfn, write);
  }

  /** Maps a frame to a page that is no slot's: one that the module has made for the processor. */
  mapOwn(gfn: number, address: number): "mapped" | number {
    const root = this.#roots[0]!;
    const iterator = new TdpIterator(this.#bank.u32, this.#format, root.address, gfn, gfn + 1);
    while (iterator.level > LEVEL_4K) {
      if (!iterator.present) {
        const table = this.#allocateTable(root.tables);
        if (table < 0) return table;
        this.#set(iterator.entry, table, this.#format.table);
      }
      iterator.advance();
    }
    if (!iterator.present) this.#countPages(LEVEL_4K, 1);
    this.#set(iterator.entry, address, this.#format.leaf | TDP_WRITE);
    this.#own.add(gfn);
    return "mapped";
  }
  /** Takes away what `mapOwn` has mapped in a range. */
  zapOwn(start: number, end: number): void {
    for (const gfn of this.#own) if (gfn >= start && gfn < end) this.zap(gfn, gfn + 1);
  }

  /** Maps all of the slots, giving way now and then. What cannot be mapped is left to faults. */
  async buildAhead(): Promise<void> {
    const { scheduler } = this.#kernel;
    let written = 0;
    for (const slot of [...this.#slots.all()]) {
      for (let gfn = slot.baseGfn; gfn < slot.endGfn; ) {
        const level = this.#levelFor(slot, gfn);
        if (typeof this.#map(this.#roots[0]!, slot, gfn, false) === "number") return;
        gfn += framesOf(level);
        if (++written % BUILD_BATCH === 0 && scheduler.needResched()) await scheduler.yield();
      }
    }
  }

  /** Takes away what maps guest frames `start` up to `end`, and the tables that map nothing else. */
  zap(start: number, end: number): void {
    for (const gfn of this.#own) if (gfn >= start && gfn < end) this.#own.delete(gfn);
    const freed: { table: number; root: Root }[] = [];
    let any = false;
    for (const root of this.#roots) {
      const iterator = new TdpIterator(this.#bank.u32, this.#format, root.address, start, end);
      while (!iterator.done) {
        const whole = iterator.gfn >= start && iterator.gfn + framesOf(iterator.level) <= end;
        if (iterator.linksTable && whole) {
          this.#collectTables((iterator.low & TDP_ADDRESS) >>> 0, iterator.level - 1, root, freed);
          this.#clear(iterator.entry);
          any = true;
        } else if (iterator.leaf) {
          this.#countPages(iterator.level, -1);
          this.#clear(iterator.entry);
          any = true;
        }
        iterator.advance();
      }
    }
    if (any) this.#flush();
    this.#statistics.words[VmStat.mmu_shadow_zapped]! += freed.length;
    this.#statistics.words[VmStat.mmu_table_pages]! -= freed.length;
    // Only now does no cached translation lead into them any more
    for (const { table, root } of freed) {
      root.tables.delete(table);
      this.#kernel.memory.freePages(table, 1);
    }
  }

  /**
   * Dirty logging of the range begins, or begins anew: large pages are split, and the next write to each page is to be told of, by
   * a violation, or by the processor's log of dirty flags that it sets.
   */
  trackWrites(start: number, end: number, selected: (gfn: number) => boolean = () => true): void {
    let any = false;
    const cleared = this.#logsModifications ? this.#format.dirty : TDP_WRITE;
    for (const root of this.#roots) {
      const iterator = new TdpIterator(this.#bank.u32, this.#format, root.address, start, end);
      while (!iterator.done) {
        if (iterator.leaf && iterator.level > LEVEL_4K) {
          this.#split(root, iterator.entry, iterator.level);
          any = true;
          // The walk goes on with the new table, or with nothing when there was no memory for one
        } else if (iterator.leaf && selected(iterator.gfn) && (iterator.low & cleared) !== 0) {
          this.#bank.u32[iterator.entry >>> 2] = iterator.low & ~cleared;
          any = true;
        }
        iterator.advance();
      }
    }
    if (any) this.#flush();
  }

  /** Level at which a frame can be mapped. */
  #levelFor(slot: Slot, gfn: number): number {
    if (!this.#largePages || !slot.allowsLargePage(gfn)) return LEVEL_4K;
    const first = slot.userAddress(gfn - (gfn % FRAMES_PER_LARGE_PAGE));
    const address = this.#process.memory.translate(first);
    if (address < 0 || address % LARGE_PAGE_BYTES !== 0) return LEVEL_4K;
    const last = LARGE_PAGE_BYTES - PAGE_BYTES;
    return this.#process.memory.translate(first + last) === address + last ? LEVEL_2M : LEVEL_4K;
  }

  /** Maps the page of a frame: what it found, or a negative errno. */
  #map(root: Root, slot: Slot, gfn: number, write: boolean): "mapped" | "unprotected" | "spurious" | number {
    const wanted = this.#levelFor(slot, gfn);
    const iterator = new TdpIterator(this.#bank.u32, this.#format, root.address, gfn, gfn + 1);
    // Down to the level wanted, and further where small pages are there already: they stay
    while (iterator.level > wanted || iterator.linksTable) {
      if (iterator.leaf) {
        this.#split(root, iterator.entry, iterator.level);
        this.#flush();
      }
      if (!iterator.present) {
        const table = this.#allocateTable(root.tables);
        if (table < 0) return table;
        this.#set(iterator.entry, table, this.#format.table);
      }
      iterator.advance();
    }
    const first = gfn - (gfn % framesOf(iterator.level));
    const address = this.#process.memory.translate(slot.userAddress(first));
    if (address < 0) return -Errno.EFAULT;
    const readOnly = (slot.flags & MEM_READONLY) !== 0;
    const writable = !readOnly && (slot.dirty === undefined || write || this.#logsModifications);
    const large = iterator.level > LEVEL_4K ? TDP_LARGE : 0;
    const had = iterator.low;
    // A page of a logged slot that is writable already stays so
    const rights = this.#format.leaf | (writable || (!readOnly && (had & TDP_WRITE) !== 0) ? TDP_WRITE : 0);
    // A dirty flag that is set already would keep a write out of the log, and one that is lost would put it there twice
    const dirty = this.#logsModifications ? had & this.#format.dirty : 0;
    this.#set(iterator.entry, address, rights | large | dirty);
    if ((had & this.#format.present) === 0) {
      this.#countPages(iterator.level, 1);
      return "mapped";
    }
    return (rights & ~had & TDP_WRITE) !== 0 ? "unprotected" : "spurious";
  }

  /**
   * Replaces a 2 MiB leaf by a table of 4 KiB leaves, clean ones if the processor logs, else without the right to write; by nothing when
   * there is no memory.
   */
  #split(root: Root, entry: number, level: number): void {
    const low = this.#bank.u32[entry >>> 2]!;
    const high = this.#bank.u32[(entry >>> 2) + 1]!;
    const table = level === LEVEL_2M ? this.#allocateTable(root.tables) : -Errno.ENOMEM;
    this.#countPages(level, -1);
    if (table < 0) {
      this.#clear(entry);
      return;
    }
    this.#countPages(LEVEL_4K, FRAMES_PER_LARGE_PAGE);
    const rights = this.#format.leaf | (this.#logsModifications ? low & TDP_WRITE : 0);
    const base = high * BANK_SPAN + ((low & TDP_ADDRESS) >>> 0);
    for (let index = 0; index < FRAMES_PER_LARGE_PAGE; index++) {
      const child = (table % BANK_SPAN) + index * 8;
      this.#set(child, base + index * PAGE_BYTES, rights);
    }
    this.#set(entry, table, this.#format.table);
  }

  /** Notes a table and the tables below it, whose pages are mapped no more. */
  #collectTables(table: number, level: number, root: Root, into: { table: number; root: Root }[]): void {
    for (let index = 0; index < 512; index++) {
      const low = this.#bank.u32[(table + index * 8) >>> 2]!;
      if ((low & this.#format.present) === 0) continue;
      if (level > LEVEL_4K && (low & TDP_LARGE) === 0) {
        this.#collectTables((low & TDP_ADDRESS) >>> 0, level - 1, root, into);
      } else this.#countPages(level, -1);
    }
    into.push({ table: this.#process.bank * BANK_SPAN + table, root });
  }

  #allocateTable(into: Set<number>): number {
    const table = this.#kernel.memory.allocatePages(this.#process, 1);
    if (table < 0) return table;
    into.add(table);
    this.#statistics.words[VmStat.mmu_cache_miss]!++;
    this.#statistics.words[VmStat.mmu_table_pages]!++;
    return table;
  }
  #countPages(level: number, change: number): void {
    this.#statistics.words[level === LEVEL_4K ? VmStat.pages_4k : VmStat.pages_2m]! += change;
  }

  #set(entry: number, address: number, flags: number): void {
    this.#bank.u32[(entry >>> 2) + 1] = Math.floor(address / BANK_SPAN);
    this.#bank.u32[entry >>> 2] = (address % BANK_SPAN) + flags;
  }
  #clear(entry: number): void {
    this.#bank.u32[entry >>> 2] = 0;
    this.#bank.u32[(entry >>> 2) + 1] = 0;
  }
  #flush(): void {
    for (const _root of this.#roots) {
      this.#statistics.flushed();
      this.#flushCached();
    }
  }
}
