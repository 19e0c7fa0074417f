/** The locals of a region's function. */
import { RSP } from "../cpu-state.ts";
import type { RegionSupport } from "../interpreter/region-support.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";
import { Facts } from "./facts.ts";
import { PlaceCache } from "./place-cache.ts";
import type { Region, RegionFrame } from "./region.ts";
import type { RegionLayout } from "./region-layout.ts";
import { VectorRegisters } from "./vector-registers.ts";

/** A frame with locals allocated; labels are set when they open. */
export function createFrame(region: Region, fn: FunctionBuilder, support: RegionSupport, layout: RegionLayout): RegionFrame {
  const local = (type: "i32" | "i64"): number => fn.allocate(type);
  return {
    fn,
    support,
    layout,
    codeSize: region.mode.codeSize,
    range: region.range,
    stackMask: region.mode.stackMask,
    gpr: Array.from({ length: 16 }, () => local("i64")),
    vectors: new VectorRegisters(fn),
    facts: new Facts(),
    base: local("i64"),
    rip: local("i64"),
    next: local("i32"),
    header: local("i32"),
    budget: local("i32"),
    flagKind: local("i32"),
    flagFirst: local("i64"),
    flagSecond: local("i64"),
    flagResult: local("i64"),
    flagCarry: local("i32"),
    flagOverflow: local("i32"),
    pinFirst: local("i64"),
    pinSecond: local("i64"),
    pinResult: local("i64"),
    pinCarry: local("i32"),
    pinOverflow: local("i32"),
    condition: local("i32"),
    entry: local("i32"),
    spreadBits: [],
    places: new PlaceCache(),
    exit: { depth: 0 },
    bail: { depth: 0 },
    // The stack pointer is passed to misses
    usedRegisters: 1 << RSP,
    usesSse: false,
    usesAvx: false,
    usesStackMask: false,
    writtenRegisters: 0,
  };
}
