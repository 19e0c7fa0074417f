/**
 * Accesses by linear address that the inline TLB probe of generated code cannot serve: first touches, accesses across a page,
 * stores to pages that hold code; and every access that helpers and system code make.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { RSP, SCRATCH, SEG_EFFECTIVE_BASE, SS, segmentOffset, state } from "../cpu-state.ts";
import { op, USES_STACK } from "../operation.ts";
import { Vector } from "./bits.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { isApicPage, READ, setImplicit, translate, WRITE } from "./paging.ts";
import { checksAlignment } from "./translation-caches.ts";

/** Upper half of the effective base that `updateSegments` gives unusable segments outside 64-bit mode, so that no access hits. */
export const UNUSABLE_BASE_HIGH = 0x8000_0000 | 0;

/** Distance from the stack pointer, in bytes, within which an access of an instruction that pushes or pops is taken for that. */
const STACK_REACH = 0x100n;

/**
 * The address faults before paging: #SS for the stack segment, #GP for the rest. Pushes and pops have no memory operand to name
 * the segment, so they are told by where they go: at a stack pointer that is out of bounds itself.
 */
function raiseAddress(cpu: Cpu, lo: number, hi: number): never {
  let isStack = cpu.u16[(cpu.operation + op.segment) >>> 1] === segmentOffset(SS);
  if (!isStack && (cpu.u8[cpu.operation + op.prefixes] & USES_STACK) !== 0) {
    const bits = cpu.u32[state.codeSize >>> 2] === 64 ? 64 : 32;
    const distance = BigInt.asIntN(bits, ((BigInt(hi) << 32n) | BigInt(lo >>> 0)) - cpu.reg(RSP));
    isStack = distance >= -STACK_REACH && distance < STACK_REACH;
  }
  return cpu.raise(isStack ? Vector.SS : Vector.GP, 0);
}

/** Upper half of a linear address computed by generated code: checked in 64-bit mode, dropped elsewhere, where addresses wrap. */
function checkedHigh(cpu: Cpu, lo: number, hi: number): number {
  if (cpu.u32[state.codeSize >>> 2] === 64) {
    if (!isCanonicalHigh(cpu, hi)) raiseAddress(cpu, lo, hi);
    return hi;
  }
  if (hi < 0) raiseAddress(cpu, lo, hi);
  return 0;
}

// The second page of an access across two: halves of its address. Set by `nextPage`, before the first page is looked up: limits and
// canonical form are checked for the whole access before any of it is translated.
let nextLow = 0;
let nextHigh = 0;
function nextPage(cpu: Cpu, lo: number, hi: number): void {
  nextLow = ((lo & ~0xfff) + 4096) | 0;
  nextHigh = hi;
  if (nextLow !== 0) return;
  if (cpu.u32[state.codeSize >>> 2] === 64) nextHigh = checkedHigh(cpu, nextLow, (hi + 1) | 0);
  else {
    // A linear address wraps at 4 GiB, an offset does not: in a segment at base 0 the access is past the limit.
    const slot = cpu.u16[(cpu.operation + op.segment) >>> 1];
    if (slot === 0 || cpu.u32[(slot + SEG_EFFECTIVE_BASE) >>> 2] === 0) raiseAddress(cpu, lo, hi);
    nextHigh = 0;
  }
}

/**
 * #AC for an access that is not a multiple of its size, when page faults have been seen to. Those of 16 bytes have rules of their own:
 * MOVAPS and its kin fault for any, MOVUPS and its kin for none.
 */
function checkAlignment(cpu: Cpu, lo: number, bytes: number): void {
  const mask = bytes === 2 || bytes === 4 || bytes === 8 ? bytes - 1 : bytes === 10 ? 7 : 0;
  if ((lo & mask) !== 0 && checksAlignment(cpu)) cpu.raise(Vector.AC, 0);
}

/** An access that only its alignment can make fault any more: meets the data breakpoints. */
function noteAccess(cpu: Cpu, lo: number, hi: number, bytes: number, isWrite: boolean): void {
  checkAlignment(cpu, lo, bytes);
  const { breakpoints } = cpu;
  if (!breakpoints.hasData) return;
  breakpoints.noteAccess(lo, hi, bytes, isWrite);
  if (breakpoints.hits !== 0) cpu.trapAfterInstruction();
}

const isUser = (cpu: Cpu): boolean => cpu.u32[state.cpl >>> 2] === 3;

function copy(cpu: Cpu, from: number, to: number, bytes: number): void {
  const u8 = cpu.u8;
  for (let i = 0; i < bytes; i++) u8[to + i] = u8[from + i];
}

/** Copies to guest memory in one page and reports the store if decoded code lies there. */
function store(cpu: Cpu, from: number, to: number, bytes: number): void {
  copy(cpu, from, to, bytes);
  if (cpu.holdsCode((to & ~0xfff) >>> 0)) cpu.codeWritten(to, bytes);
}

/** Whether an access of `bytes` may meet a data breakpoint, which is for the interpreter to note. */
export function mayMeetBreakpoint(cpu: Cpu, lo: number, hi: number, bytes: number): boolean {
  const { breakpoints } = cpu;
  if (!breakpoints.hasData) return false;
  const high = cpu.u32[state.codeSize >>> 2] === 64 ? hi : 0;
  const last = (lo + bytes - 1) | 0;
  const carry = last >>> 0 < lo >>> 0 ? 1 : 0;
  return breakpoints.isDataPage(lo, high) || breakpoints.isDataPage(last, (high + carry) | 0);
}

// The page of the local APIC, which is no memory. An access that is partly there, or longer than a register, makes `apic` exit.

function readApic(cpu: Cpu, lo: number, bytes: number): number {
  cpu.view.setUint32(SCRATCH, cpu.guest.apic.read(lo & 0xfff, bytes), true);
  return SCRATCH;
}
function writeApic(cpu: Cpu, lo: number, bytes: number): void {
  cpu.guest.apic.write(lo & 0xfff, bytes, valueAt(cpu, state.storeValue, bytes));
}
function valueAt(cpu: Cpu, at: number, bytes: number): number {
  const word = cpu.view.getUint32(at, true);
  return bytes >= 4 ? word : word & (2 ** (8 * bytes) - 1);
}

/**
 * Whether a store of `bytes` (1 to 32) would change a page that code was decoded from, or no memory at all. Faults or exits as the
 * store would.
 */
export function writeReachesCode(cpu: Cpu, lo: number, hi: number, bytes: number): boolean {
  hi = checkedHigh(cpu, lo, hi);
  const user = isUser(cpu);
  const isAcross = bytes > 4096 - (lo & 0xfff);
  if (isAcross) nextPage(cpu, lo, hi);
  const first = translate(cpu, lo, hi, WRITE, user);
  if (isApicPage || cpu.holdsCode((first & ~0xfff) >>> 0)) return true;
  if (!isAcross) return false;
  const second = translate(cpu, nextLow, nextHigh, WRITE, user);
  return isApicPage || cpu.holdsCode((second & ~0xfff) >>> 0);
}

/** Bank offset from which a value of `bytes` (1 to 32) can be read. Faults or exits by throwing. */
export function readSlow(cpu: Cpu, lo: number, hi: number, bytes: number): number {
  hi = checkedHigh(cpu, lo, hi);
  const inPage = 4096 - (lo & 0xfff);
  const user = isUser(cpu);
  if (bytes > inPage) nextPage(cpu, lo, hi);
  const first = translate(cpu, lo, hi, READ, user);
  if (isApicPage) return readApic(cpu, lo, bytes);
  if (bytes <= inPage) {
    noteAccess(cpu, lo, hi, bytes, false);
    return first;
  }
  const second = translate(cpu, nextLow, nextHigh, READ, user);
  if (isApicPage) return readApic(cpu, nextLow, bytes);
  noteAccess(cpu, lo, hi, bytes, false);
  copy(cpu, first, SCRATCH, inPage);
  copy(cpu, second, SCRATCH + inPage, bytes - inPage);
  return SCRATCH;
}

/** Stores `bytes` (1 to 32) of `state.storeValue`, whole, or throws with nothing written. */
export function writeSlow(cpu: Cpu, lo: number, hi: number, bytes: number): void {
  hi = checkedHigh(cpu, lo, hi);
  const inPage = 4096 - (lo & 0xfff);
  const user = isUser(cpu);
  if (bytes > inPage) nextPage(cpu, lo, hi);
  const first = translate(cpu, lo, hi, WRITE, user);
  if (isApicPage) {
    writeApic(cpu, lo, bytes);
    return;
  }
  if (bytes <= inPage) {
    noteAccess(cpu, lo, hi, bytes, true);
    store(cpu, state.storeValue, first, bytes);
    return;
  }
  const second = translate(cpu, nextLow, nextHigh, WRITE, user);
  if (isApicPage) {
    writeApic(cpu, nextLow, bytes);
    return;
  }
  noteAccess(cpu, lo, hi, bytes, true);
  store(cpu, state.storeValue, first, inPage);
  store(cpu, state.storeValue + inPage, second, bytes - inPage);
}

// The read-modify-write in flight through SCRATCH. One instruction has at most one, and nothing runs between its halves.
let pendingFirst = 0;
let pendingFirstBytes = 0;
let pendingSecond = 0;
let pendingSecondBytes = 0;
/** Offset in the page of the local APIC to which the value goes, or -1. */
let pendingApic = -1;

function updateApic(cpu: Cpu, lo: number, bytes: number): number {
  cpu.guest.apic.checkWrite(lo & 0xfff, bytes);
  pendingApic = lo & 0xfff;
  pendingFirstBytes = bytes;
  return readApic(cpu, lo, bytes);
}

/** Checks read and write of `bytes` (1 to 32); bank offset to read from and store to, in SCRATCH where `rmwFinish` must follow. */
export function rmwSlow(cpu: Cpu, lo: number, hi: number, bytes: number): number {
  hi = checkedHigh(cpu, lo, hi);
  const inPage = 4096 - (lo & 0xfff);
  const user = isUser(cpu);
  // One that began on that page may have exited before its end
  pendingApic = -1;
  if (bytes > inPage) nextPage(cpu, lo, hi);
  const first = translate(cpu, lo, hi, WRITE, user);
  if (isApicPage) return updateApic(cpu, lo, bytes);
  if (bytes <= inPage) {
    noteAccess(cpu, lo, hi, bytes, true);
    if (!cpu.holdsCode((first & ~0xfff) >>> 0)) return first;
    pendingFirstBytes = bytes;
    pendingSecondBytes = 0;
  } else {
    pendingSecond = translate(cpu, nextLow, nextHigh, WRITE, user);
    if (isApicPage) return updateApic(cpu, nextLow, bytes);
    noteAccess(cpu, lo, hi, bytes, true);
    pendingFirstBytes = inPage;
    pendingSecondBytes = bytes - inPage;
    copy(cpu, pendingSecond, SCRATCH + inPage, pendingSecondBytes);
  }
  pendingFirst = first;
  copy(cpu, first, SCRATCH, pendingFirstBytes);
  return SCRATCH;
}

/** The value in SCRATCH was stored: writes it to its place. */
export function rmwFinish(cpu: Cpu): void {
  if (pendingApic >= 0) {
    cpu.guest.apic.write(pendingApic, pendingFirstBytes, valueAt(cpu, SCRATCH, pendingFirstBytes));
    return;
  }
  store(cpu, SCRATCH, pendingFirst, pendingFirstBytes);
  if (pendingSecondBytes > 0) store(cpu, SCRATCH + pendingFirstBytes, pendingSecond, pendingSecondBytes);
}

const lowOf = (address: bigint): number => Number(BigInt.asIntN(32, address));

/** Upper half of an address that system code computed; a 64-bit one must be canonical. */
function highOf(cpu: Cpu, address: bigint): number {
  const hi = Number(BigInt.asIntN(32, address >> 32n));
  if (hi === 0 || isCanonicalHigh(cpu, hi)) return hi;
  return cpu.raise(Vector.GP, 0);
}

function advance(address: bigint, bytes: number): bigint {
  return BigInt.asUintN(64, address + BigInt(bytes));
}

/**
 * A translation for an access of system code. `supervisor` true: one that an instruction makes to a system data structure, whatever
 * CPL is; undefined: one of the running code.
 */
function translateAs(cpu: Cpu, low: number, high: number, access: number, supervisor: boolean | undefined): number {
  if (supervisor === undefined) return translate(cpu, low, high, access, isUser(cpu));
  if (!supervisor) return translate(cpu, low, high, access, true);
  setImplicit(true);
  try {
    return translate(cpu, low, high, access, false);
  } finally {
    setImplicit(false);
  }
}

/** System data structures, which the processor reads for itself, meet no breakpoints. */
function noteRange(
  cpu: Cpu,
  low: number,
  high: number,
  bytes: number,
  isWrite: boolean,
  supervisor: boolean | undefined,
): void {
  if (supervisor === undefined && bytes <= 10) checkAlignment(cpu, low, bytes);
  if (!cpu.breakpoints.hasData || (supervisor === true && !isWrite)) return;
  const { breakpoints } = cpu;
  breakpoints.noteAccess(low, high, bytes, isWrite);
  if (breakpoints.hits !== 0) cpu.trapAfterInstruction();
}

/** A range that reaches into the page of the local APIC and is no access to a single register: exits, unless it only probes one. */
function offersApic(cpu: Cpu, low: number, bytes: number, access: number): void {
  if (access === WRITE) cpu.guest.apic.checkWrite(low & 0xfff, bytes);
  else cpu.guest.apic.read(low & 0xfff, bytes);
}

/** Calls `piece` with bank offset, position and length of each part of the range that lies in one page. */
function forEachPage(
  cpu: Cpu,
  address: bigint,
  bytes: number,
  access: number,
  supervisor: boolean | undefined,
  piece: (offset: number, position: number, length: number) => void,
): void {
  for (let position = 0; position < bytes; ) {
    const here = advance(address, position);
    const low = lowOf(here);
    const length = Math.min(bytes - position, 4096 - (low & 0xfff));
    const offset = translateAs(cpu, low, highOf(cpu, here), access, supervisor);
    if (isApicPage) offersApic(cpu, low, bytes, access);
    piece(offset, position, length);
    position += length;
  }
}

/** Bank offset from which `bytes` (1 to 32) at a linear address (halves) can be read, until the next access of this kind. */
export function readAt(cpu: Cpu, low: number, high: number, bytes: number, supervisor: boolean | undefined): number {
  if (high !== 0 && !isCanonicalHigh(cpu, high)) cpu.raise(Vector.GP, 0);
  let at = SCRATCH;
  if ((low & 0xfff) + bytes <= 4096) {
    at = translateAs(cpu, low, high, READ, supervisor);
    if (isApicPage) at = readApic(cpu, low, bytes);
  } else {
    const address = (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
    forEachPage(cpu, address, bytes, READ, supervisor, (offset, position, length) => {
      copy(cpu, offset, SCRATCH + position, length);
    });
  }
  noteRange(cpu, low, high, bytes, false, supervisor);
  return at;
}

export function readLinear(cpu: Cpu, address: Gva, bytes: 1 | 2 | 4 | 8, supervisor?: boolean): bigint {
  const at = readAt(cpu, lowOf(address), Number(BigInt.asIntN(32, address >> 32n)), bytes, supervisor);
  switch (bytes) {
    case 1:
      return BigInt(cpu.u8[at]);
    case 2:
      return BigInt(cpu.view.getUint16(at, true));
    case 4:
      return BigInt(cpu.view.getUint32(at, true));
    default:
      return cpu.view.getBigUint64(at, true);
  }
}

/** Faults as a write of `bytes` there would. */
export function probeWrite(cpu: Cpu, address: Gva, bytes: number, supervisor?: boolean): void {
  forEachPage(cpu, address, bytes, WRITE, supervisor, () => {});
}

export function writeLinear(cpu: Cpu, address: Gva, bytes: 1 | 2 | 4 | 8, value: bigint, supervisor?: boolean): void {
  const low = lowOf(address);
  const high = highOf(cpu, address);
  if ((low & 0xfff) + bytes > 4096) {
    probeWrite(cpu, address, bytes, supervisor);
    noteRange(cpu, low, high, bytes, true, supervisor);
    cpu.view.setBigUint64(SCRATCH, BigInt.asUintN(64, value), true);
    forEachPage(cpu, address, bytes, WRITE, supervisor, (offset, position, length) => {
      store(cpu, SCRATCH + position, offset, length);
    });
    return;
  }
  const at = translateAs(cpu, low, high, WRITE, supervisor);
  if (isApicPage) {
    cpu.guest.apic.write(low & 0xfff, bytes, Number(BigInt.asUintN(Math.min(bytes, 4) * 8, value)));
    return;
  }
  noteRange(cpu, low, high, bytes, true, supervisor);
  switch (bytes) {
    case 1:
      cpu.u8[at] = lowOf(value);
      break;
    case 2:
      cpu.view.setUint16(at, lowOf(value) & 0xffff, true);
      break;
    case 4:
      cpu.view.setUint32(at, lowOf(value) >>> 0, true);
      break;
    default:
      cpu.view.setBigUint64(at, BigInt.asUintN(64, value), true);
  }
  if (cpu.holdsCode((at & ~0xfff) >>> 0)) cpu.codeWritten(at, bytes);
}

export function readLinearBytes(cpu: Cpu, address: Gva, target: Uint8Array, supervisor?: boolean): void {
  forEachPage(cpu, address, target.length, READ, supervisor, (offset, position, length) => {
    target.set(cpu.u8.subarray(offset, offset + length), position);
  });
  noteRange(cpu, lowOf(address), highOf(cpu, address), target.length, false, supervisor);
}

export function writeLinearBytes(cpu: Cpu, address: Gva, source: Uint8Array, supervisor?: boolean): void {
  probeWrite(cpu, address, source.length, supervisor);
  noteRange(cpu, lowOf(address), highOf(cpu, address), source.length, true, supervisor);
  forEachPage(cpu, address, source.length, WRITE, supervisor, (offset, position, length) => {
    cpu.u8.set(source.subarray(position, position + length), offset);
    if (cpu.holdsCode((offset & ~0xfff) >>> 0)) cpu.codeWritten(offset, length);
  });
}
