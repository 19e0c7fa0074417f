/** Segment and system descriptors as they lie in the GDT, an LDT and the IDT (Intel SDM Vol. 3A, Segment Descriptors). */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import {
  CS,
  LDTR,
  SEG_ACCESS,
  SEG_BASE,
  SEG_EFFECTIVE_BASE,
  SEG_LIMIT,
  SEG_READ_END,
  SEG_SELECTOR,
  SEG_WRITE_END,
  segmentOffset,
  state,
} from "../cpu-state.ts";
import { Access } from "./bits.ts";
import { readAt } from "./memory-access.ts";
import { isLongMode } from "./processor-mode.ts";

/** The two words of a descriptor, each unsigned; `upper` is the third word of a 16-byte system descriptor, else 0. */
export interface Descriptor {
  low: number;
  high: number;
  upper: number;
}

/** System descriptor types. */
export const SystemType = {
  availableTss16: 1,
  ldt: 2,
  busyTss16: 3,
  callGate16: 4,
  taskGate: 5,
  interruptGate16: 6,
  trapGate16: 7,
  availableTss: 9,
  busyTss: 11,
  callGate: 12,
  interruptGate: 14,
  trapGate: 15,
} as const;

const TWO_32 = 0x1_0000_0000;

/** Access rights that virtual-8086 mode gives every segment. */
export const VIRTUAL_8086_ACCESS = Access.present | (3 << Access.dplShift) | Access.application | 3;

/** Rights in the VMX format, as a segment slot holds them. */
export const rightsOf = (descriptor: Descriptor): number => (descriptor.high >>> 8) & 0xf0ff;
export const typeOf = (descriptor: Descriptor): number => (descriptor.high >>> 8) & 15;
export const dplOf = (descriptor: Descriptor): number => (descriptor.high >>> 13) & 3;
export const isPresent = (descriptor: Descriptor): boolean => (descriptor.high & 0x8000) !== 0;
/** Code or data, as against system. */
export const isApplication = (descriptor: Descriptor): boolean => (descriptor.high & 0x1000) !== 0;
export const isCode = (descriptor: Descriptor): boolean => (descriptor.high & 0x1800) === 0x1800;
export const isConforming = (descriptor: Descriptor): boolean => (descriptor.high & 0x400) !== 0;
/** Writable for data, readable for code. */
export const isWritableOrReadable = (descriptor: Descriptor): boolean => (descriptor.high & 0x200) !== 0;
export const isLongCode = (descriptor: Descriptor): boolean => (descriptor.high & 0x20_0000) !== 0;
export const isBig = (descriptor: Descriptor): boolean => (descriptor.high & 0x40_0000) !== 0;

/** Base in bytes, the low 32 bits of it. */
export const baseOf = ({ low, high }: Descriptor): number =>
  ((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000)) >>> 0;
/** Limit in bytes: offset of the last byte. */
export function limitOf({ low, high }: Descriptor): number {
  const limit = (low & 0xffff) | (high & 0xf_0000);
  return (high & 0x80_0000) !== 0 ? ((limit << 12) | 0xfff) >>> 0 : limit;
}

/** Gates: selector, offset (64 bits in long mode) and the rest. */
export const gateSelector = (gate: Descriptor): number => gate.low >>> 16;
export const gateOffset = (gate: Descriptor): number => ((gate.low & 0xffff) | (gate.high & 0xffff_0000)) >>> 0;

/** Null selectors: index 0 of the GDT at any privilege. */
export const isNull = (selector: number): boolean => (selector & 0xfffc) === 0;

/** Bank offset of the base of the selector's table; 0 when it does not reach to the end of a descriptor of `bytes`, or there is no LDT. */
function tableOf(cpu: Cpu, selector: number, bytes: number): number {
  const end = (selector & 0xfff8) + bytes - 1;
  if ((selector & 4) === 0) return end > cpu.u32[state.gdtrLimit >>> 2] ? 0 : state.gdtrBase;
  const ldt = segmentOffset(LDTR);
  if ((cpu.u32[(ldt + SEG_ACCESS) >>> 2] & Access.unusable) !== 0) return 0;
  return end > cpu.u32[(ldt + SEG_LIMIT) >>> 2] ? 0 : ldt + SEG_BASE;
}

/** Linear address of a descriptor of `bytes`, undefined when its table does not reach so far or there is no LDT. */
export function descriptorAddress(cpu: Cpu, selector: number, bytes = 8): Gva | undefined {
  const base = tableOf(cpu, selector, bytes);
  if (base === 0) return undefined;
  return BigInt.asUintN(64, cpu.u64[base >>> 3] + BigInt(selector & 0xfff8)) as Gva;
}

/**
 * Bank offset from which the `bytes` can be read that lie `offset` bytes behind the linear address in the state block at `base`, with
 * supervisor rights: so system structures are read, and addresses stay out of bigints on the way of every event.
 */
export function readBehind(cpu: Cpu, base: number, offset: number, bytes: number): number {
  const low = cpu.u32[base >>> 2] + offset;
  const high = cpu.u32[(base >>> 2) + 1] + (low >= TWO_32 ? 1 : 0);
  return readAt(cpu, low | 0, high | 0, bytes, true);
}

/** The descriptor at a bank offset. */
export function descriptorAt(cpu: Cpu, at: number): Descriptor {
  return { low: cpu.view.getUint32(at, true), high: cpu.view.getUint32(at + 4, true), upper: 0 };
}

/** The descriptor that a selector names; undefined outside its table. */
export function readDescriptor(cpu: Cpu, selector: number): Descriptor | undefined {
  const base = tableOf(cpu, selector, 8);
  return base === 0 ? undefined : descriptorAt(cpu, readBehind(cpu, base, selector & 0xfff8, 8));
}

/** The type of the fourth word, which has to be that of no descriptor. */
const EXTENDED_TYPE = 0x1f00;

/** A system descriptor (LDT, TSS, call gate), 16 bytes long in long mode; undefined too where its second half looks like another one. */
export function readSystemDescriptor(cpu: Cpu, selector: number): Descriptor | undefined {
  if (!isLongMode(cpu)) return readDescriptor(cpu, selector);
  const base = tableOf(cpu, selector, 16);
  if (base === 0) return undefined;
  const at = readBehind(cpu, base, selector & 0xfff8, 16);
  if ((cpu.view.getUint32(at + 12, true) & EXTENDED_TYPE) !== 0) return undefined;
  return { ...descriptorAt(cpu, at), upper: cpu.view.getUint32(at + 8, true) };
}

/** Sets bits of the type byte in memory (accessed, TSS busy) unless they are set, and in `descriptor`. */
export function markDescriptor(cpu: Cpu, selector: number, descriptor: Descriptor, typeBits: number): void {
  if ((typeOf(descriptor) & typeBits) === typeBits) return;
  const address = descriptorAddress(cpu, selector);
  if (address === undefined) return;
  descriptor.high |= typeBits << 8;
  cpu.writeLinear((address + 5n) as Gva, 1, BigInt((descriptor.high >>> 8) & 0xff), true);
}

/** Writes the architectural part of a segment slot; ends and effective base are `updateSegments`' part. */
export function writeSegment(cpu: Cpu, segment: number, selector: number, base: number, limit: number, access: number): void {
  const slot = segmentOffset(segment);
  cpu.u32[(slot + SEG_BASE) >>> 2] = base;
  cpu.u32[(slot + SEG_BASE + 4) >>> 2] = 0;
  cpu.u32[(slot + SEG_LIMIT) >>> 2] = limit;
  cpu.u32[(slot + SEG_LIMIT + 4) >>> 2] = 0;
  cpu.u32[(slot + SEG_ACCESS) >>> 2] = access;
  cpu.u32[(slot + SEG_SELECTOR) >>> 2] = selector;
}

/** CS as real mode loads it: the limit stays, and with it what tells its unit, and the size that protected mode left. */
export function writeRealCodeSegment(cpu: Cpu, selector: number): void {
  const kept = accessOf(cpu, CS) & (Access.big | Access.granular);
  writeSegment(cpu, CS, selector, selector << 4, segmentLimit(cpu, CS), kept | 0x9b);
}

export const selectorOf = (cpu: Cpu, segment: number): number =>
  cpu.u32[(segmentOffset(segment) + SEG_SELECTOR) >>> 2] & 0xffff;
export const accessOf = (cpu: Cpu, segment: number): number => cpu.u32[(segmentOffset(segment) + SEG_ACCESS) >>> 2];
export const segmentLimit = (cpu: Cpu, segment: number): number => cpu.u32[(segmentOffset(segment) + SEG_LIMIT) >>> 2];
/** Low 32 bits of the base. */
export const segmentBase = (cpu: Cpu, segment: number): number => cpu.u32[(segmentOffset(segment) + SEG_BASE) >>> 2];
export const segmentBase64 = (cpu: Cpu, segment: number): bigint => cpu.u64[(segmentOffset(segment) + SEG_BASE) >>> 3];

/** End of a segment that no limit bounds. */
export const EVERYWHERE = -1;

/** Derived part of a slot: ends of at most 2^32, or EVERYWHERE; the effective base as low and high 32 bits. */
export function writeDerived(
  cpu: Cpu,
  slot: number,
  readEnd: number,
  writeEnd: number,
  effectiveLow: number,
  effectiveHigh: number,
): void {
  const u32 = cpu.u32;
  u32[(slot + SEG_READ_END) >>> 2] = readEnd;
  u32[(slot + SEG_READ_END + 4) >>> 2] = readEnd < 0 ? EVERYWHERE : readEnd === TWO_32 ? 1 : 0;
  u32[(slot + SEG_WRITE_END) >>> 2] = writeEnd;
  u32[(slot + SEG_WRITE_END + 4) >>> 2] = writeEnd < 0 ? EVERYWHERE : writeEnd === TWO_32 ? 1 : 0;
  u32[(slot + SEG_EFFECTIVE_BASE) >>> 2] = effectiveLow;
  u32[(slot + SEG_EFFECTIVE_BASE + 4) >>> 2] = effectiveHigh;
}
