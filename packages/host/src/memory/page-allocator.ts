/**
 * The pages of one bank. A page is the kernel's (module tables), user space's (mapped), both (kvm_run, mapped by the VMM), or
 * free; it becomes free when nobody holds it. User memory grows from the bottom, kernel pages from the top, so that guest RAM
 * finds one contiguous place.
 */
const kernelBit = 1;
const userBit = 2;
/** Was handed out before: must be zeroed when handed out again. A fresh bank is zero. */
const touchedBit = 4;
const holders = kernelBit | userBit;
/** The holders of four pages in one word. */
const fourHolders = holders * 0x0101_0101;

export const pageBytes = 4096;

interface OtherPages {
  readonly state: Uint8Array;
  readonly pages: readonly number[];
}
const nobodys: OtherPages = { state: new Uint8Array(0), pages: [] };

export class PageAllocator {
  #state: Uint8Array;
  readonly #u8: Uint8Array;
  readonly #firstPage: number;
  /** Below: no free page. A hint that speeds up searches from the bottom. */
  #lowHint: number;
  /** Above or at: no free page. */
  #highHint: number;
  #free: number;
  #kernelPages = 0;
  /** Kernel pages that the allocator holds from which this one took the bank over, and what that says now. */
  #others: OtherPages = nobodys;

  /** Of a bank that another allocator has, until `takeOver`: only these pages are to be handed out. */
  static within(u8: Uint8Array, firstFreeOffset: number, offset: number, count: number): PageAllocator {
    const pages = new PageAllocator(u8, firstFreeOffset);
    const first = offset / pageBytes;
    pages.#state.fill(kernelBit);
    pages.#state.fill(0, first, first + count);
    pages.#free = count;
    pages.#lowHint = first;
    pages.#highHint = first + count;
    return pages;
  }

  /** `u8`: the whole bank. Pages below `firstFreeOffset` are never handed out. */
  constructor(u8: Uint8Array, firstFreeOffset: number) {
    const pages = Math.floor(u8.length / pageBytes);
    this.#u8 = u8;
    this.#state = new Uint8Array(new SharedArrayBuffer(pages));
    // Page 0 is never mapped, whatever the CPU keeps for itself.
    this.#firstPage = Math.max(1, Math.ceil(firstFreeOffset / pageBytes));
    this.#state.fill(kernelBit, 0, this.#firstPage);
    this.#lowHint = this.#firstPage;
    this.#highHint = pages;
    this.#free = Math.max(0, pages - this.#firstPage);
  }

  /** Who holds each page, for `takeOver` by another CPU: shared, so it is there when this CPU's thread is not. */
  get shared(): SharedArrayBuffer {
    return this.#state.buffer as SharedArrayBuffer;
  }

  /**
   * The bank is this allocator's now: pages are held as the other one's `shared` says, but for those that it had set aside for it. What
   * the other one holds itself it may yet write to, so that stays set aside until it is known what became of it.
   */
  takeOver(shared: SharedArrayBuffer, offset: number, count: number): void {
    const first = offset / pageBytes;
    const own = this.#state.slice(first, first + count);
    this.#state = new Uint8Array(shared.slice(0));
    this.#state.set(own, first);
    this.#lowHint = this.#firstPage;
    this.#highHint = this.#state.length;
    this.#free = 0;
    this.#kernelPages = 0;
    const pages: number[] = [];
    for (let page = this.#firstPage; page < this.#state.length; page++) {
      const holder = this.#state[page]!;
      if ((holder & holders) === 0) this.#free++;
      if ((holder & kernelBit) === 0) continue;
      this.#kernelPages++;
      if (page < first || page >= first + count) pages.push(page);
    }
    this.#others = { state: new Uint8Array(shared), pages };
  }

  /** The other allocator's kernel has let go: free is what it has given back. */
  freeGivenBack(): void {
    const { state, pages } = this.#others;
    this.#freeOthers(pages.filter((page) => (state[page]! & kernelBit) === 0));
  }

  /** The other allocator's kernel is no more: free is what it held outside of `kept`, but for what user space sees. */
  freeOrphans(kept: readonly { readonly offset: number; readonly count: number }[]): void {
    const isKept = new Set<number>();
    for (const { offset, count } of kept) for (let page = 0; page < count; page++) isKept.add(offset / pageBytes + page);
    this.#freeOthers(this.#others.pages.filter((page) => (this.#state[page]! & holders) === kernelBit && !isKept.has(page)));
  }

  #freeOthers(pages: readonly number[]): void {
    for (const page of pages) this.freeKernel(page * pageBytes, 1);
    this.#others = nobodys;
  }

  get freePages(): number {
    return this.#free;
  }

  /** Pages that the kernel holds, beyond those that were never free. */
  get kernelPages(): number {
    return this.#kernelPages;
  }

  /** Offset of `count` zeroed pages for user space, from the bottom; undefined when there is no such run. */
  allocateUser(count: number, alignPages: number): number | undefined {
    const first = this.#lowestRun(count, alignPages);
    return first === undefined ? undefined : this.#take(first, count, userBit);
  }

  /** Takes these very pages for user space, as zeros. False when one of them is not free. */
  allocateUserAt(offset: number, count: number): boolean {
    const first = offset / pageBytes;
    if (!Number.isSafeInteger(first) || first < this.#firstPage || count < 1 || first + count > this.#state.length)
      return false;
    for (let page = first; page < first + count; page++) if ((this.#state[page]! & holders) !== 0) return false;
    this.#take(first, count, userBit);
    return true;
  }

  /** Offset of `count` zeroed pages for the kernel, from the top; undefined when there is no such run. */
  allocateKernel(count: number, alignPages: number): number | undefined {
    const first = this.#highestRun(count, alignPages);
    if (first === undefined) return undefined;
    this.#kernelPages += count;
    return this.#take(first, count, kernelBit);
  }

  /** False when one of the pages is not the kernel's. */
  freeKernel(offset: number, count: number): boolean {
    const released = this.#release(offset, count, kernelBit);
    if (released) this.#kernelPages -= count;
    return released;
  }

  freeUser(offset: number, count: number): boolean {
    return this.#release(offset, count, userBit);
  }

  /** Shows kernel pages to user space. False when one is not the kernel's. */
  mapKernelPages(offset: number, count: number): boolean {
    const first = offset / pageBytes;
    if (!this.#all(first, count, kernelBit) || first < this.#firstPage) return false;
    for (let page = first; page < first + count; page++) this.#state[page]! |= userBit;
    return true;
  }

  /** True when user space may touch every byte of the range. */
  isUser(offset: number, lengthBytes: number): boolean {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(lengthBytes) || offset < 0 || lengthBytes < 0) return false;
    if (offset + lengthBytes > this.#u8.length) return false;
    const first = Math.floor(offset / pageBytes);
    const end = Math.ceil((offset + lengthBytes) / pageBytes);
    for (let page = first; page < end; page++) if ((this.#state[page]! & userBit) === 0) return false;
    return true;
  }

  #take(first: number, count: number, holder: number): number {
    // Nobody holds them, so there is nothing else to a state than whether the page was touched
    const taken = this.#state.subarray(first, first + count);
    for (let at = taken.indexOf(touchedBit); at >= 0; at = taken.indexOf(touchedBit, at + 1))
      this.#u8.fill(0, (first + at) * pageBytes, (first + at + 1) * pageBytes);
    taken.fill(holder | touchedBit);
    this.#free -= count;
    if (first === this.#lowHint) this.#lowHint = first + count;
    if (first + count === this.#highHint) this.#highHint = first;
    return first * pageBytes;
  }

  #release(offset: number, count: number, holder: number): boolean {
    const first = offset / pageBytes;
    if (!Number.isSafeInteger(first) || first < this.#firstPage || !this.#all(first, count, holder)) return false;
    for (let page = first; page < first + count; page++) {
      this.#state[page]! &= ~holder;
      if ((this.#state[page]! & holders) === 0) {
        this.#free++;
        if (page < this.#lowHint) this.#lowHint = page;
        if (page >= this.#highHint) this.#highHint = page + 1;
      }
    }
    return true;
  }

  #all(first: number, count: number, holder: number): boolean {
    if (count < 1 || first + count > this.#state.length) return false;
    for (let page = first; page < first + count; page++) if ((this.#state[page]! & holder) === 0) return false;
    return true;
  }

  #lowestRun(count: number, align: number): number | undefined {
    let first = roundUp(this.#lowHint, align);
    while (first + count <= this.#state.length) {
      const held = this.#lastHeld(first, count);
      if (held < 0) return first;
      first = roundUp(held + 1, align);
    }
    return undefined;
  }

  /** The last page of a run that somebody holds, or -1. Guest RAM is one run: four pages are looked at in one. */
  #lastHeld(first: number, count: number): number {
    const state = this.#state;
    let page = first + count - 1;
    for (; page >= first && (page & 3) !== 3; page--) if (state[page]! & holders) return page;
    const words = new Uint32Array(state.buffer, 0, state.length >>> 2);
    while (page - 3 >= first && (words[page >>> 2]! & fourHolders) === 0) page -= 4;
    for (; page >= first; page--) if (state[page]! & holders) return page;
    return -1;
  }

  #highestRun(count: number, align: number): number | undefined {
    const state = this.#state;
    let first = Math.floor((this.#highHint - count) / align) * align;
    search: while (first >= this.#firstPage) {
      for (let page = first; page < first + count; page++) {
        if (state[page]! & holders) {
          first = Math.floor((page - count) / align) * align;
          continue search;
        }
      }
      return first;
    }
    return undefined;
  }
}

function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}
