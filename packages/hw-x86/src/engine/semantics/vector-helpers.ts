/** Parts of integer vector rows that are left to TypeScript: string comparisons, sums of differences, least word. */
import type { Cpu } from "../cpu.ts";
import { DESTINATION, RESULT, SOURCE_VECTOR } from "../fpu/sse.ts";
import type { HelperTable } from "../helpers.ts";

// ---- PCMPESTRI and its kin (Intel SDM Vol. 1, Comparison and Aggregation Operations) ----

const EQUAL_ANY = 0,
  RANGES = 1,
  EQUAL_EACH = 2;

// The elements of both vectors. Nothing runs between their being read and compared
const first = new Int32Array(16);
const second = new Int32Array(16);
function readElements(cpu: Cpu, slot: number, areWords: boolean, areSigned: boolean, into: Int32Array): void {
  const count = areWords ? 8 : 16;
  for (let i = 0; i < count; i++) {
    const value = areWords ? cpu.u16[(slot >> 1) + i] : cpu.u8[slot + i];
    const unused = areWords ? 16 : 24;
    into[i] = areSigned ? (value << unused) >> unused : value;
  }
}

function isAnyOf(a: Int32Array, lengthA: number, value: number): boolean {
  for (let i = 0; i < lengthA; i++) if (a[i] === value) return true;
  return false;
}
function isInRanges(a: Int32Array, lengthA: number, value: number): boolean {
  for (let i = 0; i + 1 < lengthA; i += 2) if (value >= a[i] && value <= a[i + 1]) return true;
  return false;
}

/** Bit j: what the aggregation says of element j of `b`, of `count`. */
function aggregate(kind: number, a: Int32Array, lengthA: number, b: Int32Array, lengthB: number, count: number): number {
  let result = 0;
  for (let j = 0; j < count; j++) {
    const isValid = j < lengthB;
    let holds: boolean;
    if (kind === EQUAL_ANY) holds = isValid && isAnyOf(a, lengthA, b[j]);
    else if (kind === RANGES) holds = isValid && isInRanges(a, lengthA, b[j]);
    else if (kind === EQUAL_EACH) {
      const isValidA = j < lengthA;
      holds = isValid && isValidA ? a[j] === b[j] : !isValid && !isValidA;
    } else {
      holds = true;
      for (let i = 0; i < lengthA && i + j < count; i++) if (i + j >= lengthB || a[i] !== b[i + j]) holds = false;
    }
    if (holds) result |= 1 << j;
  }
  return result;
}

function lengthOf(elements: Int32Array, count: number): number {
  for (let i = 0; i < count; i++) if (elements[i] === 0) return i;
  return count;
}

/** `control`: the immediate, the lengths above it by bytes, and bit 24 when they are to be found. See sse4-integer.ts. */
function comparePackedStrings(cpu: Cpu, control: number): number {
  const areWords = (control & 1) !== 0;
  const count = areWords ? 8 : 16;
  readElements(cpu, DESTINATION, areWords, (control & 2) !== 0, first);
  readElements(cpu, SOURCE_VECTOR, areWords, (control & 2) !== 0, second);
  const isImplicit = (control & 0x100_0000) !== 0;
  const lengthA = isImplicit ? lengthOf(first, count) : Math.min((control >> 8) & 255, count);
  const lengthB = isImplicit ? lengthOf(second, count) : Math.min((control >> 16) & 255, count);
  let bits = aggregate((control >> 2) & 3, first, lengthA, second, lengthB, count);
  const polarity = (control >> 4) & 3;
  const all = (1 << count) - 1;
  if (polarity === 1) bits ^= all;
  else if (polarity === 3) bits ^= (1 << lengthB) - 1;
  const wantsHigh = (control & 0x40) !== 0;
  const index = bits === 0 ? count : wantsHigh ? 31 - Math.clz32(bits) : 31 - Math.clz32(bits & -bits);
  for (let i = 0; i < 4; i++) cpu.u32[(RESULT >> 2) + i] = 0;
  if (!wantsHigh) cpu.u16[RESULT >> 1] = bits;
  else if (areWords) for (let i = 0; i < count; i++) cpu.u16[(RESULT >> 1) + i] = (bits >> i) & 1 ? 0xffff : 0;
  else for (let i = 0; i < count; i++) cpu.u8[RESULT + i] = (bits >> i) & 1 ? 0xff : 0;
  const flags =
    (bits !== 0 ? 1 : 0) | (lengthB < count ? 0x40 : 0) | (lengthA < count ? 0x80 : 0) | ((bits & 1) !== 0 ? 0x800 : 0);
  return flags | (index << 16);
}

export const vectorHelpers: HelperTable = {
  comparePackedStrings,

  /** PHMINPOSUW: the least word of the source and where it first is. */
  leastWord(cpu) {
    const words = cpu.u16.subarray(SOURCE_VECTOR >> 1, (SOURCE_VECTOR >> 1) + 8);
    const least = Math.min(...words);
    const index = words.indexOf(least);
    cpu.u8.fill(0, RESULT, RESULT + 16);
    cpu.u16[RESULT >> 1] = least;
    cpu.u16[(RESULT >> 1) + 1] = index;
  },

  /** MPSADBW: sums of absolute differences of four bytes of the source with those from each of eight places of the destination. */
  sumsOfDifferences(cpu, control) {
    const from = DESTINATION + (control & 4);
    const block = SOURCE_VECTOR + (control & 3) * 4;
    for (let i = 0; i < 8; i++) {
      let sum = 0;
      for (let j = 0; j < 4; j++) sum += Math.abs(cpu.u8[from + i + j] - cpu.u8[block + j]);
      cpu.u16[(RESULT >> 1) + i] = sum;
    }
  },
};
