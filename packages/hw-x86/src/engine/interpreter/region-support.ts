/** Functions that the interpreter module exports to translated regions. */
import { emitFindQuickly } from "../block-tables.ts";
import { gprOffset, RSP, state } from "../cpu-state.ts";
import { block, OP_BYTES } from "../operation.ts";
import { emitBitsAbove, FlagSource, kindOf, OWN_CARRY, OWN_OVERFLOW } from "../translator/flag-kinds.ts";
import type { Code } from "../wasm/code.ts";
import { FunctionBuilder, type ModuleBuilder, type Signature, signature } from "../wasm/module-builder.ts";
import type { CommonFunctions } from "./common-functions.ts";
import { FUSED_MULTIPLY_ADD } from "./fused-code.ts";
import { MAY_BE_ROUNDED } from "./rounding-code.ts";
import { STRING_RUN } from "./string-code.ts";

const BYTES_BITS = 8;
/** An access as one number: the operation's distance from the header of its block, and the bytes accessed, fewer than 256. */
export const missedAccess = (operation: number, bytes: number): number => (operation << BYTES_BITS) | bytes;

/**
 * header: block that runs; access: see `missedAccess`; rsp, budget: what the region holds of them. A miss returns 0 when the region must
 * be left at the operation (see `regionResume`). There is a call in every access of a region: each argument is code.
 */
export const REGION_SUPPORT = {
  /** (linear, header, access, rsp, budget) -> bank offset to read from. */
  missRead: signature(["i64", "i32", "i32", "i64", "i32"], ["i32"]),
  /** The same, to read from and write to; the interpreter does so across two pages. */
  missUpdate: signature(["i64", "i32", "i32", "i64", "i32"], ["i32"]),
  /** The same: stores `state.storeValue`. */
  missWrite: signature(["i64", "i32", "i32", "i64", "i32"], ["i32"]),
  /** (kind, first, second, result, carry, overflow): the words in the state block, from flags as flag-kinds.ts has them. */
  saveFlags: signature(["i32", "i64", "i64", "i64", "i32", "i32"]),
  /** () -> flags in RFLAGS positions, from the words; and back. */
  getFlags: signature([], ["i32"]),
  setFlags: signature(["i32"]),
  /** (header): the running block is that one, in the same page as the running one. */
  moveTo: signature(["i32"]),
  /** () after a miss returned 0: throws what it met, or returns the operation that the interpreter is to run. */
  regionResume: signature([], ["i32"]),
  /** See string-code.ts. */
  moveRun: STRING_RUN,
  storeRun: STRING_RUN,
  /** See rounding-code.ts. */
  mayBeRounded: MAY_BE_ROUNDED,
  /** See fused-code.ts. */
  fusedMultiplyAdd: FUSED_MULTIPLY_ADD,
  /** (rip), as the last thing that a region does: goes on in the region there, or returns 0 with `state.rip` and `state.found` set. */
  goOn: signature(["i64"], ["i32"]),
} as const satisfies Record<string, Signature>;

export type RegionSupport = Readonly<Record<keyof typeof REGION_SUPPORT, number>>;

export function buildRegionSupport(module: ModuleBuilder, common: CommonFunctions): RegionSupport {
  const make = (name: keyof typeof REGION_SUPPORT, body: (c: Code, f: FunctionBuilder) => void): number => {
    const type = REGION_SUPPORT[name];
    const f = new FunctionBuilder(module.typeIndex(type), type.parameters.length);
    body(f.code, f);
    return module.add(f);
  };

  const moveTo = make("moveTo", (c) => {
    c.i32(0).loadAt("i64.load", state.blockRip);
    c.get(0)
      .memory("i32.load", block.physical)
      .loadAt("i32.load", state.blockStart)
      .memory("i32.load", block.physical)
      .op("i32.sub");
    c.op("i64.extend_i32_s").op("i64.add").memory("i64.store", state.blockRip);
    c.i32(0).get(0).memory("i32.store", state.blockStart);
  });

  const handlerType = module.typeIndex(signature(["i32"], ["i32"]));
  const goOn = make("goOn", (c, f) => {
    const header = f.allocate("i32");
    const region = f.allocate("i32");
    const budget = f.allocate("i32");
    const wide = (): number => f.allocate("i64");
    emitFindQuickly(c, { rip: 0, key: wide(), found: wide(), rest: wide(), slot: f.allocate("i32") }, common.find);
    c.tee(header).if();
    c.get(header).memory("i32.load", block.region).tee(region).if();
    c.loadAt("i32.load", state.budget).get(header).memory("i32.load", block.charge).op("i32.sub").tee(budget);
    c.i32(0).op("i32.ge_s").if();
    c.i32(0).get(budget).memory("i32.store", state.budget);
    c.i32(0).get(0).memory("i64.store", state.blockRip);
    c.i32(0).get(header).memory("i32.store", state.blockStart);
    c.get(header).i32(OP_BYTES).op("i32.add").get(region).returnCallIndirect(handlerType);
    c.end().end().end();
    c.i32(0).get(0).memory("i64.store", state.rip);
    c.i32(0).get(header).memory("i32.store", state.found).i32(0);
  });

  const miss = (name: "missRead" | "missUpdate" | "missWrite", slow: number): number =>
    make(name, (c) => {
      const [linear, header, access, rsp, budget] = [0, 1, 2, 3, 4];
      c.i32(0).get(rsp).memory("i64.store", gprOffset(RSP));
      c.i32(0).get(budget).memory("i32.store", state.budget);
      c.get(header).call(moveTo);
      c.get(header).get(access).i32(BYTES_BITS).op("i32.shr_u").op("i32.add").call(common.sync);
      c.get(linear).op("i32.wrap_i64").get(linear).i64(32n).op("i64.shr_u").op("i32.wrap_i64");
      c.get(access)
        .i32((1 << BYTES_BITS) - 1)
        .op("i32.and")
        .call(slow);
    });

  const saveFlags = make("saveFlags", (c, f) => {
    const [kind, a, b, result, ownCarry, ownOverflow] = [0, 1, 2, 3, 4, 5];
    const source = f.allocate("i32");
    const up = f.allocate("i64");
    const carry = f.allocate("i64");
    const carryBit = f.allocate("i32");
    const overflowBit = f.allocate("i32");
    const from = (which: number): void => {
      c.get(source).i32(which).op("i32.eq").if();
    };
    /** Differences without a borrow that went in, and results whose CF and OF are clear: most flags, and no branch between the two. */
    const saveFrequent = (): void => {
      const difference = kindOf(FlagSource.subtract, 8);
      const isResult = difference ^ kindOf(FlagSource.result, 8);
      c.get(kind)
        .i32(~(isResult | 3))
        .op("i32.and")
        .i32(difference)
        .op("i32.eq")
        .if();
      // `carry` is all ones for a difference at first
      c.i64(0n).get(kind).i32(isResult).op("i32.and").op("i32.eqz").op("i64.extend_i32_u").op("i64.sub").set(carry);
      c.i32(0).get(result).get(up).op("i64.shl").get(up).op("i64.shr_s").memory("i64.store", state.flagResult);
      c.i32(0).get(a).get(b).op("i64.xor").get(result).op("i64.xor").get(carry).op("i64.and").get(result).op("i64.xor");
      c.op("i32.wrap_i64").i32(16).op("i32.and").memory("i32.store", state.flagAux);
      borrows().get(carry).op("i64.and").get(up).op("i64.shl").set(carry);
      c.i32(0).get(carry).memory("i64.store", state.flagCarry).return();
      c.end();
    };
    /** Of a - b, at each bit. */
    const borrows = (): Code => {
      c.get(a).i64(-1n).op("i64.xor").set(a);
      return c.get(a).get(b).op("i64.and").get(a).get(b).op("i64.or").get(result).op("i64.and").op("i64.or");
    };
    emitBitsAbove(c, kind).set(up);
    saveFrequent();
    c.get(kind).i32(2).op("i32.shr_u").i32(7).op("i32.and").set(source);
    from(FlagSource.rflags);
    c.get(a).op("i32.wrap_i64").call(common.setFlags);
    c.loadAt("i64.load", state.flagCarry).set(carry);
    c.else();
    from(FlagSource.words);
    c.loadAt("i64.load", state.flagCarry).set(carry);
    c.else();
    c.i32(0).get(result).get(up).op("i64.shl").get(up).op("i64.shr_s").memory("i64.store", state.flagResult);
    from(FlagSource.result);
    c.i32(0).get(result).op("i32.wrap_i64").i32(16).op("i32.and").memory("i32.store", state.flagAux);
    c.i64(0n).set(carry);
    c.else();
    c.i32(0).get(a).get(b).op("i64.xor").op("i32.wrap_i64").i32(16).op("i32.and").memory("i32.store", state.flagAux);
    from(FlagSource.subtract);
    borrows().get(up).op("i64.shl").set(carry);
    c.else();
    from(FlagSource.add);
    c.get(a).get(b).op("i64.and");
    c.get(a).get(b).op("i64.or").get(result).i64(-1n).op("i64.xor").op("i64.and").op("i64.or").get(up).op("i64.shl").set(carry);
    c.else();
    // OF is a sign change out of the largest or the smallest number.
    from(FlagSource.increment);
    c.get(a).i64(-1n).op("i64.xor").get(result).op("i64.and").set(carry);
    c.else();
    c.get(result).i64(-1n).op("i64.xor").get(a).op("i64.and").set(carry);
    c.end();
    c.get(carry).get(up).op("i64.shl").i64(63n).op("i64.shr_u").i64(62n).op("i64.shl").set(carry);
    c.end();
    c.end();
    c.end();
    c.end();
    c.end();
    c.get(kind)
      .i32(OWN_CARRY | OWN_OVERFLOW)
      .op("i32.and")
      .if();
    c.get(ownCarry);
    c.get(carry).i64(63n).op("i64.shr_u").op("i32.wrap_i64");
    c.get(kind).i32(OWN_CARRY).op("i32.and").op("select").set(carryBit);
    c.get(ownOverflow);
    c.get(carry).get(carry).i64(1n).op("i64.shl").op("i64.xor").i64(63n).op("i64.shr_u").op("i32.wrap_i64");
    c.get(kind).i32(OWN_OVERFLOW).op("i32.and").op("select").set(overflowBit);
    c.get(carryBit).op("i64.extend_i32_u").i64(63n).op("i64.shl");
    c.get(carryBit).get(overflowBit).op("i32.xor").op("i64.extend_i32_u").i64(62n).op("i64.shl").op("i64.or").set(carry);
    c.end();
    c.i32(0).get(carry).memory("i64.store", state.flagCarry);
  });

  const { imports } = common;
  return {
    goOn,
    moveRun: common.moveRun,
    storeRun: common.storeRun,
    missRead: miss("missRead", imports.regionRead),
    missUpdate: miss("missUpdate", imports.regionUpdate),
    missWrite: miss("missWrite", imports.regionWrite),
    saveFlags,
    getFlags: common.getFlags,
    setFlags: common.setFlags,
    moveTo,
    regionResume: imports.regionResume,
    mayBeRounded: common.mayBeRounded,
    fusedMultiplyAdd: common.fusedMultiplyAdd,
  };
}
