/** Moves of MMX and SSE registers, logic of SSE floats, non-temporal stores, EMMS, MXCSR. */
import { state } from "../cpu-state.ts";
import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import { MXCSR_MASK } from "../fpu/fxsave.ts";
import { type Form, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { beginMmxStore, enterMmx, fromHalves, fromLow, high64, low64, mergeLow, splatConst } from "./vector-common.ts";
import { knownFields, shuffleWords } from "./vector-integer.ts";

type Requirement = "sse" | "mmx";
function row(
  mnemonic: string,
  requires: readonly Requirement[],
  forms: readonly Form[],
  semantics: (e: Emitter, operands: readonly FormOperand[]) => void,
): Instruction {
  return instruction(mnemonic, { source: sdm("2B", mnemonic), requires, forms, semantics });
}

/** Whole-register moves; `aligned`: #GP(0) for memory operands that are not. */
function move(mnemonic: string, aligned: boolean, load: string, store: string): Instruction {
  return row(mnemonic, ["sse"], [form(load, "xmm, xmm/m128"), form(store, "xmm/m128, xmm")], (e, [dst, src]) => {
    if (aligned) e.checkAligned(e.isMemory(dst) ? dst : src);
    e.writeVec(dst, e.readVec(src));
  });
}

/** Scalar moves: loads clear the rest of the register, moves between registers keep it. */
function moveScalar(mnemonic: string, prefix: string, bits: 32 | 64): Instruction {
  const forms = [form(`${prefix} 0F 10 /r`, `xmm, xmm/m${bits}`), form(`${prefix} 0F 11 /r`, `xmm/m${bits}, xmm`)];
  return row(mnemonic, ["sse"], forms, (e, [dst, src]) => {
    const value = e.readVec(src);
    const merges = !e.isMemory(dst) && !e.isMemory(src);
    e.writeVec(dst, merges ? mergeLow(e, value, e.readVec(dst), bits) : value);
  });
}

/** Moves of one half of a register: `load` and `store` of m64, and between halves of two registers. */
function moveHalf(name: string, prefix: string, opcode: string, storeOpcode: string, high: boolean): Instruction[] {
  return [
    row(name, ["sse"], [form(`${prefix} 0F ${opcode} /r`, "xmm, m64")], (e, [dst, src]) => {
      const value = e.read(src);
      const old = e.readVec(dst);
      e.writeVec(dst, e.lane("i64x2.replace_lane", high ? 1 : 0, old, value) as Vec);
    }),
    row(name, ["sse"], [form(`${prefix} 0F ${storeOpcode} /r`, "m64, xmm")], (e, [dst, src]) => {
      const value = e.readVec(src);
      e.write(dst, high ? high64(e, value) : low64(e, value));
    }),
  ];
}

/** The low half of the first vector and that of the second. */
const LOW_WITH_ZEROS = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];

const moves = [
  move("MOVAPS", true, "NP 0F 28 /r", "NP 0F 29 /r"),
  move("MOVAPD", true, "66 0F 28 /r", "66 0F 29 /r"),
  move("MOVDQA", true, "66 0F 6F /r", "66 0F 7F /r"),
  move("MOVUPS", false, "NP 0F 10 /r", "NP 0F 11 /r"),
  move("MOVUPD", false, "66 0F 10 /r", "66 0F 11 /r"),
  move("MOVDQU", false, "F3 0F 6F /r", "F3 0F 7F /r"),
  moveScalar("MOVSS", "F3", 32),
  moveScalar("MOVSD", "F2", 64),
  ...moveHalf("MOVLPS", "NP", "12", "13", false),
  ...moveHalf("MOVLPD", "66", "12", "13", false),
  ...moveHalf("MOVHPS", "NP", "16", "17", true),
  ...moveHalf("MOVHPD", "66", "16", "17", true),
  row("MOVHLPS", ["sse"], [form("NP 0F 12 /r", "xmm, xmm=rm")], (e, [dst, src]) => {
    e.writeVec(dst, e.shuffle(e.readVec(src), e.readVec(dst), words(2, 3, 6, 7)));
  }),
  row("MOVLHPS", ["sse"], [form("NP 0F 16 /r", "xmm, xmm=rm")], (e, [dst, src]) => {
    e.writeVec(dst, e.shuffle(e.readVec(dst), e.readVec(src), words(0, 1, 4, 5)));
  }),
  row("MOVQ", ["sse"], [form("F3 0F 7E /r", "xmm, xmm/m64"), form("66 0F D6 /r", "xmm/m64, xmm")], (e, [dst, src]) => {
    const value = e.readVec(src);
    const isWhole = e.isMemory(dst) || e.isMemory(src);
    e.writeVec(dst, isWhole ? value : e.shuffle(value, splatConst(e, 0, 8), LOW_WITH_ZEROS));
  }),
  row("MOVD/MOVQ", ["sse"], [form("66 0F 6E /r", "xmm, r/my")], (e, [dst, src]) => {
    e.writeVec(dst, fromLow(e, e.read(src)));
  }),
  row("MOVD/MOVQ", ["sse"], [form("66 0F 7E /r", "r/my, xmm")], (e, [dst, src]) => {
    e.write(dst, e.truncate(low64(e, e.readVec(src)), e.size));
  }),
];

const mmxMoves = [
  row("MOVD/MOVQ", ["mmx"], [form("NP 0F 6E /r", "mm, r/my")], (e, [dst, src]) => {
    const value = e.read(src);
    enterMmx(e);
    e.writeVec(dst, fromLow(e, value));
  }),
  row("MOVD/MOVQ", ["mmx"], [form("NP 0F 7E /r", "r/my, mm")], (e, [dst, src]) => {
    if (e.isMemory(dst)) beginMmxStore(e);
    e.write(dst, e.truncate(low64(e, e.readVec(src)), e.size));
    enterMmx(e);
  }),
  row("MOVQ", ["mmx"], [form("NP 0F 6F /r", "mm, mm/m64")], (e, [dst, src]) => {
    const value = e.readVec(src);
    enterMmx(e);
    e.writeVec(dst, value);
  }),
  row("MOVQ", ["mmx"], [form("NP 0F 7F /r", "mm/m64, mm")], (e, [dst, src]) => {
    if (e.isMemory(dst)) beginMmxStore(e);
    e.writeVec(dst, e.readVec(src));
    enterMmx(e);
  }),
  row("MOVNTQ", ["mmx"], [form("NP 0F E7 /r", "m64, mm")], (e, [dst, src]) => {
    beginMmxStore(e);
    e.writeVec(dst, e.readVec(src));
    enterMmx(e);
  }),
  row("MOVDQ2Q", ["sse", "mmx"], [form("F2 0F D6 /r", "mm, xmm=rm")], (e, [dst, src]) => {
    enterMmx(e);
    e.writeVec(dst, fromLow(e, low64(e, e.readVec(src))));
  }),
  row("MOVQ2DQ", ["sse", "mmx"], [form("F3 0F D6 /r", "xmm, mm=rm")], (e, [dst, src]) => {
    enterMmx(e);
    e.writeVec(dst, e.readVec(src));
  }),
  row("EMMS", ["mmx"], [form("NP 0F 77", "")], (e) => {
    enterMmx(e);
    e.setState(state.fpuTags, 16, e.int(0xffff));
  }),
];

/** Non-temporal stores are stores here: there are no caches to bypass. */
const nonTemporal = [
  row(
    "MOVNTPS/MOVNTPD/MOVNTDQ",
    ["sse"],
    [form("NP 0F 2B /r", "m128, xmm"), form("66 0F 2B /r", "m128, xmm"), form("66 0F E7 /r", "m128, xmm")],
    (e, [dst, src]) => {
      e.checkAligned(dst);
      e.writeVec(dst, e.readVec(src));
    },
  ),
  // Works on general registers: none of the checks of SSE apply.
  row("MOVNTI", [], [form("NP 0F C3 /r", "my, ry")], (e, [dst, src]) => {
    e.write(dst, e.read(src));
  }),
];

function bitwise(mnemonic: string, opcode: string, operation: (e: Emitter, a: Vec, b: Vec) => Vec): Instruction {
  const forms = [form(`NP 0F ${opcode} /r`, "xmm, xmm/m128"), form(`66 0F ${opcode} /r`, "xmm, xmm/m128")];
  return row(mnemonic, ["sse"], forms, (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, operation(e, e.readVec(dst), b));
  });
}

/** A row of two full operands that may be told an immediate. */
function rearrange(
  mnemonic: string,
  opcode: string,
  operands: string,
  operation: (e: Emitter, a: Vec, b: Vec, immediate: Int) => Vec,
): Instruction {
  return row(mnemonic, ["sse"], [form(opcode, operands)], (e, [dst, src, immediate]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, operation(e, e.readVec(dst), b, immediate === undefined ? e.int(0) : e.read(immediate)));
  });
}
const words = (...lanes: number[]): number[] => lanes.flatMap((lane) => [0, 1, 2, 3].map((i) => lane * 4 + i));

/** A half of `a`, then one of `b`. */
function shuffleHalves(e: Emitter, a: Vec, b: Vec, immediate: Int): Vec {
  const known = e.valueOf(immediate);
  if (known !== undefined) {
    const [first, second] = [Number(known & 1n) * 2, Number((known >> 1n) & 1n) * 2 + 4];
    return e.shuffle(a, b, words(first, first + 1, second, second + 1));
  }
  const half = (bit: number, vector: Vec): Int => e.select(e.bit(immediate, bit), high64(e, vector), low64(e, vector));
  return fromHalves(e, half(0, a), half(1, b));
}
/** Two 32-bit lanes of `a`, then two of `b`. */
function shufflePair(e: Emitter, a: Vec, b: Vec, immediate: Int): Vec {
  const fields = knownFields(e, immediate);
  if (fields === undefined) return e.shuffle(shuffleWords(e, a, immediate), shuffleWords(e, b, immediate), words(0, 1, 6, 7));
  const [first, second, third, fourth] = fields as [number, number, number, number];
  return e.shuffle(a, b, words(first, second, third + 4, fourth + 4));
}

const rearranged = [
  bitwise("ANDPS/ANDPD", "54", (e, a, b) => e.vec("v128.and", a, b)),
  bitwise("ANDNPS/ANDNPD", "55", (e, a, b) => e.vec("v128.andnot", b, a)),
  bitwise("ORPS/ORPD", "56", (e, a, b) => e.vec("v128.or", a, b)),
  bitwise("XORPS/XORPD", "57", (e, a, b) => e.vec("v128.xor", a, b)),
  rearrange("UNPCKLPS", "NP 0F 14 /r", "xmm, xmm/m128", (e, a, b) => e.shuffle(a, b, words(0, 4, 1, 5))),
  rearrange("UNPCKHPS", "NP 0F 15 /r", "xmm, xmm/m128", (e, a, b) => e.shuffle(a, b, words(2, 6, 3, 7))),
  rearrange("UNPCKLPD", "66 0F 14 /r", "xmm, xmm/m128", (e, a, b) => e.shuffle(a, b, words(0, 1, 4, 5))),
  rearrange("UNPCKHPD", "66 0F 15 /r", "xmm, xmm/m128", (e, a, b) => e.shuffle(a, b, words(2, 3, 6, 7))),
  rearrange("SHUFPS", "NP 0F C6 /r ib", "xmm, xmm/m128, imm8", (e, a, b, immediate) => shufflePair(e, a, b, immediate)),
  rearrange("SHUFPD", "66 0F C6 /r ib", "xmm, xmm/m128, imm8", (e, a, b, immediate) => shuffleHalves(e, a, b, immediate)),
];

function moveMask(mnemonic: string, prefix: string, operation: string): Instruction {
  return row(mnemonic, ["sse"], [form(`${prefix} 0F 50 /r`, "r32, xmm=rm")], (e, [dst, src]) => {
    e.write(dst, e.fromI32(e.scalar(operation, e.readVec(src)) as Bool));
  });
}

const control = [
  moveMask("MOVMSKPS", "NP", "i32x4.bitmask"),
  moveMask("MOVMSKPD", "66", "i64x2.bitmask"),
  row("LDMXCSR", ["sse"], [form("NP 0F AE /2", "m32")], (e, [source]) => {
    const value = e.read(source);
    e.raiseIf(e.ne(e.and(value, e.int(~MXCSR_MASK)), e.int(0)), "#GP", 0);
    e.setState(state.mxcsr, 32, value);
  }),
  row("STMXCSR", ["sse"], [form("NP 0F AE /3", "m32")], (e, [target]) => {
    e.write(target, e.state(state.mxcsr, 32));
  }),
];

export const vectorMoves: readonly Instruction[] = [...moves, ...mmxMoves, ...nonTemporal, ...rearranged, ...control];
