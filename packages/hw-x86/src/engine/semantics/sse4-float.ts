/** Floating point of SSE4.1: rounding to integers, and dot products. */
import type { Bool, Doubt, Emitter, Vec } from "../emitter.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";
import {
  anyLane,
  FLOAT_TYPES,
  type FloatType,
  isNotTame,
  isPrecisionClear,
  isUnusual,
  PD,
  PS,
  replaceScalar,
  scalarOf,
  wildLanes,
} from "./float-checks.ts";
import { viaHelper } from "./vector-common.ts";

const BY_MXCSR = 4,
  NO_PRECISION = 8;
/** By the immediate's rounding field. */
const ROUNDINGS = ["nearest", "floor", "ceil", "trunc"];
const OPCODES = { PS: "08", PD: "09", SS: "0A", SD: "0B" } as const;

function differs(e: Emitter, type: FloatType, source: Vec, rounded: Vec): Bool {
  if (type.packed) return anyLane(e, e.vec(`${type.shape}.ne`, source, rounded));
  return e.scalar(`f${type.bits}.ne`, scalarOf(e, type, source), scalarOf(e, type, rounded)) as Bool;
}

const roundings = FLOAT_TYPES.map((type) =>
  instruction(`ROUND${type.suffix}`, {
    source: sdm("2B", `ROUND${type.suffix}`),
    requires: ["sse"],
    forms: [form(`66 0F 3A ${OPCODES[type.suffix]} /r ib`, `xmm, ${type.source}, imm8`)],
    semantics(e, [dst, src, immediate]) {
      if (type.packed) e.checkAligned(src);
      const b = e.readVec(src);
      const a = e.readVec(dst);
      const control = e.read(immediate);
      const exact = (): Vec => viaHelper(e, a, b, "sseRound", type.bits, type.lanes, e.low32(control));
      const known = e.valueOf(control);
      if (known === undefined) {
        e.writeVec(dst, exact());
        return;
      }
      const field = Number(known);
      // "Usual" means that MXCSR rounds to nearest
      const name = ROUNDINGS[(field & BY_MXCSR) !== 0 ? 0 : field & 3];
      const fast = type.packed
        ? e.vec(`${type.shape}.${name}`, b)
        : replaceScalar(e, type, a, e.scalar(`f${type.bits}.${name}`, scalarOf(e, type, b)));
      const doubts: Doubt[] = [[() => isUnusual(e)]];
      if (!e.knowsOf(b, type.tame)) {
        doubts.push(type.packed ? [() => anyLane(e, wildLanes(e, type, b))] : isNotTame(e, type, scalarOf(e, type, b)));
      }
      if ((field & NO_PRECISION) === 0) doubts.push([() => isPrecisionClear(e), () => differs(e, type, b, fast)]);
      const result = e.unless(doubts, fast, exact);
      e.learn("usual");
      e.learnOf(b, type.tame);
      e.learnOf(result, type.tame);
      e.writeVec(dst, result);
    },
  }),
);

const dotProducts = [PS, PD].map((type) =>
  instruction(`DP${type.suffix}`, {
    source: sdm("2A", `DP${type.suffix}`),
    requires: ["sse"],
    forms: [form(`66 0F 3A ${type === PS ? "40" : "41"} /r ib`, "xmm, xmm/m128, imm8")],
    semantics(e, [dst, src, immediate]) {
      e.checkAligned(src);
      const b = e.readVec(src);
      e.writeVec(dst, viaHelper(e, e.readVec(dst), b, "sseDotProduct", type.bits, e.low32(e.read(immediate))));
    },
  }),
);

export const sse4Float: readonly Instruction[] = [...roundings, ...dotProducts];
