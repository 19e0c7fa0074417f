/** Memory slots of version 2: each knows where large pages may map it. */
import { MEM_LOG_DIRTY_PAGES, type MemoryRegion, PAGE_BYTES } from "@mkvm/kvm-core";

/** Guest frames in a 2 MiB page. */
export const FRAMES_PER_LARGE_PAGE = 512;

export class Slot implements MemoryRegion {
  readonly id: number;
  readonly flags: number;
  readonly baseGfn: number;
  readonly pages: number;
  readonly userspaceAddress: number;
  /** Guest-physical and user addresses agree modulo 2 MiB, so that a large page can map both. */
  readonly congruent: boolean;
  /** One bit a page; undefined while dirty pages are not logged. */
  readonly dirty: Uint8Array | undefined;

  constructor(region: MemoryRegion, dirty?: Uint8Array) {
    this.id = region.id;
    this.flags = region.flags;
    this.baseGfn = region.baseGfn;
    this.pages = region.pages;
    this.userspaceAddress = region.userspaceAddress;
    this.congruent = (region.baseGfn - region.userspaceAddress / PAGE_BYTES) % FRAMES_PER_LARGE_PAGE === 0;
    const words = Math.ceil(region.pages / 64);
    this.dirty = (region.flags & MEM_LOG_DIRTY_PAGES) !== 0 ? (dirty ?? new Uint8Array(words * 8)) : undefined;
  }

  get endGfn(): number {
    return this.baseGfn + this.pages;
  }
  /** User address of a guest frame. */
  userAddress(gfn: number): number {
    return this.userspaceAddress + (gfn - this.baseGfn) * PAGE_BYTES;
  }
  /** A large page around `gfn` lies in the slot. Logged slots are mapped in small pages, so that each write is seen. */
  allowsLargePage(gfn: number): boolean {
    const first = gfn - (gfn % FRAMES_PER_LARGE_PAGE);
    return this.congruent && this.dirty === undefined && first >= this.baseGfn && first + FRAMES_PER_LARGE_PAGE <= this.endGfn;
  }
  markDirty(gfn: number): void {
    if (this.dirty === undefined) return;
    const index = gfn - this.baseGfn;
    this.dirty[index >> 3]! |= 1 << (index & 7);
  }
  isDirty(gfn: number): boolean {
    const index = gfn - this.baseGfn;
    return this.dirty !== undefined && (this.dirty[index >> 3]! & (1 << (index & 7))) !== 0;
  }
}
