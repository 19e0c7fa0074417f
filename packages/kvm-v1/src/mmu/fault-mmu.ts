/**
 * The MMU of version 1: a second-level table that starts empty and is filled one 4 KiB page at a time by faults. Reverse maps in the
 * slots find the leaf entry of a frame again, to take it away or to write-protect it for dirty logging.
 */

import type { Hpa, LogicalCpu, MemoryBank } from "@mkvm/hw-x86";
import { Errno, type Kernel, type Process } from "@mkvm/kvm-abi";
import { type FaultOutcome, MEM_READONLY, PAGE_BYTES, type SlotTable, type VmCounters, VmStat } from "@mkvm/kvm-core";
import type { Vac } from "@mkvm/vac";
import type { MemorySlot } from "../memory-slots.ts";
import { ENTRY_ADDRESS, type EntryFormat } from "./entry-format.ts";

/** What the MMU asks of the vendor. */
export interface SecondLevel {
  readonly format: EntryFormat;
  /** Drops cached translations of this VM on this CPU, the only one it runs on. */
  flush(): void;
}

export class FaultMmu {
  readonly #kernel: Kernel<Vac, LogicalCpu>;
  readonly #process: Process;
  readonly #bank: MemoryBank;
  readonly #slots: SlotTable<MemorySlot>;
  readonly #tables: Hpa[] = [];
  readonly #accessedDirty: boolean;
  readonly #secondLevel: SecondLevel;
  readonly #format: EntryFormat;
  readonly #statistics: VmCounters;
  #root = 0;

  constructor(
    kernel: Kernel<Vac, LogicalCpu>,
    process: Process,
    slots: SlotTable<MemorySlot>,
    accessedDirty: boolean,
    statistics: VmCounters,
    secondLevel: SecondLevel,
  ) {
    this.#kernel = kernel;
    this.#process = process;
    this.#bank = kernel.cpu.memory.bank(process.bank);
    this.#slots = slots;
    this.#accessedDirty = accessedDirty;
    this.#secondLevel = secondLevel;
    this.#format = secondLevel.format;
    this.#statistics = statistics;
  }

  /** Allocates the root: 0 or -ENOMEM. */
  create(): number {
    const root = this.#allocateTable();
    if (root < 0) return root;
    this.#root = root;
    return 0;
  }

  /** For the control structures of this VM's vCPUs. */
  get rootPointer(): bigint {
    return this.#format.pointer(this.#root, this.#accessedDirty);
  }

  /** Frees every table. No vCPU may enter any more. */
  destroy(): void {
    this.flush();
    for (const table of this.#tables) this.#kernel.memory.freePages(table, 1);
    this.#tables.length = 0;
    this.#root = 0;
  }

  /** Handles a fault at a guest-physical address; `write` says what the guest tried. */
  fault(gpa: number, write: boolean): FaultOutcome {
    const gfn = Math.floor(gpa / PAGE_BYTES);
    const slot = this.#slots.find(gfn);
    if (slot === undefined) return "no-slot";
    const readOnly = (slot.flags & MEM_READONLY) !== 0;
    if (write && readOnly) return "read-only";
    const index = gfn - slot.baseGfn;
    const page = this.#process.memory.translate(slot.userspaceAddress + index * PAGE_BYTES);
    if (page < 0) return -Errno.EFAULT;
    const { words } = this.#statistics;
    const format = this.#format;
    let entry = slot.rmap[index]!;
    const before = entry === 0 ? 0 : this.#bank.u32[entry >>> 2]!;
    if (entry === 0) {
      entry = this.#leafEntry(gfn);
      if (entry < 0) return entry;
      slot.rmap[index] = entry;
      words[VmStat.pages_4k]!++;
      words[VmStat.max_mmu_rmap_size] = 1;
    }
    // A page whose dirtying is logged becomes writable by its first write only
    const writable = !readOnly && (write || slot.dirty === undefined);
    this.#write(entry, page, format.leaf | (writable ? format.write : 0));
    if (write) slot.markDirty(gfn);
    if (before === 0) return "mapped";
    return writable && (before & format.write) === 0 ? "unprotected" : "spurious";
  }

  /** Takes away every mapping of a slot that goes or moves. */
  unmapSlot(slot: MemorySlot): void {
    let any = false;
    for (let index = 0; index < slot.pages; index++) {
      const entry = slot.rmap[index]!;
      if (entry === 0) continue;
      this.#bank.u32[entry >>> 2] = 0;
      this.#bank.u32[(entry >>> 2) + 1] = 0;
      slot.rmap[index] = 0;
      this.#statistics.words[VmStat.pages_4k]!--;
      any = true;
    }
    if (any) this.flush();
  }

  /** Write-protects a slot's pages: all, or those with a bit in `bitmap`. */
  writeProtect(slot: MemorySlot, bitmap?: Uint8Array): void {
    const { write } = this.#format;
    let any = false;
    for (let index = 0; index < slot.pages; index++) {
      if (bitmap !== undefined && (bitmap[index >> 3]! & (1 << (index & 7))) === 0) continue;
      const entry = slot.rmap[index]!;
      if (entry === 0) continue;
      const low = this.#bank.u32[entry >>> 2]!;
      if ((low & write) === 0) continue;
      this.#bank.u32[entry >>> 2] = low & ~write;
      any = true;
    }
    if (any) this.flush();
  }

  flush(): void {
    if (this.#root === 0) return;
    this.#statistics.flushed();
    this.#secondLevel.flush();
  }

  /** Bank offset of the leaf entry of a guest frame, tables on the way made as needed; or -ENOMEM. */
  #leafEntry(gfn: number): number {
    let table = this.#root;
    for (let level = this.#format.levels - 1; level >= 1; level--) {
      const entry = (table % 0x1_0000_0000) + (Math.floor(gfn / 2 ** (9 * level)) % 512) * 8;
      const low = this.#bank.u32[entry >>> 2]!;
      if ((low & this.#format.present) !== 0) {
        table = this.#process.bank * 0x1_0000_0000 + ((low & ENTRY_ADDRESS) >>> 0);
        continue;
      }
      const next = this.#allocateTable();
      if (next < 0) return next;
      this.#write(entry, next, this.#format.table);
      table = next;
    }
    return (table % 0x1_0000_0000) + (gfn % 512) * 8;
  }

  #write(entry: number, address: number, flags: number): void {
    this.#bank.u32[(entry >>> 2) + 1] = Math.floor(address / 0x1_0000_0000);
    this.#bank.u32[entry >>> 2] = (address % 0x1_0000_0000) + flags;
  }

  #allocateTable(): number {
    const page = this.#kernel.memory.allocatePages(this.#process, 1);
    if (page < 0) return page;
    this.#tables.push(page as Hpa);
    this.#statistics.words[VmStat.mmu_cache_miss]!++;
    this.#statistics.words[VmStat.mmu_table_pages]!++;
    return page;
  }
}
