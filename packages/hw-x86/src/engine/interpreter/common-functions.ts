/**
 * Functions of the interpreter module that handlers share: imports from the engine, and code that is not worth repeating in each
 * handler. Handlers of hot instructions inline the memory accesses, see memory-code.ts.
 */
import { emitFind } from "../block-tables.ts";
import { SEG_EFFECTIVE_BASE, SEG_READ_END, SEG_WRITE_END, SEGMENT_STRIDE, state } from "../cpu-state.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { FunctionBuilder, type ModuleBuilder, signature } from "../wasm/module-builder.ts";
import type { ValueType } from "../wasm/opcodes.ts";
import { buildFusedMultiplyAdd } from "./fused-code.ts";
import { emitProbe } from "./memory-code.ts";
import { buildMayBeRounded } from "./rounding-code.ts";
import { buildMoveRun, buildStoreRun } from "./string-code.ts";

/** Imports from the engine: module "engine", by name. All integers are i32. */
export const ENGINE_IMPORTS = {
  /** (lo, hi, bytes) -> bank offset; see system-interface.ts. The operation is in `state.operation`. */
  readSlow: signature(["i32", "i32", "i32"], ["i32"]),
  writeSlow: signature(["i32", "i32", "i32"]),
  rmwSlow: signature(["i32", "i32", "i32"], ["i32"]),
  rmwFinish: signature([]),
  segmentSlow: signature(["i32", "i32", "i32", "i32", "i32"]),
  /** The block at `state.rip`: bank offset of its header, or 0 when `run` must return. */
  findBlock: signature([], ["i32"]),
  /** (vector, error code or -1). */
  raise: signature(["i32", "i32"]),
  /** The operation is no instruction: logs its bytes and raises #UD. */
  undefinedInstruction: signature([]),
  /** The block was entered as often as a translation takes. */
  hot: signature(["i32"]),
  /** For translated regions: as readSlow, rmwSlow and writeSlow, but 0 when the region must be left at this operation. */
  regionRead: signature(["i32", "i32", "i32"], ["i32"]),
  regionUpdate: signature(["i32", "i32", "i32"], ["i32"]),
  regionWrite: signature(["i32", "i32", "i32"], ["i32"]),
  /** Throws what made one of these return 0, or returns the operation that the interpreter is to run. */
  regionResume: signature([], ["i32"]),
  /** A helper left single-step or an interrupt shadow behind: `run` must return before the next block. */
  divert: signature([]),
} as const;

export interface CommonFunctions {
  readonly imports: Readonly<Record<keyof typeof ENGINE_IMPORTS, number>>;
  /** (operation): makes `state.rip`, `state.nextRip` and `state.operation` those of the operation. */
  readonly sync: number;
  /** (operation) -> effective address of its memory operand, wrapped to the address size. */
  readonly effectiveAddress: number;
  /** (operation, segment slot, offset, bytes) -> linear address, segment limits checked for reading / writing. */
  readonly linearRead: number;
  readonly linearWrite: number;
  /** (operation, linear, bytes) -> bank offset of what can be read there. */
  readonly readProbe: number;
  /** (operation, linear, bytes) -> bank offset to read from and write to. */
  readonly rmwProbe: number;
  /** (operation, linear, value) by log2 of the size in bytes; [4] takes a v128. */
  readonly write: readonly number[];
  /** (operation, linear, lower half, upper half): stores 256 bits. */
  readonly writePair: number;
  /** () -> arithmetic flags in RFLAGS positions; (flags) sets them. */
  readonly getFlags: number;
  readonly setFlags: number;
  /** (rip) -> header of the block there, or 0. */
  readonly find: number;
  /** (operation): gives back the budget of the instructions of the block behind this one. */
  readonly refund: number;
  /** See string-code.ts. */
  readonly moveRun: number;
  readonly storeRun: number;
  /** () after a helper that ended the block: sees that single-step and interrupt shadows are heeded. */
  readonly settle: number;
  /** See rounding-code.ts. */
  readonly mayBeRounded: number;
  readonly fusedMultiplyAdd: number;
}

export function declareImports(module: ModuleBuilder): Record<keyof typeof ENGINE_IMPORTS, number> {
  const indexes = {} as Record<keyof typeof ENGINE_IMPORTS, number>;
  for (const name of Object.keys(ENGINE_IMPORTS) as (keyof typeof ENGINE_IMPORTS)[]) {
    indexes[name] = module.importFunction("engine", name, ENGINE_IMPORTS[name]);
  }
  return indexes;
}

/** Blocking by STI and by MOV SS in `state.interruptibility`; TF in RFLAGS. */
const SHADOWS = 3;
const TRAP_FLAG = 0x100;

export function buildCommonFunctions(module: ModuleBuilder, imports: CommonFunctions["imports"]): CommonFunctions {
  const make = (
    parameters: readonly ValueType[],
    results: readonly ValueType[],
    body: (f: FunctionBuilder) => void,
  ): number => {
    const made = new FunctionBuilder(module.typeIndex(signature(parameters, results)), parameters.length);
    body(made);
    return module.add(made);
  };

  const sync = make(["i32"], [], (f) => {
    const c = f.code;
    const rip = f.allocate("i64");
    const mask = f.allocate("i64");
    c.i32(0).get(0).memory("i32.store", state.operation);
    c.i64(-1n).i32(64).loadAt("i32.load", state.codeSize).op("i32.sub").op("i64.extend_i32_u").op("i64.shr_u").set(mask);
    c.loadAt("i64.load", state.blockRip).get(0).memory("i64.load16_u", op.ripOffset).op("i64.add").set(rip);
    c.i32(0).get(rip).get(mask).op("i64.and").memory("i64.store", state.rip);
    c.i32(0)
      .get(rip)
      .get(0)
      .memory("i64.load8_u", op.length)
      .op("i64.add")
      .get(mask)
      .op("i64.and")
      .memory("i64.store", state.nextRip);
  });

  const effectiveAddress = make(["i32"], ["i64"], (f) => {
    const c = f.code;
    c.get(0).memory("i32.load16_u", op.base).memory("i64.load", 0);
    c.get(0).memory("i32.load16_u", op.index).memory("i64.load", 0);
    c.get(0).memory("i64.load8_u", op.scale).op("i64.shl").op("i64.add");
    c.get(0).memory("i64.load32_s", op.displacement).op("i64.add");
    c.i64(-1n).i64(64n).get(0).memory("i64.load8_u", op.addressSize).op("i64.sub").op("i64.shr_u").op("i64.and");
  });

  const linear = (end: number, isWrite: number): number =>
    make(["i32", "i32", "i64", "i32"], ["i64"], (f) => {
      const c = f.code;
      c.get(2).get(3).i32(1).op("i32.sub").op("i64.extend_i32_u").op("i64.add");
      c.get(1).memory("i64.load", end).op("i64.ge_u").if();
      c.get(0).call(sync);
      c.get(1).i32(state.segments).op("i32.sub").i32(Math.log2(SEGMENT_STRIDE)).op("i32.shr_u");
      c.get(2).op("i32.wrap_i64").get(2).i64(32n).op("i64.shr_u").op("i32.wrap_i64").get(3).i32(isWrite);
      c.call(imports.segmentSlow).end();
      // Outside 64-bit mode addresses wrap at 4 GiB: what lies above misses the TLB, and the slow path wraps it.
      c.get(2).get(1).memory("i64.load", SEG_EFFECTIVE_BASE).op("i64.add");
    });
  const linearRead = linear(SEG_READ_END, 0);
  const linearWrite = linear(SEG_WRITE_END, 1);

  const probe = (isWrite: boolean, slow: number): number =>
    make(["i32", "i64", "i32"], ["i32"], (f) => {
      const c = f.code;
      emitProbe(c, f, 1, isWrite, () => c.get(2).i32(1).op("i32.sub").op("i64.extend_i32_u"), undefined);
      c.get(0).call(sync);
      c.get(1).op("i32.wrap_i64").get(1).i64(32n).op("i64.shr_u").op("i32.wrap_i64").get(2).call(slow);
      c.end();
    });
  const readProbe = probe(false, imports.readSlow);
  const rmwProbe = probe(true, imports.rmwSlow);

  const write = [0, 1, 2, 3, 4].map((log) =>
    make(["i32", "i64", log === 4 ? "v128" : "i64"], [], (f) => {
      const c = f.code;
      const store = ["i64.store8", "i64.store16", "i64.store32", "i64.store", "v128.store"][log] as string;
      const address = f.allocate("i32");
      emitProbe(c, f, 1, true, undefined, 1 << log);
      c.i32(0).end();
      c.tee(address).if();
      c.get(address).get(2).memory(store, 0);
      c.else();
      c.i32(0).get(2).memory(store, state.storeValue);
      c.get(0).call(sync);
      c.get(1)
        .op("i32.wrap_i64")
        .get(1)
        .i64(32n)
        .op("i64.shr_u")
        .op("i32.wrap_i64")
        .i32(1 << log)
        .call(imports.writeSlow);
      c.end();
    }),
  );

  const writePair = make(["i32", "i64", "v128", "v128"], [], (f) => {
    const c = f.code;
    const address = f.allocate("i32");
    emitProbe(c, f, 1, true, undefined, 32);
    c.i32(0).end();
    c.tee(address).if();
    c.get(address).get(2).memory("v128.store", 0).get(address).get(3).memory("v128.store", 16);
    c.else();
    c.i32(0)
      .get(2)
      .memory("v128.store", state.storeValue)
      .i32(0)
      .get(3)
      .memory("v128.store", state.storeValue + 16);
    c.get(0).call(sync);
    c.get(1).op("i32.wrap_i64").get(1).i64(32n).op("i64.shr_u").op("i32.wrap_i64").i32(32).call(imports.writeSlow);
    c.end();
  });

  const getFlags = make([], ["i32"], (f) => {
    const c = f.code;
    const low = f.allocate("i32");
    const aux = f.allocate("i32");
    const carry = f.allocate("i32");
    c.loadAt("i32.load", state.flagResult).set(low);
    c.loadAt("i32.load", state.flagAux).set(aux);
    c.loadAt("i32.load", state.flagCarry + 4).set(carry);
    c.get(carry).i32(31).op("i32.shr_u");
    c.get(low).get(aux).i32(8).op("i32.shr_u").op("i32.xor").i32(255).op("i32.and").op("i32.popcnt");
    c.i32(-1).op("i32.xor").i32(1).op("i32.and").i32(2).op("i32.shl").op("i32.or");
    c.get(low).get(aux).op("i32.xor").i32(16).op("i32.and").op("i32.or");
    c.loadAt("i64.load", state.flagResult).op("i64.eqz").i32(6).op("i32.shl").op("i32.or");
    c.loadAt("i32.load", state.flagResult + 4)
      .get(aux)
      .op("i32.xor")
      .i32(31)
      .op("i32.shr_u")
      .i32(7)
      .op("i32.shl")
      .op("i32.or");
    c.get(carry).get(carry).i32(1).op("i32.shl").op("i32.xor").i32(31).op("i32.shr_u").i32(11).op("i32.shl").op("i32.or");
  });

  // ZF chooses the result, 0 or 1; parity and sign that do not fit it are expressed by the deltas in flagAux.
  const setFlags = make(["i32"], [], (f) => {
    const c = f.code;
    const result = f.allocate("i32");
    c.get(0).i32(6).op("i32.shr_u").i32(-1).op("i32.xor").i32(1).op("i32.and").set(result);
    c.i32(0).get(result).op("i64.extend_i32_u").memory("i64.store", state.flagResult);
    c.i32(0);
    c.get(0).i32(16).op("i32.and");
    c.get(0).i32(7).op("i32.shr_u").i32(31).op("i32.shl").op("i32.or");
    // Parity of 0 is even, of 1 odd: delta 1 where that is not what PF says.
    c.get(0).i32(2).op("i32.shr_u").i32(1).op("i32.and").get(result).op("i32.eq").i32(8).op("i32.shl").op("i32.or");
    c.memory("i32.store", state.flagAux);
    c.i32(0).i32(0).memory("i32.store", state.flagCarry);
    c.i32(0);
    c.get(0).i32(31).op("i32.shl");
    c.get(0).get(0).i32(11).op("i32.shr_u").op("i32.xor").i32(1).op("i32.and").i32(30).op("i32.shl").op("i32.or");
    c.memory("i32.store", state.flagCarry + 4);
  });

  const find = make(["i64"], ["i32"], (f) => {
    const c = f.code;
    const i32 = (): number => f.allocate("i32");
    const i64 = (): number => f.allocate("i64");
    emitFind(c, { rip: 0, key: i64(), found: i64(), rest: i64(), slot: i32(), entry: i32(), physical: i32() });
    c.i32(0).get(0).memory("i64.store", state.rip);
    c.i32(0).i32(0).memory("i32.store", state.operation);
    c.call(imports.findBlock);
  });

  const refund = make(["i32"], [], (f) => {
    const c = f.code;
    const start = f.allocate("i32");
    c.loadAt("i32.load", state.blockStart).set(start);
    c.i32(0);
    c.loadAt("i32.load", state.budget).get(start).memory("i32.load", block.count).op("i32.add");
    c.get(0).get(start).op("i32.sub").i32(Math.log2(OP_BYTES)).op("i32.shr_u").op("i32.sub");
    c.memory("i32.store", state.budget);
  });

  const settle = make([], [], (f) => {
    const c = f.code;
    c.loadAt("i32.load", state.interruptibility).i32(SHADOWS).op("i32.and");
    c.loadAt("i32.load", state.systemFlags).i32(TRAP_FLAG).op("i32.and").op("i32.or").if();
    c.call(imports.divert).end();
  });

  return {
    refund,
    moveRun: buildMoveRun(module),
    storeRun: buildStoreRun(module),
    settle,
    imports,
    sync,
    effectiveAddress,
    linearRead,
    linearWrite,
    readProbe,
    rmwProbe,
    write,
    writePair,
    getFlags,
    setFlags,
    find,
    mayBeRounded: buildMayBeRounded(module),
    fusedMultiplyAdd: buildFusedMultiplyAdd(module),
  };
}
