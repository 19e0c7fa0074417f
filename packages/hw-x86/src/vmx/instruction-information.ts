/**
 * The VM-exit instruction-information field and the displacement that goes with it, decoded from the bytes of the instruction that
 * exited. Source: Intel SDM Vol. 3C, VM-Exit Instruction-Information Field; Exit Qualification.
 */
import { CS, state } from "../engine/cpu-state.ts";
import { FETCH, translate } from "../engine/system/paging.ts";
import type { GuestEngine } from "../root-interface.ts";

const PAGE = 4096;
const RBP = 5;
const RSP = 4;
const NO_REGISTER = -1;
const SEGMENT_PREFIXES: ReadonlyMap<number, number> = new Map([
  [0x26, 0],
  [0x2e, 1],
  [0x36, 2],
  [0x3e, 3],
  [0x64, 4],
  [0x65, 5],
]);
const OPERAND_SIZE = 0x66;
const ADDRESS_SIZE = 0x67;

interface Operands {
  readonly isRegister: boolean;
  /** ModRM.reg and, of a register form, ModRM.rm, with REX. */
  readonly reg: number;
  readonly rm: number;
  readonly scale: number;
  readonly index: number;
  readonly base: number;
  /** 16, 32 or 64. */
  readonly addressSize: number;
  readonly operandSize: number;
  readonly segment: number;
  /** With the RIP of the next instruction added where it is relative to that. */
  readonly displacement: bigint;
}

/** Bytes of the instruction that is at hand. */
function instructionBytes(engine: GuestEngine): Uint8Array {
  const bytes = new Uint8Array(engine.instructionLength());
  const user = engine.u32[state.cpl >>> 2] === 3;
  let at = engine.linear(CS, engine.get64(state.rip), 1, false) as bigint;
  for (let done = 0; done < bytes.length; ) {
    const low = Number(BigInt.asIntN(32, at));
    const offset = translate(engine, low, Number(BigInt.asIntN(32, at >> 32n)), FETCH, user);
    const length = Math.min(bytes.length - done, PAGE - (low & (PAGE - 1)));
    bytes.set(engine.u8.subarray(offset, offset + length), done);
    done += length;
    at += BigInt(length);
  }
  return bytes;
}

/** Base and index of 16-bit addressing, by ModRM.rm. */
const PAIRS_16: readonly (readonly [number, number])[] = [
  [3, 6],
  [3, 7],
  [RBP, 6],
  [RBP, 7],
  [6, NO_REGISTER],
  [7, NO_REGISTER],
  [RBP, NO_REGISTER],
  [3, NO_REGISTER],
];

function decodeOperands(engine: GuestEngine): Operands {
  const bytes = instructionBytes(engine);
  const view = new DataView(bytes.buffer);
  const codeSize = engine.u32[state.codeSize >>> 2] as number;
  let at = 0;
  let segment: number | undefined;
  let has66 = false;
  let has67 = false;
  let rex = 0;
  for (; ; at++) {
    const byte = bytes[at] as number;
    const override = SEGMENT_PREFIXES.get(byte);
    if (override !== undefined) segment = codeSize === 64 && override < 4 ? segment : override;
    else if (byte === OPERAND_SIZE) has66 = true;
    else if (byte === ADDRESS_SIZE) has67 = true;
    else if (byte !== 0xf2 && byte !== 0xf3) break;
  }
  if (codeSize === 64 && ((bytes[at] as number) & 0xf0) === 0x40) rex = bytes[at++] as number;
  // 0F and one byte, or 0F 38 and one
  at += bytes[at + 1] === 0x38 ? 3 : 2;
  const modrm = bytes[at++] as number;
  const mod = modrm >>> 6;
  const rmLow = modrm & 7;
  const addressSize = codeSize === 64 ? (has67 ? 32 : 64) : (codeSize === 32) !== has67 ? 32 : 16;
  const operandSize = codeSize === 64 ? ((rex & 8) !== 0 ? 64 : has66 ? 16 : 32) : (codeSize === 32) !== has66 ? 32 : 16;
  const reg = ((modrm >>> 3) & 7) | ((rex & 4) << 1);
  const rm = rmLow | ((rex & 1) << 3);
  const sizes = { reg, rm, addressSize, operandSize };
  const none = { scale: 0, index: NO_REGISTER, base: NO_REGISTER };
  if (mod === 3) return { ...sizes, ...none, isRegister: true, segment: 0, displacement: 0n };
  let { scale, index, base } = none;
  let bytesOfDisplacement = mod === 1 ? 1 : mod === 2 ? (addressSize === 16 ? 2 : 4) : 0;
  let isRelative = false;
  if (addressSize === 16) {
    if (mod === 0 && rmLow === 6) bytesOfDisplacement = 2;
    else [base, index] = PAIRS_16[rmLow] as readonly [number, number];
  } else if (rmLow === RSP) {
    const sib = bytes[at++] as number;
    scale = sib >>> 6;
    index = ((sib >>> 3) & 7) | ((rex & 2) << 2);
    if (index === RSP) index = NO_REGISTER;
    base = (sib & 7) | ((rex & 1) << 3);
    if (mod === 0 && (sib & 7) === RBP) {
      base = NO_REGISTER;
      bytesOfDisplacement = 4;
    }
  } else if (mod === 0 && rmLow === RBP) {
    bytesOfDisplacement = 4;
    isRelative = codeSize === 64;
  } else base = rm;
  let displacement = 0n;
  if (bytesOfDisplacement === 1) displacement = BigInt(view.getInt8(at));
  else if (bytesOfDisplacement === 2) displacement = BigInt(view.getInt16(at, true));
  else if (bytesOfDisplacement === 4) displacement = BigInt(view.getInt32(at, true));
  if (isRelative) displacement += engine.nextRip();
  segment ??= base === RBP || base === RSP ? 2 : 3;
  return { ...sizes, scale, index, base, isRegister: false, segment, displacement };
}

/** What all memory operands have in the field. */
function memoryInformation(operands: Operands): number {
  const { scale, index, base, addressSize, segment } = operands;
  return (
    scale |
    ((addressSize >>> 5) << 7) |
    (segment << 15) |
    (index === NO_REGISTER ? 1 << 22 : index << 18) |
    (base === NO_REGISTER ? 1 << 27 : base << 23)
  );
}

const TABLES = ["SGDT", "SIDT", "LGDT", "LIDT"];
const SELECTORS = ["SLDT", "STR", "LLDT", "LTR"];
const MEMORY = ["VMCLEAR", "VMPTRLD", "VMPTRST", "VMXON", "XSAVES", "XRSTORS"];
const MEMORY_AND_REGISTER = ["INVEPT", "INVVPID", "INVPCID"];
const EITHER_AND_REGISTER = ["VMREAD", "VMWRITE"];
const RANDOM = ["RDRAND", "RDSEED"];

export interface InstructionInformation {
  readonly field: number;
  /** Bits 63:0 of the exit qualification. */
  readonly displacement: bigint;
}

/** Of the instruction at hand, whose mnemonic is told; undefined: its exits have neither. */
export function instructionInformation(engine: GuestEngine, mnemonic: string): InstructionInformation | undefined {
  if (RANDOM.includes(mnemonic)) {
    const { rm, operandSize } = decodeOperands(engine);
    return { field: (rm << 3) | ((operandSize >>> 5) << 11), displacement: 0n };
  }
  const isKnown = [TABLES, SELECTORS, MEMORY, MEMORY_AND_REGISTER, EITHER_AND_REGISTER].some((list) => list.includes(mnemonic));
  if (!isKnown) return undefined;
  const operands = decodeOperands(engine);
  let field = operands.isRegister ? (operands.rm << 3) | (1 << 10) : memoryInformation(operands);
  if (TABLES.includes(mnemonic)) {
    // Undefined in 64-bit mode, where there is but one size
    if (operands.operandSize !== 16) field |= 1 << 11;
    field |= TABLES.indexOf(mnemonic) << 28;
  } else if (SELECTORS.includes(mnemonic)) field |= SELECTORS.indexOf(mnemonic) << 28;
  else if (!MEMORY.includes(mnemonic)) field |= operands.reg << 28;
  return { field: field >>> 0, displacement: operands.displacement };
}
