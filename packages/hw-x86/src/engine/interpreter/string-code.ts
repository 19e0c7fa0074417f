/**
 * REP MOVS and REP STOS that end in the pages they begin in, in 64-bit code: what remains of them is done at once, without the engine.
 * That counts as one instruction retired, as a run of the helpers in string-helpers.ts does, which do the rest.
 */
import { DS, segmentOffset, state } from "../cpu-state.ts";
import { op } from "../operation.ts";
import type { Code } from "../wasm/code.ts";
import { FunctionBuilder, type ModuleBuilder, signature } from "../wasm/module-builder.ts";
import { emitMatch, emitPlace } from "./memory-code.ts";

const PAGE = 4096;
/** DF and TF. */
const STEPWISE = 0x500;

/** (operation, count, rDI, rSI or value, bytes of an element) -> 1 when all was done and the registers may be set so. */
export const STRING_RUN = signature(["i32", "i64", "i64", "i64", "i32"], ["i32"]);
const [OPERATION, COUNT, TO, OTHER, BYTES] = [0, 1, 2, 3, 4];

export function buildMoveRun(module: ModuleBuilder): number {
  const f = new FunctionBuilder(module.typeIndex(STRING_RUN), 5);
  const c = f.code;
  const length = f.allocate("i32");
  const entry = f.allocate("i32");
  const tag = f.allocate("i64");
  const from = f.allocate("i32");
  const to = f.allocate("i32");
  begin(c, length);
  c.get(OPERATION).memory("i32.load16_u", op.segment).i32(segmentOffset(DS));
  refuse(c.op("i32.gt_u"));
  refuseOverPage(c, OTHER, length);
  refuseOverPage(c, TO, length);
  emitMatch(c, OTHER, entry, tag, false, undefined, 1);
  refuse(c.op("i32.eqz"));
  emitPlace(c, OTHER, entry);
  c.set(from);
  emitMatch(c, TO, entry, tag, true, undefined, 1);
  refuse(c.op("i32.eqz"));
  emitPlace(c, TO, entry);
  c.tee(to);
  // Elements that are read back after they were written spread a pattern, which copying does not
  c.get(from).op("i32.sub").get(length);
  refuse(c.op("i32.lt_u"));
  c.get(to).get(from).get(length).memoryCopy().i32(1);
  return module.add(f);
}

export function buildStoreRun(module: ModuleBuilder): number {
  const f = new FunctionBuilder(module.typeIndex(STRING_RUN), 5);
  const c = f.code;
  const length = f.allocate("i32");
  const entry = f.allocate("i32");
  const tag = f.allocate("i64");
  const to = f.allocate("i32");
  const done = f.allocate("i32");
  begin(c, length);
  refuseOverPage(c, TO, length);
  emitMatch(c, TO, entry, tag, true, undefined, 1);
  refuse(c.op("i32.eqz"));
  emitPlace(c, TO, entry);
  c.set(to);
  c.get(BYTES).i32(1).op("i32.eq").get(OTHER).op("i64.eqz").op("i32.or").if();
  c.get(to).get(OTHER).op("i32.wrap_i64").get(length).memoryFill().i32(1).return();
  c.end();
  // One element, then twice as much of what is there each time
  c.get(BYTES).i32(2).op("i32.eq").if();
  c.get(to).get(OTHER).memory("i64.store16", 0);
  c.else().get(BYTES).i32(4).op("i32.eq").if();
  c.get(to).get(OTHER).memory("i64.store32", 0);
  c.else().get(to).get(OTHER).memory("i64.store", 0).end().end();
  c.get(BYTES).set(done);
  const again = c.loop();
  c.get(done).get(length).op("i32.lt_u").if();
  c.get(to).get(done).op("i32.add").get(to);
  c.get(done).get(length).get(done).op("i32.sub").get(done).get(length).get(done).op("i32.sub").op("i32.lt_u").op("select");
  c.memoryCopy();
  c.get(done).i32(1).op("i32.shl").set(done).br(again);
  c.end().end();
  c.i32(1);
  return module.add(f);
}

/** A condition on the stack: then nothing is done. */
function refuse(c: Code): void {
  c.if();
  c.i32(0).return().end();
}

/** Refuses other modes, downward copies, counts above a page; is done when nothing is left; sets `length` in bytes. */
function begin(c: Code, length: number): void {
  c.loadAt("i32.load", state.codeSize).i32(64).op("i32.ne");
  c.get(OPERATION).memory("i32.load8_u", op.addressSize).i32(64).op("i32.ne").op("i32.or");
  c.loadAt("i32.load", state.systemFlags).i32(STEPWISE).op("i32.and").op("i32.or");
  c.loadAt("i32.load", state.iteratesSingly).op("i32.or");
  c.get(COUNT).i64(BigInt(PAGE)).op("i64.gt_u");
  refuse(c.op("i32.or"));
  c.get(COUNT).op("i32.wrap_i64").get(BYTES).op("i32.mul").tee(length);
  c.op("i32.eqz").if();
  c.i32(1).return().end();
}

function refuseOverPage(c: Code, linear: number, length: number): void {
  c.get(linear)
    .op("i32.wrap_i64")
    .i32(PAGE - 1)
    .op("i32.and")
    .get(length)
    .op("i32.add")
    .i32(PAGE);
  refuse(c.op("i32.gt_u"));
}
