/**
 * Puts the interpreter module together: common functions, a function or an arm of the main function for each variant, and the main
 * function, which dispatches on the `handler` of operation records.
 */
import { buildGranulesEqual } from "../code-pages.ts";
import { state } from "../cpu-state.ts";
import type { Variant } from "../decoder/variant.ts";
import { block, ENTRIES_PER_QUESTION, NEVER_ASKED, OP_BYTES, op } from "../operation.ts";
import { Vector } from "../system/bits.ts";
import type { Code, Label } from "../wasm/code.ts";
import { FunctionBuilder, ModuleBuilder, signature } from "../wasm/module-builder.ts";
import { buildCommonFunctions, type CommonFunctions, declareImports } from "./common-functions.ts";
import { isHot } from "./hot-variants.ts";
import { InterpreterEmitter } from "./interpreter-emitter.ts";
import { buildRegionSupport } from "./region-support.ts";
import { SYNTHETIC_COUNT, Synthetic } from "./synthetic.ts";
import type { HandlerTarget, HandlerTraits, MainFunction } from "./target.ts";

export interface Interpreter {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Handler numbers by variant: for any segments; for flat ones; for flat ones without an index register. */
  readonly general: Uint16Array;
  readonly flat: Uint16Array;
  readonly flatNoIndex: Uint16Array;
  /** 1 where a block ends with the variant. */
  readonly endsBlock: Uint8Array;
  /** Names by handler number. */
  readonly names: readonly string[];
  /** Arms of the main function. */
  readonly arms: number;
}

type Arm = { name: string; emit: (target: HandlerTarget) => void; flat: boolean; noIndex: boolean };

/** `helperNames`: every helper that exists, so that a row that names another fails here. */
export function buildInterpreter(
  variants: readonly Variant[],
  helperNames: ReadonlySet<string>,
  hot: (variant: Variant) => boolean = isHot,
): Interpreter {
  const module = new ModuleBuilder();
  const imports = declareImports(module);
  const helperType = signature(["i32", "i32", "i32", "i32"], ["i32"]);
  const missing = new Set<string>();
  const helperIndexes = new Map(
    [...helperNames].sort().map((name) => [name, module.importFunction("helper", name, helperType)]),
  );
  const common = buildCommonFunctions(module, imports);
  const handlerType = module.typeIndex(signature(["i32"], ["i32"]));

  const base = {
    common,
    helper: (name: string): number => {
      const index = helperIndexes.get(name);
      if (index === undefined) missing.add(name);
      return index ?? 0;
    },
  };
  const asFunction = (variant: Variant): { fn: FunctionBuilder; traits: HandlerTraits } => {
    const fn = new FunctionBuilder(handlerType, 1);
    const emitter = new InterpreterEmitter(variant, { ...base, fn, pc: 0, main: undefined, flat: false, noIndex: false });
    emitter.emitHandler();
    fn.code.op("unreachable");
    return { fn, traits: emitter.traits };
  };

  const arms: Arm[] = syntheticArms(common);
  const functions: FunctionBuilder[] = [];
  const functionNames: string[] = [];
  const general = new Uint16Array(variants.length);
  const flat = new Uint16Array(variants.length);
  const flatNoIndex = new Uint16Array(variants.length);
  const endsBlock = new Uint8Array(variants.length);
  const addArm = (variant: Variant, isFlat: boolean, noIndex: boolean): number =>
    arms.push({
      name: `${variant.name}${isFlat ? " flat" : ""}${noIndex ? " no index" : ""}`,
      emit: (target) => new InterpreterEmitter(variant, target).emitHandler(),
      flat: isFlat,
      noIndex,
    }) - 1;

  const addFunctions: (() => void)[] = [];
  for (const variant of variants) {
    const { fn, traits } = asFunction(variant);
    const { number } = variant;
    endsBlock[number] = traits.endsBlock ? 1 : 0;
    const isArm = hot(variant);
    if (isArm && !traits.usesMemory) {
      general[number] = flat[number] = flatNoIndex[number] = addArm(variant, false, false);
      continue;
    }
    if (isArm) {
      flat[number] = addArm(variant, true, false);
      flatNoIndex[number] = traits.usesAddress ? addArm(variant, true, true) : flat[number];
    }
    addFunctions.push(() => {
      general[number] = arms.length + functions.push(fn) - 1;
      functionNames.push(variant.name);
      if (!isArm) flat[number] = flatNoIndex[number] = general[number];
    });
  }
  for (const add of addFunctions) add();
  if (missing.size > 0) throw new Error(`helpers named by instructions but not registered: ${[...missing].sort().join(", ")}`);
  if (arms.length + functions.length > 0xffff) throw new RangeError("more handlers than handler numbers");

  const main = buildMain(module, common, base, arms, handlerType, functions.length > 0);
  module.table(functions.map((fn) => module.add(fn)));
  const run = module.add(main);
  module.export("run", run);
  // It takes a tenth of a second to optimise, and a guest that begins before runs four times slower until then
  module.optimizeAtOnce(run);
  for (const [name, index] of Object.entries(buildRegionSupport(module, common))) module.export(name, index);
  module.export("granulesEqual", buildGranulesEqual(module));
  module.exportTable("handlers");
  return {
    bytes: module.encode(),
    general,
    flat,
    flatNoIndex,
    endsBlock,
    names: [...arms.map(({ name }) => name), ...functionNames],
    arms: arms.length,
  };
}

/** run(header): runs the block at that header, or at `state.rip` when 0, and what follows, until the budget is short. */
function buildMain(
  module: ModuleBuilder,
  common: CommonFunctions,
  base: Pick<HandlerTarget, "common" | "helper">,
  arms: readonly Arm[],
  handlerType: number,
  hasFunctions: boolean,
): FunctionBuilder {
  const fn = new FunctionBuilder(module.typeIndex(signature(["i32"])), 1);
  const c = fn.code;
  const pc = 0;
  const rip = fn.allocate("i64");
  const header = fn.allocate("i32");
  const link = fn.allocate("i32");
  const scratch = fn.allocate("i32");

  c.loadAt("i64.load", state.rip).set(rip);
  c.get(pc).tee(header).op("i32.eqz").if();
  c.get(rip).call(common.find).tee(header).op("i32.eqz").if();
  c.return().end().end();
  const enter = c.loop();
  {
    c.loadAt("i32.load", state.budget)
      .get(header)
      .memory("i32.load", block.charge)
      .op("i32.sub")
      .tee(scratch)
      .i32(0)
      .op("i32.lt_s")
      .if();
    c.i32(0).get(rip).memory("i64.store", state.rip).return();
    c.end();
    c.i32(0).get(scratch).memory("i32.store", state.budget);
    c.i32(0).get(rip).memory("i64.store", state.blockRip);
    c.i32(0).get(header).memory("i32.store", state.blockStart);
    c.get(header).i32(OP_BYTES).op("i32.add").set(pc);
    const follow = c.block();
    {
      const lookup = c.block();
      {
        // A translated region, or one more entry towards it.
        c.get(header).memory("i32.load", block.region).tee(scratch).op("i32.eqz").if();
        c.get(header).get(header).memory("i32.load", block.entries).i32(1).op("i32.add").tee(scratch);
        c.memory("i32.store", block.entries);
        c.get(scratch)
          .i32((ENTRIES_PER_QUESTION - 1) | NEVER_ASKED)
          .op("i32.and")
          .op("i32.eqz")
          .if();
        c.get(header).call(common.imports.hot).end();
        c.get(header).memory("i32.load", block.region).set(scratch).end();
        c.get(scratch).if();
        c.get(pc).get(scratch).callIndirect(handlerType).tee(pc).op("i32.eqz").if();
        c.loadAt("i64.load", state.rip).set(rip);
        c.loadAt("i32.load", state.found).tee(header).brIf(enter).br(lookup).end();
        c.end();
        const dispatch = c.loop();
        const main: MainFunction = { dispatch, lookup, follow, rip, link };
        const outOfLine = c.block();
        const labels: Label[] = [];
        for (let index = 0; index < arms.length; index++) labels.unshift(c.block());
        c.get(pc).memory("i32.load16_u", op.handler).brTable(labels, outOfLine);
        for (const arm of arms) {
          c.end();
          arm.emit({ ...base, fn, pc, main, flat: arm.flat, noIndex: arm.noIndex });
        }
        c.end();
        if (hasFunctions) {
          c.get(pc)
            .get(pc)
            .memory("i32.load16_u", op.handler)
            .i32(arms.length)
            .op("i32.sub")
            .callIndirect(handlerType)
            .tee(pc)
            .brIf(dispatch);
          c.loadAt("i64.load", state.rip).set(rip).br(lookup);
        } else c.op("unreachable");
        c.end();
      }
      c.end();
      c.get(rip).call(common.find).tee(header).brIf(enter).return();
    }
    c.end();
    c.get(link).memory("i32.load", 0).tee(header).brIf(enter);
    c.get(rip).call(common.find).tee(header).op("i32.eqz").if();
    c.return().end();
    emitLink(c, header, link, rip, scratch);
    c.br(enter);
  }
  c.end();
  return fn;
}

/**
 * Fills the link field when the block found lies in the same page as the running one, whole, and as far from it in memory as in
 * RIP: then it follows whenever the running block does. `blockStart` is 0 when blocks were dropped meanwhile.
 */
function emitLink(c: Code, header: number, link: number, rip: number, scratch: number): void {
  c.loadAt("i32.load", state.blockStart).if();
  c.get(header)
    .memory("i32.load", block.physical)
    .loadAt("i32.load", state.blockStart)
    .memory("i32.load", block.physical)
    .op("i32.sub");
  c.op("i64.extend_i32_s").get(rip).loadAt("i64.load", state.blockRip).op("i64.sub").op("i64.eq");
  c.get(header)
    .memory("i32.load", block.physical)
    .tee(scratch)
    .get(header)
    .memory("i32.load", block.bytes)
    .op("i32.add")
    .i32(1)
    .op("i32.sub");
  c.loadAt("i32.load", state.blockStart)
    .memory("i32.load", block.physical)
    .op("i32.xor")
    .i32(12)
    .op("i32.shr_u")
    .op("i32.eqz")
    .op("i32.and");
  // A block that was dropped costs more than it counts.
  c.get(header).memory("i32.load", block.charge).get(header).memory("i32.load", block.count).op("i32.eq").op("i32.and");
  c.if();
  c.get(link).get(header).memory("i32.store", 0).end();
  c.end();
}

function syntheticArms(common: CommonFunctions): Arm[] {
  const arms: Arm[] = [];
  const add = (number: number, name: string, emit: (c: Code, target: HandlerTarget, main: MainFunction) => void): void => {
    arms[number] = {
      name,
      flat: false,
      noIndex: false,
      emit: (target) => emit(target.fn.code, target, target.main as MainFunction),
    };
  };
  const ripOfRecord = (c: Code, target: HandlerTarget, main: MainFunction): void => {
    c.loadAt("i64.load", state.blockRip).get(target.pc).memory("i64.load16_u", op.ripOffset).op("i64.add");
    c.i64(-1n)
      .i32(64)
      .loadAt("i32.load", state.codeSize)
      .op("i32.sub")
      .op("i64.extend_i32_u")
      .op("i64.shr_u")
      .op("i64.and")
      .set(main.rip);
  };
  add(Synthetic.end, "(end of block)", (c, target, main) => {
    ripOfRecord(c, target, main);
    c.loadAt("i32.load", state.blockStart).i32(block.next).op("i32.add").set(main.link).br(main.follow);
  });
  add(Synthetic.cut, "(cut)", (c, target, main) => {
    c.get(target.pc).i32(OP_BYTES).op("i32.sub").call(common.refund);
    ripOfRecord(c, target, main);
    c.br(main.lookup);
  });
  add(Synthetic.undefinedInstruction, "(undefined)", (c, target) => {
    c.get(target.pc).call(common.sync).call(common.imports.undefinedInstruction).op("unreachable");
  });
  add(Synthetic.tooLong, "(too long)", (c, target) => {
    c.get(target.pc).call(common.sync).i32(Vector.GP).i32(0).call(common.imports.raise).op("unreachable");
  });
  if (arms.length !== SYNTHETIC_COUNT) throw new Error("synthetic handlers are not dense");
  return arms;
}
