import { describe, expect, it } from "vitest";
import { PageAllocator, pageBytes } from "../src/memory/page-allocator.ts";
import { bankBytesFor } from "../src/memory/user-memory.ts";

const pages = (count: number) => new PageAllocator(new Uint8Array(count * pageBytes), 2 * pageBytes);

describe("pages of a bank", () => {
  it("come from the bottom for user space and from the top for the kernel, never from the CPU's own", () => {
    const allocator = pages(16);
    expect(allocator.freePages).toBe(14);
    expect(allocator.allocateUser(1, 1)).toBe(2 * pageBytes);
    expect(allocator.allocateKernel(1, 1)).toBe(15 * pageBytes);
    expect(allocator.allocateUser(2, 4)).toBe(4 * pageBytes);
    expect(allocator.allocateKernel(2, 4)).toBe(12 * pageBytes);
    expect(allocator.freeKernel(0, 1)).toBe(false);
    expect(allocator.freeUser(pageBytes, 1)).toBe(false);
  });

  it("are used to the last, and found again when freed", () => {
    const allocator = pages(16);
    expect(allocator.allocateUser(15, 1)).toBeUndefined();
    const all = allocator.allocateUser(14, 1)!;
    expect(allocator.freePages).toBe(0);
    expect(allocator.allocateKernel(1, 1)).toBeUndefined();
    expect(allocator.freeUser(all, 14)).toBe(true);
    expect(allocator.freeUser(all, 14)).toBe(false);
    expect(allocator.allocateKernel(14, 1)).toBe(all);
  });

  it("are found as the lowest run past whatever is held, and zeroed where they were touched", () => {
    for (let held = 2; held < 24; held++) {
      for (let count = 1; count < 14; count++) {
        const bytes = new Uint8Array(40 * pageBytes);
        const allocator = new PageAllocator(bytes, 2 * pageBytes);
        expect(allocator.allocateUserAt(held * pageBytes, 1)).toBe(true);
        const first = held - 2 >= count ? 2 : held + 1;
        bytes.fill(0xff, first * pageBytes, (first + count) * pageBytes);
        expect([held, count, allocator.allocateUser(count, 1)]).toEqual([held, count, first * pageBytes]);
        expect(allocator.freeUser(first * pageBytes, count)).toBe(true);
        expect(allocator.allocateUser(count, 1)).toBe(first * pageBytes);
        expect(bytes.includes(0xff)).toBe(false);
      }
    }
  });

  it("are zeroed when handed out again", () => {
    const bytes = new Uint8Array(8 * pageBytes);
    const allocator = new PageAllocator(bytes, pageBytes);
    const page = allocator.allocateUser(1, 1)!;
    bytes.fill(0xff, page, page + pageBytes);
    allocator.freeUser(page, 1);
    expect(allocator.allocateUser(1, 1)).toBe(page);
    expect(bytes.subarray(page, page + pageBytes).every((byte) => byte === 0)).toBe(true);
  });

  describe("that another CPU takes over", () => {
    const takenOver = () => {
      const bytes = new Uint8Array(32 * pageBytes);
      const old = new PageAllocator(bytes, pageBytes);
      const [table, mapped, kept, user] = [
        old.allocateKernel(1, 1)!,
        old.allocateKernel(1, 1)!,
        old.allocateKernel(1, 1)!,
        old.allocateUser(4, 1)!,
      ];
      old.mapKernelPages(mapped, 1);
      const reserved = old.allocateKernel(8, 1)!;
      const now = PageAllocator.within(bytes, pageBytes, reserved, 8);
      const own = now.allocateKernel(2, 1)!;
      now.takeOver(old.shared, reserved, 8);
      return { old, now, table, mapped, kept, user, own };
    };

    it("are held by both until it is known what the old one has given back", () => {
      const { old, now, table, user, own } = takenOver();
      expect([now.kernelPages, now.freePages]).toEqual([5, 31 - 5 - 4]);
      expect(now.isUser(user, 4 * pageBytes)).toBe(true);
      old.freeKernel(table, 1);
      expect([now.kernelPages, now.freePages]).toEqual([5, 22]);
      now.freeGivenBack();
      expect([now.kernelPages, now.freePages]).toEqual([4, 23]);
      expect(now.freeKernel(own, 2)).toBe(true);
      // Once: what it gives back later, somebody else may have
      old.freeKernel(own, 1);
      now.freeGivenBack();
      expect(now.kernelPages).toBe(2);
    });

    it("are free when the old one is no more, but for what user space sees and what the VM keeps", () => {
      const { now, table, mapped, kept } = takenOver();
      now.freeOrphans([{ offset: kept, count: 1 }]);
      expect(now.freeKernel(table, 1)).toBe(false);
      expect(now.freeKernel(mapped, 1)).toBe(true);
      expect(now.freeKernel(kept, 1)).toBe(true);
    });
  });

  it("that kernel and user share are free when both let go", () => {
    const allocator = pages(8);
    const shared = allocator.allocateKernel(1, 1)!;
    expect(allocator.isUser(shared, 1)).toBe(false);
    expect(allocator.mapKernelPages(shared, 1)).toBe(true);
    expect(allocator.isUser(shared, pageBytes)).toBe(true);
    expect(allocator.isUser(shared, pageBytes + 1)).toBe(false);
    expect(allocator.kernelPages).toBe(1);
    allocator.freeKernel(shared, 1);
    allocator.freeKernel(shared, 1);
    expect(allocator.kernelPages).toBe(0);
    expect(allocator.freePages).toBe(5);
    allocator.freeUser(shared, 1);
    expect(allocator.freePages).toBe(6);
    expect(allocator.mapKernelPages(shared, 1)).toBe(false);
  });

  it("refuse ranges that are no ranges", () => {
    const allocator = pages(8);
    for (const [offset, length] of [
      [-1, 1],
      [0.5, 1],
      [Number.NaN, 1],
      [8 * pageBytes, 1],
      [0, -1],
    ] as const) {
      expect(allocator.isUser(offset, length)).toBe(false);
    }
    expect(bankBytesFor(512 * 2 ** 20) % 65536).toBe(0);
  });
});
