/**
 * VEX-encoded forms of SSE rows. What such a form does is what its SSE row says: this module runs the row's semantics on operands that
 * are seen through views (instruction.ts). The first source is a register of its own, memory need not be aligned, and the upper half
 * of the destination is zeroed, or is what the same semantics make of the upper halves of the sources: nearly all instructions of 256
 * bits work on their two halves apart.
 */
import type { Emitter, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, type OperandView } from "../instruction.ts";
import { splatConst } from "./vector-common.ts";
import { LOW_HALVES } from "./vector-integer.ts";

const names = (text: string): ReadonlySet<string> => new Set(text.trim().split(/\s+/));

/** The destination of the SSE row is no source: these have as many operands as there. */
const ONE_SOURCE = names(`
  MOVAPS MOVAPD MOVDQA MOVUPS MOVUPD MOVDQU MOVQ MOVD/MOVQ MOVNTPS/MOVNTPD/MOVNTDQ MOVMSKPS MOVMSKPD LDMXCSR STMXCSR PSHUFD PSHUFLW
  PSHUFHW PEXTRW PMOVMSKB MASKMOVDQU SQRTPS SQRTPD RCPPS RSQRTPS UCOMISS UCOMISD COMISS COMISD CVTPS2PD CVTPD2PS CVTSS2SI CVTTSS2SI
  CVTSD2SI CVTTSD2SI CVTPS2DQ CVTTPS2DQ CVTDQ2PS CVTPD2DQ CVTTPD2DQ CVTDQ2PD MOVSLDUP MOVSHDUP MOVDDUP LDDQU PABSB PABSW PABSD PTEST
  PEXTRB PEXTRD/PEXTRQ EXTRACTPS PHMINPOSUW MOVNTDQA ROUNDPS ROUNDPD PCMPESTRM PCMPESTRI PCMPISTRM PCMPISTRI AESIMC
  AESKEYGENASSIST PMOVSXBW PMOVSXBD PMOVSXBQ PMOVSXWD PMOVSXWQ PMOVSXDQ PMOVZXBW PMOVZXBD PMOVZXBQ PMOVZXWD PMOVZXWQ PMOVZXDQ`);
/** 128 bits only; or the form of 256 bits is more than two halves (avx.ts). */
const ONE_LENGTH = names(`
  MOVLPS MOVLPD MOVHPS MOVHPD MOVHLPS MOVLHPS MOVQ MOVD/MOVQ PINSRW PEXTRW PEXTRB PEXTRD/PEXTRQ EXTRACTPS PINSRB PINSRD/PINSRQ INSERTPS
  PHMINPOSUW PCMPESTRM PCMPESTRI PCMPISTRM PCMPISTRI DPPD AESENC AESENCLAST AESDEC AESDECLAST AESIMC AESKEYGENASSIST PCLMULQDQ
  MASKMOVDQU LDMXCSR STMXCSR MOVMSKPS MOVMSKPD PMOVMSKB PTEST`);
/** VEX.L is ignored. */
const SCALAR = /^((ADD|SUB|MUL|DIV|SQRT|MIN|MAX|RCP|RSQRT|CMP|ROUND|U?COMI)S[SD]|CVTT?S[SDI]2S[SDI])$/;
/** Memory operands are to be aligned all the same. */
const ALIGNED = names("MOVAPS MOVAPD MOVDQA MOVNTPS/MOVNTPD/MOVNTDQ MOVNTDQA");
/** Sources of half the size: the upper half of the result comes from the source's own upper half. */
const WIDENING = /^(CVTPS2PD|CVTDQ2PD|PMOV[SZ]X..)$/;
/** Results of half the size. */
const NARROWING = names("CVTPD2PS CVTPD2DQ CVTTPD2DQ");
/** The second operand is one count for all. */
const SHIFT = /^PS(LL|RL|RA)[WDQ]$/;
/** The upper half goes by bits of the immediate that begin so far up. */
const UPPER_BITS: Readonly<Record<string, number>> = { SHUFPD: 2, BLENDPS: 4, BLENDPD: 2, MPSADBW: 3 };
/** Forms with a fourth register have opcodes of their own. */
const MASKED: Readonly<Record<string, string>> = { BLENDVPS: "4A", BLENDVPD: "4B", PBLENDVB: "4C" };
/** Rows of their own (avx.ts), and what has no VEX-encoded form. */
const NOT_DERIVED = /^(MOVS[SD]|CVTPI2P[SD]|SHA.*)$/;

/** The opcode column for a VEX prefix with that length. */
function vexOpcode(mnemonic: string, opcode: string, length: "128" | "256" | "LIG"): string {
  const tokens = opcode.split(" ");
  const prefix = tokens.shift() as string;
  const isWide = tokens[0] === "REX.W";
  if (isWide) tokens.shift();
  tokens.shift();
  let map = "0F";
  if (tokens[0] === "38" || tokens[0] === "3A") map += tokens.shift();
  const masked = MASKED[mnemonic];
  const rest = masked === undefined ? tokens.join(" ") : `${masked} /r is4`;
  const width = isWide ? ".W1" : masked === undefined ? "" : ".W0";
  return `VEX.${length}${prefix === "NP" ? "" : `.${prefix}`}.${masked === undefined ? map : "0F3A"}${width} ${rest}`;
}

const toYmm = (operand: string): string => {
  if (/^[xy]mm\/m\d+$/.test(operand)) return "ymm/m256";
  return operand.replace(/^xmm/, "ymm").replace(/^m128$/, "m256");
};

function vexOperands(row: Instruction, operands: string, length: "128" | "256" | "LIG", isBinary: boolean): string {
  const words = operands.split(", ").map((word) => (word === "XMM0" && row.mnemonic in MASKED ? "xmm=is4" : word));
  const [first, ...others] = words as [string, ...string[]];
  let result = words;
  if (isBinary) result = first === "xmm=rm" ? ["xmm=v", "xmm=rm", ...others] : [first, "xmm=v", ...others];
  if (length !== "256") return result.join(", ");
  return result
    .map((word, i) => {
      if (WIDENING.test(row.mnemonic) && i === 1) return word.replace(/\d+$/, (bits) => String(Number(bits) * 2));
      if (NARROWING.has(row.mnemonic) && i === 0) return word;
      return SHIFT.test(row.mnemonic) && word === "xmm/m128" ? word : toYmm(word);
    })
    .join(", ");
}

const isVector = (operand: FormOperand): boolean => /^([xy]mm|XMM0|m128|m256)/.test(operand.text);
/** Bytes from `distance` on, in the lowest places. */
const moveDown = (e: Emitter, value: Vec, distance: number): Vec =>
  e.shuffle(
    value,
    value,
    Array.from({ length: 16 }, (_, i) => (i + distance) & 15),
  );

/** The row's semantics with views of the operands; what it wrote to vectors. */
function runHalf(
  e: Emitter,
  row: Instruction,
  operands: readonly FormOperand[],
  isBinary: boolean,
  view: OperandView,
  source?: Vec,
): ReadonlyMap<FormOperand, Vec> {
  const results = new Map<FormOperand, Vec>();
  const seen = (operand: FormOperand, i: number): FormOperand => {
    if (!isVector(operand)) return operand.text.startsWith("imm") ? { ...operand, view } : operand;
    const written = (value: Vec): void => {
      results.set(operand, value);
    };
    const reads = isBinary && i === 0 ? (operands[1] as FormOperand) : operand;
    const value = i === 1 && source !== undefined ? { value: source } : {};
    return { ...operand, view: { ...view, reads, written, ...value } };
  };
  const legacy = isBinary ? operands.filter((_, i) => i !== 1) : operands;
  row.semantics(e, legacy.map(seen));
  return results;
}

/** Stores what a form of 128 bits made: the upper halves of registers are zeroed. */
export function writeZeroing(e: Emitter, operand: FormOperand, value: Vec): void {
  if (e.isMemory(operand)) e.writeVec(operand, value);
  else e.writeHalves(operand, value, splatConst(e, 0, 8));
}

function lowerSemantics(row: Instruction, isBinary: boolean): Instruction["semantics"] {
  const alignment = ALIGNED.has(row.mnemonic) ? 16 : 0;
  return (e, operands) => {
    for (const [operand, value] of runHalf(e, row, operands, isBinary, { half: 0, alignment, shift: 0 })) {
      writeZeroing(e, operand, value);
    }
  };
}

function wholeSemantics(row: Instruction, isBinary: boolean): Instruction["semantics"] {
  const alignment = ALIGNED.has(row.mnemonic) ? 32 : 0;
  const upperBits = UPPER_BITS[row.mnemonic] ?? 0;
  return (e, operands) => {
    let source: Vec | undefined;
    let distance = 0;
    if (WIDENING.test(row.mnemonic)) {
      const [, operand] = operands as [FormOperand, FormOperand];
      source = e.readVec(operand);
      distance = Number(/\d+$/.exec(operand.text)?.[0]) / 16;
    }
    const [low, high] = e.inHalves((half) => {
      const view = { half, alignment, shift: half === 0 ? 0 : upperBits };
      const part = source === undefined || half === 0 ? source : moveDown(e, source, distance);
      return runHalf(e, row, operands, isBinary, view, part);
    });
    for (const [operand, value] of low) {
      const upper = high.get(operand) as Vec;
      if (NARROWING.has(row.mnemonic)) writeZeroing(e, operand, e.shuffle(value, upper, LOW_HALVES));
      else e.writeHalves(operand, value, upper);
    }
  };
}

function deriveRow(row: Instruction): Instruction[] {
  const lengths = SCALAR.test(row.mnemonic)
    ? (["LIG"] as const)
    : ONE_LENGTH.has(row.mnemonic)
      ? (["128"] as const)
      : (["128", "256"] as const);
  return row.forms.flatMap((own) => {
    // Stores of halves have no register to keep the rest of
    const isBinary = !ONE_SOURCE.has(row.mnemonic) && !own.operands.startsWith("m64");
    return lengths.map((length) =>
      instruction(`V${row.mnemonic}`, {
        source: row.source,
        requires: ["avx"],
        forms: [
          form(
            vexOpcode(row.mnemonic, own.opcode, length),
            vexOperands(row, own.operands, length, isBinary),
            ...own.attributes,
          ),
        ],
        semantics: length === "256" ? wholeSemantics(row, isBinary) : lowerSemantics(row, isBinary),
      }),
    );
  });
}

/** The VEX-encoded forms of those of the rows that have any. */
export function deriveVex(rows: readonly Instruction[]): Instruction[] {
  return rows.filter(({ mnemonic, requires }) => requires?.join() === "sse" && !NOT_DERIVED.test(mnemonic)).flatMap(deriveRow);
}
