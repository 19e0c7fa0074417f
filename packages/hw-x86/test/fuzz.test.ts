/**
 * Short forms of the fuzzers (`pnpm verify:fuzz` is the long one): wild guests on all engines of both vendors, and VM entries with wild
 * fields. A seed that fails is printed, and MKVM_SEED has it again.
 */
import { describe, expect, it } from "vitest";
import { VmcbFuzzer, VmcsFuzzer } from "./fuzz/entry-fuzz.ts";
import { GuestFuzzer } from "./fuzz/guest-fuzz.ts";
import { chooseSeed } from "./random.ts";

const GUESTS = 20;
const ENTRIES = 150;
/** Cases that went wrong once: a guest whose handlers fault for ever, a store across the end of the address space. */
const FOUND = { intel: [2314, 2478], amd: [2314, 2478] } as const;

/** An entry to the shutdown activity state, which nothing ended. */
const FOUND_ENTRIES = [91_350];

describe.each(["intel", "amd"] as const)("wild guests on a machine of vendor %s", (vendor) => {
  it("come back in time, and from all engines alike", () => {
    const seed = chooseSeed();
    const fuzzer = new GuestFuzzer(vendor);
    for (const found of FOUND[vendor]) fuzzer.runCase(found, { plain: true });
    for (let i = 0; i < GUESTS; i++) expect(fuzzer.runCase((seed + i) >>> 0).length).toBeGreaterThan(1);
  });
});

describe("VM entry with wild fields", () => {
  it("is refused by a rule of VMX or exits, and leaves other memory alone", () => {
    const seed = chooseSeed();
    const fuzzer = new VmcsFuzzer();
    for (const found of FOUND_ENTRIES) fuzzer.runCase(found);
    for (let i = 0; i < ENTRIES; i++) fuzzer.runCase((seed + i) >>> 0);
    expect(fuzzer.outcomes.size).toBeGreaterThan(5);
  });
  it("is refused by a rule of SVM or exits, and leaves other memory alone", () => {
    const seed = chooseSeed();
    const fuzzer = new VmcbFuzzer();
    for (let i = 0; i < ENTRIES; i++) fuzzer.runCase((seed + i) >>> 0);
    expect(fuzzer.outcomes.size).toBeGreaterThan(2);
  });
});
