/**
 * What the system layer remembers of address translation beside the data TLB in the bank: TLB tags, a second-level TLB that
 * spans privilege levels, and the places of guest physical pages. One for each engine (bank); all of it can be dropped at any
 * time without harm.
 *
 * Tags. A tag of the data TLB (12 bits) stands for one generation of one address space at one privilege. A flush takes new
 * tags instead of clearing; when they run out the TLB memory is cleared. 0 and 0xfff are never used, so that zeroed memory
 * and "all ones" cannot match; no entry is ever made under 0xffe either, which is the tag of user code whose alignment is checked.
 * Supervisor code keeps its tag over a MOV to CR3 as long as all its entries are for global pages.
 *
 * Generations. An entry of the second-level TLB is valid when its generation is the current one: `globalGeneration` for pages
 * with G set, which MOV to CR3 leaves alone, `generation` for the rest. A process-context identifier has a generation and tags of its
 * own, put aside while another one is in use (process-contexts.ts).
 *
 * Block epochs. What leads from RIP to decoded blocks carries the epoch of its privilege. MOV to CR3 takes a new one for user code;
 * supervisor code keeps its own as long as it was all fetched from global pages, which is how kernels map themselves.
 */
import { clearBlockTables } from "../block-tables.ts";
import type { Cpu } from "../cpu.ts";
import { state, TLB, TLB_ENTRIES, TLB_ENTRY_BYTES, tlbEntryWord } from "../cpu-state.ts";
import { Cr0, Cr4, Efer, Flag } from "./bits.ts";
import { KeptContexts } from "./kept-contexts.ts";

export const PAGE_ENTRIES = 8192;
export const FRAME_ENTRIES = 2048;
const STAMPS = 1 << 15;
const LAST_TAG = 0xffc;
/** A tag that no entry has: every access goes the slow way. */
const NO_ENTRIES = 0xffe;
const LAST_GENERATION = 0x7fff_0000;
/** Block tags are 32 bits, eight for each epoch. */
const LAST_BLOCK_EPOCH = 0x1fff_fff0;
const CR0_MODE = Cr0.PE | Cr0.WP | Cr0.PG;
const CR4_MODE = Cr4.PSE | Cr4.PAE | Cr4.PGE | Cr4.PCIDE | Cr4.SMEP | Cr4.SMAP | Cr4.PKE | Cr4.LA57;
/** User pages that are open at once to supervisor code; where there are more, all of the data TLB is dropped. */
const OPENED = 256;
const EFER_MODE = Efer.LME | Efer.LMA | Efer.NXE;

export class TranslationCaches {
  generation = 1;
  globalGeneration = 1;
  lastGeneration = 1;
  /** Tags of the data TLB. */
  supervisorTag = 1;
  userTag = 2;
  lastTag = 2;
  /** Supervisor code has entries for pages that are neither global nor opened (see below), under its present tag. */
  systemDataIsPrivate = false;
  userEpoch = 1;
  systemEpoch = 2;
  lastBlockEpoch = 2;
  /** Supervisor code was fetched from a page that is not global, in this epoch. */
  systemIsPrivate = false;
  translationTag = -1;
  /** The process-context identifier in use. */
  identifier = 0;
  readonly contexts = new KeptContexts();
  cr0 = 0;
  cr3Low = 0;
  cr3High = 0;
  cr4 = 0;
  efer = 0;
  /** PKRU where it counts, else 0. */
  pkru = 0;
  /** Version of the breakpoints that the tags were taken under. */
  breakpoints = 0;

  /** Second-level TLB by linear page number modulo PAGE_ENTRIES: halves of the page's address, generation, bank offset, PageFlag and key. */
  readonly pageLow = new Int32Array(PAGE_ENTRIES);
  readonly pageHigh = new Int32Array(PAGE_ENTRIES);
  readonly pageGeneration = new Int32Array(PAGE_ENTRIES);
  readonly pageOffset = new Uint32Array(PAGE_ENTRIES);
  readonly pageFlags = new Uint16Array(PAGE_ENTRIES);

  /** Guest physical pages by frame number modulo FRAME_ENTRIES: frame (-1: none), bank offset, rights (1 read, 2 write, 4 fetch). */
  readonly frame = new Float64Array(FRAME_ENTRIES).fill(-1);
  readonly frameOffset = new Uint32Array(FRAME_ENTRIES);
  readonly frameRights = new Uint8Array(FRAME_ENTRIES);

  /**
   * The latest block epoch in which code was fetched from a page, by privilege, and page generation in which a large page was used,
   * all hashed. Other contexts and pages that share a hash can only make them later, and then more is dropped than had to be.
   */
  readonly userStamp = new Int32Array(STAMPS);
  readonly systemStamp = new Int32Array(STAMPS);
  readonly largeStamp = new Int32Array(STAMPS);
  hugeStamp = 0;

  /**
   * Entries of the data TLB (word indices) that let supervisor code reach user pages while EFLAGS.AC is set under SMAP. They go when
   * AC is cleared: so neither STAC nor CLAC touches the entries of the kernel's own pages.
   */
  readonly opened = new Uint32Array(OPENED);
  openedCount = 0;
  noteOpened(entry: number): void {
    if (this.openedCount < OPENED) this.opened[this.openedCount] = entry;
    this.openedCount++;
  }

  /** Linear address of the last page fault raised here. */
  faultAddress = 0n;

  /** Hash of a linear page (or 2 MiB region) number's halves into the stamps. */
  static stampIndex(low: number, high: number): number {
    return (low ^ (low >>> 15) ^ (high * 0x9e5)) & (STAMPS - 1);
  }
}

const known = new WeakMap<Cpu, TranslationCaches>();
let lastCpu: Cpu | undefined;
let lastCaches: TranslationCaches | undefined;

export function cachesOf(cpu: Cpu): TranslationCaches {
  if (cpu === lastCpu && lastCaches !== undefined) return lastCaches;
  let caches = known.get(cpu);
  if (caches === undefined) {
    caches = new TranslationCaches();
    known.set(cpu, caches);
  }
  lastCpu = cpu;
  lastCaches = caches;
  return caches;
}

function clearTlb(cpu: Cpu): void {
  cpu.u8.fill(0xff, TLB, TLB + TLB_ENTRIES * TLB_ENTRY_BYTES);
}

/** CR0.AM and EFLAGS.AC: user code must align its accesses. */
function wantsAlignment(cpu: Cpu): boolean {
  return (cpu.u32[state.cr0 >>> 2] & Cr0.AM) !== 0 && (cpu.u32[state.systemFlags >>> 2] & Flag.AC) !== 0;
}
/** Accesses of the running code have to be aligned: they are checked on the slow way, and there is no other. */
export const checksAlignment = (cpu: Cpu): boolean => cpu.u32[state.tlbTag >>> 2] === NO_ENTRIES;

/** Writes the tags of the current privilege and code size to the state block. */
export function publishTags(cpu: Cpu, caches: TranslationCaches): void {
  const isUser = cpu.u32[state.cpl >>> 2] === 3;
  const tag = isUser ? caches.userTag : caches.supervisorTag;
  cpu.u32[state.tlbTag >>> 2] = isUser && wantsAlignment(cpu) ? NO_ENTRIES : tag;
  cpu.u32[(state.tlbTag >>> 2) + 1] = 0;
  // 16, 32, 64 >>> 5 are 0, 1, 2.
  const epoch = isUser ? caches.userEpoch : caches.systemEpoch;
  cpu.u32[state.blockTag >>> 2] = epoch * 8 + (cpu.u32[state.codeSize >>> 2] >>> 5) * 2 + (isUser ? 1 : 0);
}

/** Makes every lookup of a user block, or of a supervisor block too, miss once. */
export function renewBlocks(cpu: Cpu, caches: TranslationCaches, user: boolean, system: boolean): void {
  if (caches.lastBlockEpoch >= LAST_BLOCK_EPOCH) {
    clearBlockTables(cpu);
    caches.userStamp.fill(0);
    caches.systemStamp.fill(0);
    caches.contexts.forgetAll();
    caches.lastBlockEpoch = 0;
    user = system = true;
  }
  if (user) caches.userEpoch = ++caches.lastBlockEpoch;
  if (system) {
    caches.systemEpoch = ++caches.lastBlockEpoch;
    caches.systemIsPrivate = false;
  }
  publishTags(cpu, caches);
}

/** Code was fetched from the page of a linear address. */
export function noteFetch(caches: TranslationCaches, low: number, high: number, user: boolean, isGlobal: boolean): void {
  const index = TranslationCaches.stampIndex(low >>> 12, high);
  if (user) {
    if (caches.userStamp[index] < caches.userEpoch) caches.userStamp[index] = caches.userEpoch;
  } else {
    if (caches.systemStamp[index] < caches.systemEpoch) caches.systemStamp[index] = caches.systemEpoch;
    if (!isGlobal) caches.systemIsPrivate = true;
  }
}

/** PKRU where protection keys are on. */
export const keyRights = (cpu: Cpu): number => ((cpu.u32[state.cr4 >>> 2] & Cr4.PKE) === 0 ? 0 : cpu.u32[state.pkru >>> 2]);

/** The process-context identifier in CR3, 0 where there are none. */
export const identifierOf = (cpu: Cpu): number =>
  (cpu.u32[state.cr4 >>> 2] & Cr4.PCIDE) === 0 ? 0 : cpu.u32[state.cr3 >>> 2] & 0xfff;

export function noteMode(cpu: Cpu, caches: TranslationCaches): void {
  caches.cr0 = cpu.i32[state.cr0 >>> 2] & CR0_MODE;
  caches.identifier = identifierOf(cpu);
  caches.cr3Low = cpu.i32[state.cr3 >>> 2];
  caches.cr3High = cpu.i32[(state.cr3 >>> 2) + 1];
  caches.cr4 = cpu.i32[state.cr4 >>> 2] & CR4_MODE;
  caches.efer = cpu.i32[state.efer >>> 2] & EFER_MODE;
  caches.pkru = keyRights(cpu);
  caches.breakpoints = cpu.breakpoints.version;
}

function modeChanged(cpu: Cpu, caches: TranslationCaches): boolean {
  return (
    (cpu.i32[state.cr0 >>> 2] & CR0_MODE) !== caches.cr0 ||
    cpu.i32[state.cr3 >>> 2] !== caches.cr3Low ||
    cpu.i32[(state.cr3 >>> 2) + 1] !== caches.cr3High ||
    (cpu.i32[state.cr4 >>> 2] & CR4_MODE) !== caches.cr4 ||
    (cpu.i32[state.efer >>> 2] & EFER_MODE) !== caches.efer ||
    keyRights(cpu) !== caches.pkru ||
    cpu.breakpoints.version !== caches.breakpoints
  );
}

/** Tags under which nothing has been entered yet: drops all of the data TLB for the present context, or what user code has there. */
export function takeTags(cpu: Cpu, caches: TranslationCaches, keepsSystem = false): void {
  if (reserveTags(cpu, caches) || !keepsSystem) takeSystemTag(cpu, caches);
  caches.userTag = ++caches.lastTag;
}
/** The same for what supervisor code has there. */
export function takeSystemTag(cpu: Cpu, caches: TranslationCaches): void {
  if (reserveTags(cpu, caches)) caches.userTag = ++caches.lastTag;
  caches.supervisorTag = ++caches.lastTag;
  caches.systemDataIsPrivate = false;
  caches.openedCount = 0;
}
/** Makes sure that there are two. True: all that had any are dropped. */
function reserveTags(cpu: Cpu, caches: TranslationCaches): boolean {
  if (caches.lastTag + 2 <= LAST_TAG) return false;
  clearTlb(cpu);
  caches.contexts.forgetAll();
  caches.lastTag = 0;
  return true;
}

/** PKRU was written: what the data TLB allows goes by the rights of before. Translations themselves stay. */
export function keyRightsChanged(cpu: Cpu): void {
  const caches = cachesOf(cpu);
  if (keyRights(cpu) === caches.pkru) return;
  caches.pkru = keyRights(cpu);
  takeTags(cpu, caches);
  publishTags(cpu, caches);
}

/** EFLAGS.AC was cleared: supervisor code has no way to user pages any more, if SMAP is on. */
export function closeUserPages(cpu: Cpu): void {
  const caches = cachesOf(cpu);
  if (caches.openedCount === 0) return;
  if (caches.openedCount > OPENED) {
    takeTags(cpu, caches);
    publishTags(cpu, caches);
    return;
  }
  for (let i = 0; i < caches.openedCount; i++) {
    const entry = caches.opened[i];
    cpu.i32[entry] = cpu.i32[entry + 1] = cpu.i32[entry + 2] = cpu.i32[entry + 3] = -1;
  }
  caches.openedCount = 0;
}

/** Drops translations: of the identifier in use, or, global ones included, of all of them. */
export function flushTlb(cpu: Cpu, keepGlobal: boolean): void {
  const caches = cachesOf(cpu);
  if (caches.lastGeneration >= LAST_GENERATION) {
    caches.pageGeneration.fill(0);
    caches.largeStamp.fill(0);
    caches.hugeStamp = 0;
    caches.contexts.forgetAll();
    caches.lastGeneration = 0;
    keepGlobal = false;
  }
  caches.generation = ++caches.lastGeneration;
  if (!keepGlobal) {
    caches.globalGeneration = caches.generation;
    caches.contexts.forget(caches.translationTag);
  }
  // Kernels map themselves with global pages: what they have of the data TLB stays
  if (keepGlobal) closeUserPages(cpu);
  takeTags(cpu, caches, keepGlobal && !caches.systemDataIsPrivate);
  noteMode(cpu, caches);
  renewBlocks(cpu, caches, true, !keepGlobal || caches.systemIsPrivate);
}

/** Puts the present context aside; `isLast` where it is for another translation tag, not for another identifier. */
export function keepContext(caches: TranslationCaches, isLast: boolean): void {
  const { translationTag, identifier, generation, globalGeneration, cr0, cr3Low, cr3High, cr4, efer } = caches;
  const { supervisorTag, userTag, systemDataIsPrivate } = caches;
  const tags = { supervisorTag, userTag, systemDataIsPrivate };
  const { userEpoch, systemEpoch, systemIsPrivate, pkru, breakpoints } = caches;
  const mode = { cr0, cr3Low, cr3High, cr4, efer, pkru, breakpoints };
  const epochs = { userEpoch, systemEpoch, systemIsPrivate };
  caches.contexts.keep({ translationTag, identifier, generation, globalGeneration, ...tags, ...epochs, ...mode }, isLast);
}

/** The context of another translation tag, as it was left; false when there is none. */
function takeContext(caches: TranslationCaches, translationTag: number, identifier: number): boolean {
  const context = caches.contexts.lastOf(translationTag, identifier);
  if (context === undefined) return false;
  Object.assign(caches, context);
  return true;
}

/** Privilege, code size, paging mode or second-level translation may have changed: makes `tlbTag` and `blockTag` right. */
export function updateTags(cpu: Cpu): void {
  const caches = cachesOf(cpu);
  const { translationTag } = cpu.guest;
  let isKnown = true;
  if (translationTag !== caches.translationTag) {
    // Another vCPU comes back to its context with an AC of its own
    closeUserPages(cpu);
    if (caches.translationTag >= 0) keepContext(caches, true);
    isKnown = takeContext(caches, translationTag, identifierOf(cpu));
    caches.translationTag = translationTag;
    caches.frame.fill(-1);
  }
  if (isKnown && !modeChanged(cpu, caches)) publishTags(cpu, caches);
  else flushTlb(cpu, false);
}

/** Privilege or code size changed and nothing else: the cheap half of `updateTags`. */
export function switchTags(cpu: Cpu): void {
  publishTags(cpu, cachesOf(cpu));
}

function dropEntry(cpu: Cpu, caches: TranslationCaches, low: number, high: number): void {
  const page = low & ~0xfff;
  const entry = tlbEntryWord(low);
  const i32 = cpu.i32;
  if ((i32[entry] & ~0xfff) === page && i32[entry + 1] === high) {
    i32[entry] = i32[entry + 1] = i32[entry + 2] = i32[entry + 3] = -1;
  }
  const index = (low >>> 12) & (PAGE_ENTRIES - 1);
  if (caches.pageLow[index] === page && caches.pageHigh[index] === high) caches.pageGeneration[index] = 0;
  const stamp = TranslationCaches.stampIndex(low >>> 12, high);
  const user = caches.userStamp[stamp] >= caches.userEpoch;
  const system = caches.systemStamp[stamp] >= caches.systemEpoch;
  if (user || system) renewBlocks(cpu, caches, user, system);
  // The page may be global: then other identifiers have run it as well
  if (caches.userStamp[stamp] > 0) caches.contexts.dropUserCode(caches.translationTag, caches.userStamp[stamp]);
}

/** INVLPG: drops the translation of the page at a linear address, whatever its size. Halves as signed 32-bit numbers. */
export function flushPageHalves(cpu: Cpu, low: number, high: number): void {
  const caches = cachesOf(cpu);
  if (caches.hugeStamp >= caches.globalGeneration) {
    flushTlb(cpu, false);
    return;
  }
  const region = TranslationCaches.stampIndex(low >>> 21, high);
  if (caches.largeStamp[region] < caches.globalGeneration) {
    dropEntry(cpu, caches, low, high);
    return;
  }
  const start = low & ~0x1f_ffff;
  for (let page = 0; page < 512; page++) dropEntry(cpu, caches, start + page * 4096, high);
  // 4 MiB pages of 32-bit paging cover a pair of regions.
  if ((cpu.u32[state.cr4 >>> 2] & Cr4.PAE) === 0) {
    const other = start ^ 0x20_0000;
    for (let page = 0; page < 512; page++) dropEntry(cpu, caches, other + page * 4096, high);
  }
}

export function flushPage(cpu: Cpu, address: bigint): void {
  flushPageHalves(cpu, Number(BigInt.asIntN(32, address)), Number(BigInt.asIntN(32, address >> 32n)));
}

/**
 * Code was decoded in the page at this bank offset: removes every write permission to it from the data TLB, so that stores
 * there take the slow path. Call when `holdsCode` of the page becomes true.
 */
export function protectCodePage(cpu: Cpu, pageOffset: number): void {
  const i32 = cpu.i32;
  for (let index = 0; index < TLB_ENTRIES; index++) {
    const entry = (TLB + index * TLB_ENTRY_BYTES) >>> 2;
    if (i32[entry + 3] === -1 && i32[entry + 2] === -1) continue;
    if ((((i32[entry + 2] & ~0xfff) + i32[entry + 4]) | 0) === (pageOffset | 0)) {
      i32[entry + 2] = i32[entry + 3] = -1;
    }
  }
}
