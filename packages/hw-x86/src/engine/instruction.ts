/**
 * The semantics table's vocabulary. An instruction is a row: its forms as the manual's opcode column writes them, and what it
 * does, written once against `Emitter`. Decoder, interpreter, translator and test generators are all derived from the rows.
 *
 * Opcode column: hex bytes, then any of
 *   /r       ModRM with register operand            /0 .. /7   ModRM with opcode extension
 *   ib iw id io  immediate of that size             iz         16 bits for 16-bit operand size, else 32 (sign-extended for 64)
 *   iv       immediate of operand size (64 too)     cb cz      relative offset, 8 bits / operand size (at most 32)
 *   +r       register number in the low three bits of the opcode       +cc  condition code in the low four bits
 *   moffs    memory offset of address size          iw:iz ("ptr16:z")  far pointer
 *   NP 66 F2 F3   mandatory prefix, written before the opcode (NP: none of them; NFx: neither F2 nor F3). A form without one
 *                 takes what no form with the prefix at hand claims, and 66 is then its operand size
 *   REX.W       before the opcode: only with REX.W; wins over the same form without it, which otherwise takes both
 *   VEX.LZ.F2.0F38   before the opcode: a VEX prefix with L (LZ or 128, 256, LIG: either), the mandatory prefix it implies (NP when
 *                 absent), the opcode map, and W0 or W1 where W is part of the opcode, outside 64-bit mode too. vvvv must be unused
 *                 unless an operand is in it
 *   mod=3, mod!=3   restricts ModRM                 a byte after the opcode, as in "0F 01 C1", is the whole ModRM byte
 *   D8 C0+i     ModRM bytes C0 to C7: the register number st(i) is in the low three bits
 *
 * Operand column, in the order in which the semantics receive them:
 *   r8 r16 r32 r64 rv (operand size) ry (32, or 64 with REX.W) rz rd64 (64 in 64-bit mode, else 32)   from ModRM.reg, or +r
 *   r/m8 r/m16 r/m32 r/m64 r/mv r/my ...     from ModRM.rm;   m m8 .. m512 mv: memory only;   rm suffix "reg only": r8=rm, rv=rm ...
 *   r32/m8 rv/m16 ...   register and memory of different sizes
 *   m16:v       far pointer in memory: offset of operand size, then the selector;  m16&32 and the like: memory without a size
 *   imm8 (zero-extended) imm8sx imm16 imm32 immz (sign-extended) immv  rel8 relz   ptr16:z  moffs8 moffsv (see below)
 *   imm16:8     for "iw ib" (ENTER): imm16 in bits 0-15, imm8 in bits 16-23 of one immediate
 *   AL AX EAX rAX(v) CL DX 1 and the like: fixed registers, constants; ES CS SS DS FS GS: their numbers as constants
 *   ry=v xmm=v  in VEX.vvvv;   xmm=is4   in the upper half of the immediate byte "is4"
 *   ymm ymm/m256 m256 ...   256 bits;   vm32x vm64y ...   memory by a vector of indices (VSIB)
 *   XMM0        that register, which no part of the encoding names
 *   sreg (ModRM.reg), cr, dr (ModRM.reg), xmm, xmm/m128, xmm/m64, xmm/m32, xmm=rm, mm, mm/m64, mm=rm, st(i)
 *
 * Attributes (third argument and on):
 *   "lock"      LOCK allowed when the destination is memory (#UD otherwise, everywhere)
 *   "default64" operand size is 64 in 64-bit mode, 16 with 66; "force64": always 64 there (near branches)
 *   "invalid64" #UD in 64-bit mode; "only64": #UD outside it
 *   "sized"     has an operand size (16, 32, 64) though no operand names it: CBW, PUSHA, MOVSD, far RET. default64 and force64
 *               imply it. Without any of these, a form with a byte operand has size 8, else that of its first operand, else 32
 *   "byte"      has size 8 though no operand names it: MOVSB
 *   "rep"       REP prefixes mean repetition; elsewhere they are ignored unless mandatory. Repeated forms are rows of their own
 *               with the prefix written: "F3 A4"
 * moffs: the address is in `e.immediate()`, all 64 bits of it; the semantics use loadDefault and storeDefault.
 *   "noTranslate" for the translator: always call the interpreter
 */
import type { Emitter, Vec } from "./emitter.ts";

export type Attribute =
  | "lock"
  | "default64"
  | "force64"
  | "invalid64"
  | "only64"
  | "sized"
  | "byte"
  | "rep"
  | "cold"
  | "noTranslate";

export interface Form {
  readonly opcode: string;
  readonly operands: string;
  readonly attributes: readonly Attribute[];
}

/** One operand of a form, as the decoder and the emitters share it. `text` is the operand column's own word. */
export interface FormOperand {
  readonly text: string;
  /** Position in the operand column, from 0. */
  readonly position: number;
  readonly view?: OperandView;
}

/** How a row made for an operand of 128 bits sees one of a form that is derived from it (semantics/vex.ts). */
export interface OperandView {
  /** Which half of 256 bits it is. */
  readonly half: 0 | 1;
  /** What is read in the operand's place. */
  readonly reads?: FormOperand;
  /** What is read, where it has been read already. */
  readonly value?: Vec;
  /** Takes what is written, in the operand's place. */
  readonly written?: (value: Vec) => void;
  /** Memory is to be aligned to so many bytes; 0: not at all. */
  readonly alignment: number;
  /** Immediates: bits below those that are meant. */
  readonly shift: number;
}

export type Requirement = "fpu" | "sse" | "avx" | "mmx" | "cpl0" | "protected" | "waitFpu";

export interface Instruction {
  readonly mnemonic: string;
  /** Manual and section title, as "Intel SDM Vol. 2A, ADD - Add". */
  readonly source: string;
  readonly forms: readonly Form[];
  /** "fpu": #NM by CR0.EM or TS, #MF pending; "sse": #UD by CR0.EM or no CR4.OSFXSR, #NM by TS;
   *  "avx": #UD in real and virtual-8086 mode and unless CR4.OSXSAVE and XCR0 enable it, #NM by TS; "cpl0": #GP(0) unless CPL 0. */
  readonly requires?: readonly Requirement[];
  readonly semantics: (e: Emitter, operands: readonly FormOperand[]) => void;
}

export function form(opcode: string, operands: string, ...attributes: Attribute[]): Form {
  return { opcode, operands, attributes };
}

export function instruction(mnemonic: string, row: Omit<Instruction, "mnemonic">): Instruction {
  return { mnemonic, ...row };
}

/** Source by volume and section title of the Intel SDM. */
export function sdm(volume: string, title: string): string {
  return `Intel SDM Vol. ${volume}, ${title}`;
}
