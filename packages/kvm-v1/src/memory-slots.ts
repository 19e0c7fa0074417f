/** Memory slots of version 1: each carries a reverse map, and a bitmap while its dirty pages are logged. */
import { MEM_LOG_DIRTY_PAGES, type MemoryRegion } from "@mkvm/kvm-core";

export class MemorySlot implements MemoryRegion {
  readonly id: number;
  readonly flags: number;
  readonly baseGfn: number;
  readonly pages: number;
  readonly userspaceAddress: number;
  /**
   * Reverse map: for each guest frame of the slot, the bank offset of the EPT leaf entry that maps it, 0 when none does. One
   * entry suffices, since a VM has one EPT and a frame lies in one place of it.
   */
  readonly rmap: Uint32Array;
  /** One bit a page, as KVM_GET_DIRTY_LOG copies it (whole 64-bit words); undefined when dirty pages are not logged. */
  readonly dirty: Uint8Array | undefined;

  constructor(region: MemoryRegion, from?: MemorySlot) {
    this.id = region.id;
    this.flags = region.flags;
    this.baseGfn = region.baseGfn;
    this.pages = region.pages;
    this.userspaceAddress = region.userspaceAddress;
    this.rmap = from?.rmap ?? new Uint32Array(region.pages);
    this.dirty =
      region.flags & MEM_LOG_DIRTY_PAGES ? (from?.dirty ?? new Uint8Array(dirtyBitmapBytes(region.pages))) : undefined;
  }

  markDirty(gfn: number): void {
    if (this.dirty === undefined) return;
    const index = gfn - this.baseGfn;
    this.dirty[index >> 3]! |= 1 << (index & 7);
  }
}

/** Bytes of a dirty bitmap: rounded up to whole 64-bit words. */
export function dirtyBitmapBytes(pages: number): number {
  return Math.ceil(pages / 64) * 8;
}
