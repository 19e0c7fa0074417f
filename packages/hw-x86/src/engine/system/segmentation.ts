/** Segment registers: loads with their checks, derived limits, and accesses above them (Intel SDM Vol. 3A, Protection). */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, ES, FS, GS, LDTR, SEGMENT_STRIDE, SS, segmentOffset, state, TR } from "../cpu-state.ts";
import { updateLookupBase } from "../lookup-base.ts";
import { Access, Vector } from "./bits.ts";
import {
  accessOf,
  baseOf,
  type Descriptor,
  dplOf,
  EVERYWHERE,
  isApplication,
  isCode,
  isConforming,
  isNull,
  isPresent,
  isWritableOrReadable,
  limitOf,
  markDescriptor,
  readDescriptor,
  readSystemDescriptor,
  rightsOf,
  SystemType,
  segmentBase,
  segmentBase64,
  segmentLimit,
  typeOf,
  writeDerived,
  writeSegment,
} from "./descriptors.ts";
import { isCanonical, isLinearAddress } from "./linear-address.ts";
import { UNUSABLE_BASE_HIGH } from "./memory-access.ts";
import { cplOf, hasParagraphSegments, is64Bit, isLongMode, isProtected, isVirtual8086, setCpl } from "./processor-mode.ts";
import { updateTags } from "./translation-caches.ts";

const ALL_ONES = 0xffff_ffff;

/** Stack size and mask from SS, or 64 bits in 64-bit mode. */
function updateStackSize(cpu: Cpu): void {
  const size = is64Bit(cpu) ? 64 : (accessOf(cpu, SS) & Access.big) !== 0 ? 32 : 16;
  cpu.u32[state.stackSize >>> 2] = size;
  cpu.u32[state.stackMask >>> 2] = size === 16 ? 0xffff : ALL_ONES;
  cpu.u32[(state.stackMask >>> 2) + 1] = size === 64 ? ALL_ONES : 0;
}

/** Ends and effective base of one of ES to GS from its architectural part. */
export function updateSegment(cpu: Cpu, segment: number): void {
  const slot = segmentOffset(segment);
  if (is64Bit(cpu)) {
    const isBased = segment === FS || segment === GS;
    const low = isBased ? cpu.u32[slot >>> 2] : 0;
    const high = isBased ? cpu.u32[(slot >>> 2) + 1] : 0;
    writeDerived(cpu, slot, EVERYWHERE, EVERYWHERE, low, high);
    return;
  }
  const access = accessOf(cpu, segment);
  const base = segmentBase(cpu, segment);
  const end = segmentLimit(cpu, segment) + 1;
  if (hasParagraphSegments(cpu)) {
    // Real mode reads and writes through any segment, CS included, up to the cached limit.
    writeDerived(cpu, slot, end, end, base, 0);
  } else if ((access & Access.unusable) !== 0) {
    writeDerived(cpu, slot, 0, 0, 0, UNUSABLE_BASE_HIGH);
  } else if ((access & Access.code) !== 0) {
    writeDerived(cpu, slot, (access & Access.readable) !== 0 ? end : 0, 0, base, 0);
  } else if ((access & Access.expandDown) !== 0) {
    writeDerived(cpu, slot, 0, 0, base, 0);
  } else {
    writeDerived(cpu, slot, end, (access & Access.writable) !== 0 ? end : 0, base, 0);
  }
  if (segment === SS) updateStackSize(cpu);
}

/** Everything derived from segments, CR0.PE, EFER.LMA and RFLAGS.VM: CPL, code and stack size, ends, tags. */
export function updateSegments(cpu: Cpu): void {
  const cs = accessOf(cpu, CS);
  const codeSize = isLongMode(cpu) && (cs & Access.long) !== 0 ? 64 : (cs & Access.big) !== 0 ? 32 : 16;
  cpu.u32[state.codeSize >>> 2] = codeSize;
  let cpl = 0;
  if (isProtected(cpu)) cpl = isVirtual8086(cpu) ? 3 : (accessOf(cpu, SS) >>> Access.dplShift) & 3;
  setCpl(cpu, cpl);
  for (let segment = ES; segment <= GS; segment++) updateSegment(cpu, segment);
  updateStackSize(cpu);
  updateLookupBase(cpu);
  updateTags(cpu);
}

function stackOrGeneral(segment: number): number {
  return segment === SS ? Vector.SS : Vector.GP;
}

/** Whether an access of `bytes` at the offset is inside a segment that is not flat; offsets as unsigned halves. */
function isInside(access: number, limit: number, low: number, high: number, bytes: number): boolean {
  if (high !== 0) return false;
  const last = low + bytes - 1;
  if ((access & (Access.code | Access.expandDown)) !== Access.expandDown) return last <= limit;
  return low > limit && last <= ((access & Access.big) !== 0 ? ALL_ONES : 0xffff);
}

/**
 * An access was not below readEnd or writeEnd: passes, or raises #GP or #SS. `segment` is a segment's number or the bank offset of
 * its slot; lo and hi are the halves of the offset.
 */
export function segmentSlow(cpu: Cpu, segment: number, lo: number, hi: number, bytes: number, isWrite: boolean): void {
  const index = segment >= state.segments ? (segment - state.segments) / SEGMENT_STRIDE : segment;
  if (is64Bit(cpu) || index > GS) return;
  const access = accessOf(cpu, index);
  let isAllowed: boolean;
  if (hasParagraphSegments(cpu)) isAllowed = hi === 0 && (lo >>> 0) + bytes - 1 <= segmentLimit(cpu, index);
  else {
    const isPermitted =
      (access & Access.code) !== 0
        ? !isWrite && (access & Access.readable) !== 0
        : !isWrite || (access & Access.writable) !== 0;
    isAllowed =
      (access & Access.unusable) === 0 && isPermitted && isInside(access, segmentLimit(cpu, index), lo >>> 0, hi >>> 0, bytes);
  }
  if (!isAllowed) cpu.raise(stackOrGeneral(index), 0);
}

/** Linear address of segment:offset, with the checks of an access of `bytes`. */
export function linear(cpu: Cpu, segment: number, offset: bigint, bytes: number, isWrite: boolean): Gva {
  if (is64Bit(cpu)) {
    const base = segment === FS || segment === GS ? segmentBase64(cpu, segment) : 0n;
    const address = BigInt.asUintN(64, base + offset);
    if (!isCanonical(cpu, address) || !isCanonical(cpu, address + BigInt(bytes - 1))) {
      cpu.raise(stackOrGeneral(segment), 0);
    }
    return address as Gva;
  }
  segmentSlow(cpu, segment, Number(BigInt.asIntN(32, offset)), Number(BigInt.asIntN(32, offset >> 32n)), bytes, isWrite);
  return BigInt.asUintN(32, segmentBase64(cpu, segment) + offset) as Gva;
}

/**
 * Sets the accessed bit in memory, which may fault: transfers do it for all segments that they load before they change anything, and
 * `loadDescriptor` then finds it set.
 */
export function markAccessed(cpu: Cpu, selector: number, descriptor: Descriptor): void {
  markDescriptor(cpu, selector, descriptor, 1);
}

/** A descriptor in the segment's slot, with the accessed bit set in memory. */
export function loadDescriptor(cpu: Cpu, segment: number, selector: number, descriptor: Descriptor): void {
  markAccessed(cpu, selector, descriptor);
  writeSegment(cpu, segment, selector, baseOf(descriptor), limitOf(descriptor), rightsOf(descriptor));
}

/** Null in a data segment register, or in SS of 64-bit mode (where DPL still tells the CPL). */
export function loadNull(cpu: Cpu, segment: number, selector: number, dpl: number): void {
  writeSegment(cpu, segment, selector, 0, 0, Access.unusable | (dpl << Access.dplShift));
}

function loadParagraph(cpu: Cpu, segment: number, selector: number): void {
  let limit = 0xffff;
  let access = 0xf3;
  if (!isVirtual8086(cpu)) {
    // Limit and size survive from protected mode ("big real mode").
    const old = accessOf(cpu, segment);
    access = (old & (Access.big | Access.granular)) | 0x93;
    if ((old & Access.unusable) === 0) limit = segmentLimit(cpu, segment);
  }
  writeSegment(cpu, segment, selector, selector << 4, limit, access);
}

/** On AMD's processors FS and GS keep their base in long mode where they become null; Intel's clear it. */
const keepsNullBase = (cpu: Cpu, segment: number): boolean =>
  (segment === FS || segment === GS) && isLongMode(cpu) && cpu.model.vendor === "amd";

/** MOV to, POP of and LxS to ES, SS, DS, FS or GS. Changes nothing when it raises. */
export function loadSegment(cpu: Cpu, segment: number, selector: number): void {
  selector &= 0xffff;
  const error = selector & 0xfffc;
  if (hasParagraphSegments(cpu)) {
    loadParagraph(cpu, segment, selector);
    updateSegment(cpu, segment);
    updateLookupBase(cpu);
    return;
  }
  const cpl = cplOf(cpu);
  if (isNull(selector)) {
    if (segment === SS && (!is64Bit(cpu) || cpl === 3 || (selector & 3) !== cpl)) cpu.raise(Vector.GP, 0);
    const base = segmentBase64(cpu, segment);
    loadNull(cpu, segment, selector, segment === SS ? cpl : 0);
    if (keepsNullBase(cpu, segment)) cpu.set64(segmentOffset(segment), base);
    updateSegment(cpu, segment);
    updateLookupBase(cpu);
    return;
  }
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined || !isApplication(descriptor)) cpu.raise(Vector.GP, error);
  const rpl = selector & 3;
  const dpl = dplOf(descriptor);
  if (segment === SS) {
    if (isCode(descriptor) || !isWritableOrReadable(descriptor) || rpl !== cpl || dpl !== cpl) cpu.raise(Vector.GP, error);
    if (!isPresent(descriptor)) cpu.raise(Vector.SS, error);
  } else {
    if (isCode(descriptor) && !isWritableOrReadable(descriptor)) cpu.raise(Vector.GP, error);
    if ((!isCode(descriptor) || !isConforming(descriptor)) && (rpl > dpl || cpl > dpl)) cpu.raise(Vector.GP, error);
    if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
  }
  loadDescriptor(cpu, segment, selector, descriptor);
  updateSegment(cpu, segment);
  updateLookupBase(cpu);
}

/** #GP(error) for a base that no linear address has. */
function checkSystemBase(cpu: Cpu, descriptor: Descriptor, error: number): void {
  const base = (BigInt(descriptor.upper) << 32n) | BigInt(baseOf(descriptor));
  if (isLongMode(cpu) && !isLinearAddress(cpu.model, base)) cpu.raise(Vector.GP, error);
}

function loadSystemSegment(cpu: Cpu, segment: number, selector: number, descriptor: Descriptor): void {
  writeSegment(cpu, segment, selector, baseOf(descriptor), limitOf(descriptor), rightsOf(descriptor));
  cpu.u32[(segmentOffset(segment) >>> 2) + 1] = descriptor.upper;
}

/** LLDT: protection was checked by the row. */
export function loadLdt(cpu: Cpu, selector: number): void {
  const error = selector & 0xfffc;
  if (isNull(selector)) {
    loadNull(cpu, LDTR, selector, 0);
    return;
  }
  const descriptor = (selector & 4) === 0 ? readSystemDescriptor(cpu, selector) : undefined;
  if (descriptor === undefined || isApplication(descriptor) || typeOf(descriptor) !== SystemType.ldt) {
    cpu.raise(Vector.GP, error);
  }
  if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
  checkSystemBase(cpu, descriptor, error);
  loadSystemSegment(cpu, LDTR, selector, descriptor);
}

/** LTR: marks the TSS busy. */
export function loadTaskRegister(cpu: Cpu, selector: number): void {
  const error = selector & 0xfffc;
  if (isNull(selector)) cpu.raise(Vector.GP, 0);
  const descriptor = (selector & 4) === 0 ? readSystemDescriptor(cpu, selector) : undefined;
  if (descriptor === undefined || isApplication(descriptor)) cpu.raise(Vector.GP, error);
  const type = typeOf(descriptor);
  if (type !== SystemType.availableTss && (isLongMode(cpu) || type !== SystemType.availableTss16)) cpu.raise(Vector.GP, error);
  if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
  checkSystemBase(cpu, descriptor, error);
  markDescriptor(cpu, selector, descriptor, 2);
  loadSystemSegment(cpu, TR, selector, descriptor);
}
