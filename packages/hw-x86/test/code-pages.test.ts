/** What of a page is compared with what was decoded, as stores to it take blocks away. */
import { describe, expect, it } from "vitest";
import { CodePage, GranuleSet } from "../src/engine/code-pages.ts";
import { OP_ARENA } from "../src/engine/cpu-state.ts";
import { OperationArena } from "../src/engine/operation-arena.ts";

const PAGE = 0x5000;
const GRANULE = 64;
const bank = new Uint8Array(OP_ARENA + 0x1_0000);

/** As generated code compares: `count` copies, the numbers of their granules before them. */
function equal(copies: number, count: number, page: number): number {
  for (let i = 0; i < count; i++) {
    const granule = bank[copies + i] * GRANULE;
    const copy = copies + GRANULE + i * GRANULE;
    for (let at = 0; at < GRANULE; at++) if (bank[copy + at] !== bank[page + granule + at]) return 0;
  }
  return 1;
}

/** A page whose granules of those numbers are covered, in that order. */
function covered(...granules: number[]): CodePage {
  bank.fill(0).fill(0x90, PAGE, PAGE + 0x1000);
  const page = new CodePage(PAGE, bank, new OperationArena(1));
  for (const granule of granules) page.cover(PAGE + granule * GRANULE + 5, 20);
  return page;
}
const kept = (...granules: number[]): GranuleSet => {
  const set = new GranuleSet();
  for (const granule of granules) set.add(granule * GRANULE + 60, 4);
  return set;
};
const isChanged = (page: CodePage, granule: number): boolean => {
  bank[PAGE + granule * GRANULE + 63] ^= 1;
  const changed = !page.isUnchanged(equal);
  bank[PAGE + granule * GRANULE + 63] ^= 1;
  return changed;
};

describe("a page with code", () => {
  it("notices changes of what is covered only, twelve granules or two", () => {
    for (const granules of [[7, 0], [...Array(12).keys()].map((i) => 60 - 5 * i)]) {
      const page = covered(...granules);
      for (let granule = 0; granule < GRANULE; granule++)
        expect([granule, isChanged(page, granule)]).toEqual([granule, granules.includes(granule)]);
    }
  });

  it.each([
    ["the first", [1, 2]],
    ["the middle", [0, 2]],
    ["the last", [0, 1]],
    ["all but one", [1]],
  ] as const)("covers no more without %s", (_name, left) => {
    const page = covered(30, 10, 20);
    const granules = left.map((index) => [30, 10, 20][index] as number);
    page.coverOnly(kept(...granules));
    for (const granule of [10, 20, 30]) {
      expect([granule, page.isCovered(PAGE + granule * GRANULE, 1)]).toEqual([granule, granules.includes(granule)]);
      expect([granule, isChanged(page, granule)]).toEqual([granule, granules.includes(granule)]);
    }
  });

  it("still notices what changed beside a store, which it takes for right", () => {
    const page = covered(30, 10, 20);
    bank[PAGE + 20 * GRANULE] = 0xcc;
    bank[PAGE + 30 * GRANULE] = 0xf4;
    page.coverOnly(kept(20, 30));
    page.refresh(PAGE + 30 * GRANULE, 1);
    expect(page.isUnchanged(equal)).toBe(false);
    bank[PAGE + 20 * GRANULE] = 0x90;
    expect(page.isUnchanged(equal)).toBe(true);
  });

  it("keeps the copy that older blocks were made of when another block is", () => {
    const page = covered(4);
    bank[PAGE + 4 * GRANULE] = 0xcc;
    page.cover(PAGE + 4 * GRANULE + 30, 4);
    expect(page.isUnchanged(equal)).toBe(false);
  });
});
