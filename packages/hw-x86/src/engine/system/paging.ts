/**
 * Guest linear to guest physical to bank offset (Intel SDM Vol. 3A, Paging). The walk runs once for a few hundred guest
 * instructions, so it has neither bigint nor allocation: addresses travel as halves, physical pages as frame numbers.
 */
import type { Gpa, Gva } from "../../addresses.ts";
import { offsetOf } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { state, tlbEntryWord } from "../cpu-state.ts";
import { Cr0, Cr4, Efer, Flag, Vector } from "./bits.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { cachesOf, FRAME_ENTRIES, noteFetch, PAGE_ENTRIES, TranslationCaches } from "./translation-caches.ts";

export {
  closeUserPages,
  flushPage,
  flushTlb,
  keyRightsChanged,
  protectCodePage,
  updateTags,
} from "./translation-caches.ts";

/** Kinds of access, as bits of second-level rights. */
export const READ = 1;
export const WRITE = 2;
export const FETCH = 4;

/** What a cached translation allows. The first three are also rights bits of the second level. */
const PageFlag = { read: 1, write: 2, fetch: 4, user: 8, writable: 16, executable: 32, dirty: 64, global: 128 } as const;
/** Beside the flags: the page's protection key, 4 bits. */
const KEY_SHIFT = 8;

/** Bits of a paging-structure entry. */
const PRESENT = 0x1;
const WRITABLE = 0x2;
const USER = 0x4;
const ACCESSED = 0x20;
const DIRTY = 0x40;
const LARGE = 0x80;
const GLOBAL = 0x100;
/** Bits 62:59 of the entry that maps a page. */
const keyOf = (high: number): number => (high >>> 27) & 15;
/** Bit 63, in the upper half. */
const NO_EXECUTE = 0x8000_0000 | 0;

const linearOf = (lo: number, hi: number): Gva => ((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0)) as Gva;

/** The last `translate` led to the page of the local APIC: the access is for `GuestMode.apic`. */
export let isApicPage = false;

/** Bank offset of the page at guest physical frame `frame`, through the second level; exits where that forbids `access`. */
function frameToOffset(
  cpu: Cpu,
  caches: TranslationCaches,
  frame: number,
  access: number,
  lo: number,
  hi: number,
  walk: boolean,
): number {
  const index = frame & (FRAME_ENTRIES - 1);
  if (caches.frame[index] === frame && (caches.frameRights[index] & access) !== 0) return caches.frameOffset[index];
  const gpa = walk ? frame * 4096 : frame * 4096 + (lo & 0xfff);
  const page = cpu.guest.translate(gpa as Gpa, access, linearOf(lo, hi), walk);
  const offset = (offsetOf(page.hpa) & ~0xfff) >>> 0;
  if (offset + 4096 > cpu.bankBytes) throw new RangeError(`second level maps ${gpa.toString(16)} past the end of the bank`);
  if (page.isApic) {
    isApicPage = true;
    return offset;
  }
  caches.frame[index] = frame;
  caches.frameOffset[index] = offset;
  // Without a write the second level's dirty bit is still clear, so that the first write must ask again.
  caches.frameRights[index] = access === WRITE ? page.rights : page.rights & ~WRITE;
  return offset;
}

function pageFault(
  cpu: Cpu,
  caches: TranslationCaches,
  lo: number,
  hi: number,
  access: number,
  user: boolean,
  bits: number,
): never {
  let error = bits;
  if (access === WRITE) error |= 2;
  if (user) error |= 4;
  // The fetch bit exists only where something can forbid a fetch: execute-disable, or SMEP.
  const cr4 = cpu.u32[state.cr4 >>> 2];
  const hasExecuteDisable = (cpu.u32[state.efer >>> 2] & Efer.NXE) !== 0 && (cr4 & Cr4.PAE) !== 0;
  if (access === FETCH && (hasExecuteDisable || (cr4 & Cr4.SMEP) !== 0)) error |= 16;
  caches.faultAddress = linearOf(lo, hi);
  return cpu.raise(Vector.PF, error, caches.faultAddress);
}

// Entries that the walk went through: bank offset of the entry and frame of its table. Filled by `walk`, consumed at once.
const entryOffset = new Float64Array(5);
const entryFrame = new Float64Array(5);
let entryCount = 0;

/** Marks the entries of the walk accessed, and the last dirty for writes; through the second level, as writes of its own. */
function markEntries(cpu: Cpu, caches: TranslationCaches, access: number, lo: number, hi: number): void {
  for (let level = 0; level < entryCount; level++) {
    let wanted = ACCESSED;
    if (level === entryCount - 1 && access === WRITE) wanted |= DIRTY;
    const at = entryOffset[level];
    if ((cpu.u32[at >>> 2] & wanted) === wanted) continue;
    const page = frameToOffset(cpu, caches, entryFrame[level], WRITE, lo, hi, true);
    const offset = page + (at & 0xfff);
    cpu.u32[offset >>> 2] |= wanted;
    if (cpu.holdsCode(page)) cpu.codeWritten(offset, 4);
  }
}

const isWriteProtected = (cpu: Cpu): boolean => (cpu.u32[state.cr0 >>> 2] & Cr0.WP) !== 0;

/** Set while system code reaches for a system data structure: such accesses are the supervisor's whatever CPL and EFLAGS.AC are. */
let isImplicit = false;
export function setImplicit(value: boolean): void {
  isImplicit = value;
}

/** Whether supervisor code may reach user pages: to execute, not with SMEP; for data, with SMAP only where EFLAGS.AC is set. */
function permitsSupervisor(cpu: Cpu, access: number): boolean {
  const cr4 = cpu.u32[state.cr4 >>> 2];
  if ((cpu.u32[state.cr0 >>> 2] & Cr0.PG) === 0) return true;
  if (access === FETCH) return (cr4 & Cr4.SMEP) === 0;
  return (cr4 & Cr4.SMAP) === 0 || (!isImplicit && (cpu.u32[state.systemFlags >>> 2] & Flag.AC) !== 0);
}

/** Access-disable and write-disable, the two bits of PKRU for each key. */
const KEY_AD = 1;
const KEY_WD = 2;

/** Whether the page's protection key forbids a data access: long mode has keys, and those of user pages count, whoever runs. */
function keyForbids(cpu: Cpu, flags: number, access: number, user: boolean): boolean {
  if ((cpu.u32[state.cr4 >>> 2] & Cr4.PKE) === 0 || access === FETCH || (flags & PageFlag.user) === 0) return false;
  if ((cpu.u32[state.efer >>> 2] & Efer.LMA) === 0) return false;
  const rights = cpu.u32[state.pkru >>> 2] >>> ((flags >>> KEY_SHIFT) * 2);
  return (rights & KEY_AD) !== 0 || ((rights & KEY_WD) !== 0 && access === WRITE && (user || isWriteProtected(cpu)));
}

function permits(cpu: Cpu, flags: number, access: number, user: boolean): boolean {
  if (keyForbids(cpu, flags, access, user)) return false;
  if (user) {
    if ((flags & PageFlag.user) === 0) return false;
  } else if ((flags & PageFlag.user) !== 0 && !permitsSupervisor(cpu, access)) return false;
  if (access === WRITE) return (flags & PageFlag.writable) !== 0 || (!user && !isWriteProtected(cpu));
  return access !== FETCH || (flags & PageFlag.executable) !== 0;
}

function noteLarge(caches: TranslationCaches, lo: number, hi: number): void {
  const index = TranslationCaches.stampIndex(lo >>> 21, hi);
  if (caches.largeStamp[index] < caches.generation) caches.largeStamp[index] = caches.generation;
}

/** Result of the walk beside the frame it returns: PageFlag without the second level's bits. */
let walkFlags = 0;

/** 5-level, 4-level and PAE paging: 64-bit entries. Returns the guest frame. */
function walkWide(cpu: Cpu, caches: TranslationCaches, lo: number, hi: number, access: number, user: boolean): number {
  const isLong = (cpu.u32[state.efer >>> 2] & Efer.LMA) !== 0;
  const noExecute = (cpu.u32[state.efer >>> 2] & Efer.NXE) !== 0;
  // Upper-half bits that must be clear: execute-disable when it is off, address bits that the CPU has not, and PAE's ignored ones.
  let reserved = noExecute ? 0 : NO_EXECUTE;
  if (cpu.model.physicalAddressBits < 52) reserved |= 0xf_ffff & (-1 << (cpu.model.physicalAddressBits - 32));
  let level: number;
  let frame: number;
  if (isLong) {
    level = (cpu.u32[state.cr4 >>> 2] & Cr4.LA57) !== 0 ? 5 : 4;
    frame = (cpu.u32[state.cr3 >>> 2] >>> 12) + (cpu.u32[(state.cr3 >>> 2) + 1] & 0xf_ffff) * 0x10_0000;
  } else {
    reserved |= 0x7ff0_0000;
    const register = (state.pdpte >>> 2) + (lo >>> 30) * 2;
    if ((cpu.u32[register] & PRESENT) === 0) return pageFault(cpu, caches, lo, hi, access, user, 0);
    level = 2;
    frame = (cpu.u32[register] >>> 12) + (cpu.u32[register + 1] & 0xf_ffff) * 0x10_0000;
  }
  let flags = PageFlag.user | PageFlag.writable | PageFlag.executable;
  entryCount = 0;
  for (; ; level--) {
    let index: number;
    if (level === 1) index = lo >>> 12;
    else if (level === 2) index = lo >>> 21;
    else if (level === 3) index = (hi << 2) | (lo >>> 30);
    else if (level === 4) index = hi >>> 7;
    else index = hi >>> 16;
    const table = frameToOffset(cpu, caches, frame, READ, lo, hi, true);
    const at = table + (index & 511) * 8;
    const low = cpu.u32[at >>> 2];
    const high = cpu.u32[(at >>> 2) + 1];
    if ((low & PRESENT) === 0) return pageFault(cpu, caches, lo, hi, access, user, 0);
    entryOffset[entryCount] = at;
    entryFrame[entryCount++] = frame;
    if ((high & reserved) !== 0 || (level >= 4 && (low & LARGE) !== 0)) {
      return pageFault(cpu, caches, lo, hi, access, user, 9);
    }
    if ((low & USER) === 0) flags &= ~PageFlag.user;
    if ((low & WRITABLE) === 0) flags &= ~PageFlag.writable;
    if ((high & NO_EXECUTE) !== 0) flags &= ~PageFlag.executable;
    frame = (low >>> 12) + (high & 0xf_ffff) * 0x10_0000;
    const isLarge = (level === 2 || level === 3) && (low & LARGE) !== 0;
    if (level !== 1 && !isLarge) continue;
    if (isLarge) {
      const offsetMask = level === 2 ? 0x1f_f000 : 0x3fff_f000;
      // Bit 12 is the PAT bit of a large page; the other offset bits are reserved.
      if ((low & offsetMask & ~0x1000) !== 0) return pageFault(cpu, caches, lo, hi, access, user, 9);
      frame += ((lo & offsetMask) >>> 12) - ((low & 0x1000) >>> 12);
      if (level === 2) noteLarge(caches, lo, hi);
      else caches.hugeStamp = Math.max(caches.hugeStamp, caches.generation);
    }
    // Without long mode the bits are reserved, and without CR4.PKE nobody's
    if (isLong) flags |= keyOf(high) << KEY_SHIFT;
    if (!permits(cpu, flags, access, user)) {
      return pageFault(cpu, caches, lo, hi, access, user, keyForbids(cpu, flags, access, user) ? 0x21 : 1);
    }
    if ((low & DIRTY) !== 0 || access === WRITE) flags |= PageFlag.dirty;
    if ((low & GLOBAL) !== 0 && (cpu.u32[state.cr4 >>> 2] & Cr4.PGE) !== 0) flags |= PageFlag.global;
    break;
  }
  markEntries(cpu, caches, access, lo, hi);
  walkFlags = flags;
  return frame;
}

/** 32-bit paging: two levels of 32-bit entries, with 4 MiB pages (PSE-36) if CR4.PSE. Returns the guest frame. */
function walkNarrow(cpu: Cpu, caches: TranslationCaches, lo: number, hi: number, access: number, user: boolean): number {
  let frame = cpu.u32[state.cr3 >>> 2] >>> 12;
  let flags = PageFlag.user | PageFlag.writable | PageFlag.executable;
  entryCount = 0;
  for (let level = 2; ; level--) {
    const at = frameToOffset(cpu, caches, frame, READ, lo, hi, true) + ((lo >>> (level === 2 ? 22 : 12)) & 1023) * 4;
    const entry = cpu.u32[at >>> 2];
    if ((entry & PRESENT) === 0) return pageFault(cpu, caches, lo, hi, access, user, 0);
    entryOffset[entryCount] = at;
    entryFrame[entryCount++] = frame;
    if ((entry & USER) === 0) flags &= ~PageFlag.user;
    if ((entry & WRITABLE) === 0) flags &= ~PageFlag.writable;
    frame = entry >>> 12;
    const isLarge = level === 2 && (entry & LARGE) !== 0 && (cpu.u32[state.cr4 >>> 2] & Cr4.PSE) !== 0;
    if (level !== 1 && !isLarge) continue;
    if (isLarge) {
      if ((entry & 0x20_0000) !== 0) return pageFault(cpu, caches, lo, hi, access, user, 9);
      // PSE-36: bits 13 to 20 of the entry are bits 32 to 39 of the address.
      frame = (entry >>> 22) * 1024 + ((entry >>> 13) & 0xff) * 0x10_0000 + ((lo >>> 12) & 1023);
      noteLarge(caches, lo, hi);
      noteLarge(caches, lo ^ 0x20_0000, hi);
    }
    if (!permits(cpu, flags, access, user)) return pageFault(cpu, caches, lo, hi, access, user, 1);
    if ((entry & DIRTY) !== 0 || access === WRITE) flags |= PageFlag.dirty;
    if ((entry & GLOBAL) !== 0 && (cpu.u32[state.cr4 >>> 2] & Cr4.PGE) !== 0) flags |= PageFlag.global;
    break;
  }
  markEntries(cpu, caches, access, lo, hi);
  walkFlags = flags;
  return frame;
}

/** Enters a translation into the data TLB under the tag of the privilege that made the access. */
function fillTlb(
  cpu: Cpu,
  caches: TranslationCaches,
  lo: number,
  hi: number,
  offset: number,
  flags: number,
  user: boolean,
): void {
  if (cpu.breakpoints.hasData && cpu.breakpoints.isDataPage(lo, hi)) return;
  const page = lo & ~0xfff;
  const tag = page | (user ? caches.userTag : caches.supervisorTag);
  const entry = tlbEntryWord(lo);
  const i32 = cpu.i32;
  if (!user && (flags & PageFlag.user) !== 0 && (cpu.u32[state.cr4 >>> 2] & Cr4.SMAP) !== 0) caches.noteOpened(entry);
  else if (!user && (flags & PageFlag.global) === 0) caches.systemDataIsPrivate = true;
  i32[entry] = tag;
  i32[entry + 1] = hi;
  const direct = PageFlag.write | PageFlag.dirty;
  if ((flags & direct) === direct && permits(cpu, flags, WRITE, user) && !cpu.holdsCode(offset)) {
    i32[entry + 2] = tag;
    i32[entry + 3] = hi;
  } else {
    i32[entry + 2] = -1;
    i32[entry + 3] = -1;
  }
  i32[entry + 4] = offset - page;
}

/** Bank offset of what the running code can read at a linear address (halves), as far as the data TLB knows; else undefined. */
export function readableAt(cpu: Cpu, low: number, high: number): number | undefined {
  const { u32 } = cpu;
  const entry = tlbEntryWord(low);
  const isKnown = u32[entry] === ((low & ~0xfff) | u32[state.tlbTag >>> 2]) >>> 0 && u32[entry + 1] === high >>> 0;
  return isKnown ? (low + u32[entry + 4]) >>> 0 : undefined;
}

/**
 * Bank offset of the byte at a linear address (halves as signed 32-bit numbers), for an access (READ, WRITE, FETCH) with user
 * or supervisor rights. Raises #PF, or exits for the second level. The address must be canonical.
 */
export function translate(cpu: Cpu, lo: number, hi: number, access: number, user: boolean): number {
  const caches = cachesOf(cpu);
  isApicPage = false;
  const index = (lo >>> 12) & (PAGE_ENTRIES - 1);
  const page = lo & ~0xfff;
  if (caches.pageLow[index] === page && caches.pageHigh[index] === hi) {
    const flags = caches.pageFlags[index];
    const generation = (flags & PageFlag.global) !== 0 ? caches.globalGeneration : caches.generation;
    const needed = access === WRITE ? PageFlag.write | PageFlag.dirty : access;
    if (caches.pageGeneration[index] === generation && (flags & needed) === needed && permits(cpu, flags, access, user)) {
      const offset = caches.pageOffset[index];
      if (access === FETCH) noteFetch(caches, lo, hi, user, (flags & PageFlag.global) !== 0);
      else fillTlb(cpu, caches, lo, hi, offset, flags, user);
      return offset + (lo & 0xfff);
    }
  }
  let frame: number;
  if ((cpu.u32[state.cr0 >>> 2] & Cr0.PG) === 0) {
    frame = lo >>> 12;
    walkFlags = PageFlag.user | PageFlag.writable | PageFlag.executable | PageFlag.dirty;
  } else if ((cpu.u32[state.cr4 >>> 2] & Cr4.PAE) !== 0) frame = walkWide(cpu, caches, lo, hi, access, user);
  else frame = walkNarrow(cpu, caches, lo, hi, access, user);
  let flags = walkFlags;
  const offset = frameToOffset(cpu, caches, frame, access, lo, hi, false);
  if (isApicPage) return offset + (lo & 0xfff);
  flags |= caches.frameRights[frame & (FRAME_ENTRIES - 1)] & 7;
  caches.pageLow[index] = page;
  caches.pageHigh[index] = hi;
  caches.pageGeneration[index] = (flags & PageFlag.global) !== 0 ? caches.globalGeneration : caches.generation;
  caches.pageOffset[index] = offset;
  caches.pageFlags[index] = flags;
  if (access === FETCH) noteFetch(caches, lo, hi, user, (flags & PageFlag.global) !== 0);
  else fillTlb(cpu, caches, lo, hi, offset, flags, user);
  return offset + (lo & 0xfff);
}

/** `translateFetch` for an address in halves (signed 32-bit numbers). */
export function translateFetchHalves(cpu: Cpu, lo: number, hi: number): number {
  if ((cpu.u32[state.efer >>> 2] & Efer.LMA) === 0) hi = 0;
  else if (!isCanonicalHigh(cpu, hi)) return cpu.raise(Vector.GP, 0);
  return translate(cpu, lo, hi, FETCH, cpu.u32[state.cpl >>> 2] === 3);
}

/** Bank offset of code at a linear address, with fetch rights checked; throws. */
export function translateFetch(cpu: Cpu, linear: bigint): number {
  return translateFetchHalves(cpu, Number(BigInt.asIntN(32, linear)), Number(BigInt.asIntN(32, linear >> 32n)));
}

/** Bank offset of a guest physical address for `access`, past paging. `linear`: the address to report in exits. */
export function translatePhysical(cpu: Cpu, gpa: number, access: number, linear?: bigint): number {
  const address = linear ?? 0n;
  const lo = Number(BigInt.asIntN(32, address));
  const hi = Number(BigInt.asIntN(32, address >> 32n));
  return frameToOffset(cpu, cachesOf(cpu), Math.floor(gpa / 4096), access, lo, hi, true) + (gpa % 4096);
}

export function readPhysical64(cpu: Cpu, gpa: Gpa): bigint {
  return cpu.view.getBigUint64(translatePhysical(cpu, gpa, READ), true);
}

export function writePhysical64(cpu: Cpu, gpa: Gpa, value: bigint): void {
  const offset = translatePhysical(cpu, gpa, WRITE);
  cpu.view.setBigUint64(offset, BigInt.asUintN(64, value), true);
  if (cpu.holdsCode((offset & ~0xfff) >>> 0)) cpu.codeWritten(offset, 8);
}
