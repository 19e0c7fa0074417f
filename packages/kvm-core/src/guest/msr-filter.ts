/** KVM_X86_SET_MSR_FILTER: which MSRs the guest's RDMSR and WRMSR reach (Linux's Documentation/virt/kvm/api.rst). */
import { MsrFilterFlag } from "@mkvm/kvm-abi";

export interface MsrFilterRange {
  /** MsrFilterFlag: for reads, writes or both. */
  readonly flags: number;
  readonly base: number;
  /** MSRs, and bits in the bitmap. */
  readonly count: number;
  /** 1 allows, 0 denies; whole 64-bit words, zero behind the last MSR. */
  readonly bitmap: Uint8Array;
}

const FIRST_X2APIC = 0x800;
const LAST_X2APIC = 0x8ff;

export class MsrFilter {
  /** For MSRs in no range. */
  readonly defaultAllow: boolean;
  /** The first that has an MSR decides. */
  readonly ranges: readonly MsrFilterRange[];

  constructor(defaultAllow: boolean, ranges: readonly MsrFilterRange[]) {
    this.defaultAllow = defaultAllow;
    this.ranges = ranges;
  }

  allows(index: number, isWrite: boolean): boolean {
    // The local APIC's cannot be filtered: processors virtualize them
    if (index >= FIRST_X2APIC && index <= LAST_X2APIC) return true;
    const access = isWrite ? MsrFilterFlag.KVM_MSR_FILTER_WRITE : MsrFilterFlag.KVM_MSR_FILTER_READ;
    for (const { flags, base, count, bitmap } of this.ranges) {
      const at = index - base;
      if (at >= 0 && at < count && (flags & access) !== 0) return (bitmap[at >> 3]! & (1 << (at & 7))) !== 0;
    }
    return this.defaultAllow;
  }
}

/** `bitmap` in whole words, without what is behind its last bit: equal filters have equal bytes. */
export function filterBitmap(bitmap: Uint8Array, count: number): Uint8Array {
  const words = new Uint8Array(Math.ceil(count / 64) * 8);
  words.set(bitmap.subarray(0, Math.ceil(count / 8)));
  if ((count & 7) !== 0) words[count >> 3]! &= (1 << (count & 7)) - 1;
  return words;
}
