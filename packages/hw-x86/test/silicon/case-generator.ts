/**
 * Random user-mode test cases: a few instructions of given forms, and the registers, flags and FPU state that they start from.
 * Registers are mostly pointers into the data pages or small numbers, so that most memory operands are mapped, and some are not.
 */
import {
  Decoder,
  DecoderOptions,
  type Instruction as IcedInstruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,
  Register,
  RegisterExt,
} from "iced-x86";
import type { ParsedForm } from "../../src/engine/decoder/form-syntax.ts";
import type { Random } from "../random.ts";

export const DATA = 0x1000_0000;
export const DATA_BYTES = 8192;
export const CODE = 0x2000_0000;
export const CASE_CODE = 112;

/** Last offset of the data segment of 16-bit cases. */
export const DATA16_LIMIT = 0x1bff;

export type CaseCodeSize = 16 | 32 | 64;

/** Offset of code and data in their segments, which are flat unless the code has 16 bits. */
export const codeBase = (codeSize: CaseCodeSize): number => (codeSize === 16 ? 0 : CODE);
export const dataBase = (codeSize: CaseCodeSize): number => (codeSize === 16 ? 0 : DATA);

export interface GeneratedForm {
  readonly mnemonic: string;
  readonly parsed: ParsedForm;
}

export interface TestCase {
  readonly codeSize: CaseCodeSize;
  readonly gpr: BigUint64Array;
  readonly rflags: number;
  readonly code: Uint8Array;
  /** Offset of each instruction in `code`, and of the INT3 behind the last. */
  readonly starts: readonly number[];
  /** RFLAGS bits that are undefined before each instruction, likewise. */
  readonly undefinedFlags: readonly number[];
  readonly names: readonly string[];
  readonly fx: Uint8Array;
  /** Upper halves of the YMM registers. */
  readonly ymm: Uint8Array;
}

const FLAG_BITS = 0x8d5;
const INTERESTING = [
  0n,
  1n,
  2n,
  0x7fn,
  0x80n,
  0xffn,
  0x7fffn,
  0x8000n,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  1n << 63n,
  (1n << 63n) - 1n,
  (1n << 64n) - 1n,
];

function randomRegister(random: Random, isAligned: boolean, base: number): bigint {
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return BigInt((base + random.below(DATA_BYTES)) & (isAligned ? ~31 : ~0));
    case 4:
      // Around the boundary of the pages
      return BigInt(base + 4096 - 8 + random.below(16));
    case 5:
      return BigInt(random.below(64));
    case 6:
      return random.pick(INTERESTING);
    default:
      return random.next64();
  }
}

/** An immediate of `bytes`, little-endian, often small. */
function immediate(random: Random, bytes: number): number[] {
  let value = random.oneIn(2) ? random.next64() : random.oneIn(2) ? random.pick(INTERESTING) : BigInt(random.below(80));
  return Array.from({ length: bytes }, () => {
    const byte = Number(value & 255n);
    value >>= 8n;
    return byte;
  });
}

interface Encoding {
  readonly bytes: number[];
  /** Length of the relative displacement at the end, 0 when there is none. */
  readonly relativeBytes: number;
}

function littleEndian(value: number, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, i) => (value >> (i * 8)) & 255);
}

function encodeModrm(
  random: Random,
  parsed: ParsedForm,
  codeSize: CaseCodeSize,
  addressSize: number,
  isAligned: boolean,
): { bytes: number[]; rex: number } {
  if (parsed.modrmByte !== undefined) return { bytes: [parsed.modrmByte + random.below(parsed.modrmCount)], rex: 0 };
  const reg = parsed.digit ?? random.below(8);
  const isMemory = parsed.mod === "memory" || (parsed.mod === "any" && random.oneIn(2));
  let rex = parsed.digit === undefined && random.oneIn(2) ? 4 : 0;
  if (!isMemory) return { bytes: [0xc0 | (reg << 3) | random.below(8)], rex: rex | (random.oneIn(2) ? 1 : 0) };
  const mod = random.pick([0, 1, 1, 2]);
  const bytes: number[] = [];
  if (addressSize === 16) {
    const rm = random.below(8);
    bytes.push((mod << 6) | (reg << 3) | rm);
    if (mod === 0 && rm === 6) bytes.push(...littleEndian(random.below(DATA_BYTES), 2));
    else if (mod === 1) bytes.push(random.below(256));
    else if (mod === 2) bytes.push(...littleEndian(random.oneIn(2) ? random.below(64) : -random.below(64), 2));
    return { bytes, rex };
  }
  const align = isAligned ? ~31 : ~0;
  if (hasVectorIndex(parsed)) {
    const index = random.below(8);
    if (random.oneIn(2)) rex |= 2;
    bytes.push((mod << 6) | (reg << 3) | 4, (random.below(4) << 6) | (index << 3) | random.pick([0, 1, 2, 3, 6, 7]));
  } else if (random.oneIn(2)) {
    const rm = random.pick([0, 1, 2, 3, 5, 6, 7]);
    bytes.push((mod << 6) | (reg << 3) | rm);
    if (mod === 0 && rm === 5) {
      // Absolute, or relative to RIP: both reach the data pages from the code page
      const target = dataBase(codeSize) + random.below(DATA_BYTES) - (codeSize === 64 ? CODE : 0);
      bytes.push(...littleEndian(target, 4));
      return { bytes, rex };
    }
  } else {
    const base = random.below(8);
    const index = isAligned || random.oneIn(2) ? 4 : random.below(8);
    bytes.push((mod << 6) | (reg << 3) | 4, (random.below(4) << 6) | (index << 3) | base);
    if (random.oneIn(4)) rex |= 2;
    if (mod === 0 && base === 5) {
      const target = dataBase(codeSize) + random.below(DATA_BYTES);
      bytes.push(...littleEndian(target, 4));
      return { bytes, rex };
    }
  }
  if (random.oneIn(2)) rex |= 1;
  if (mod === 1) bytes.push(random.below(256) & align);
  else if (mod === 2) {
    const displacement = (random.oneIn(2) ? random.below(64) : -random.below(64)) & align;
    bytes.push(...littleEndian(displacement, 4));
  }
  return { bytes, rex };
}

/** VEX prefix, opcode, ModRM and immediate. */
function encodeVex(
  random: Random,
  parsed: ParsedForm,
  codeSize: CaseCodeSize,
  addressSize: number,
  isAligned: boolean,
  isWide: boolean,
): number[] {
  const modrm = parsed.hasModrm
    ? encodeModrm(random, parsed, codeSize, addressSize, isAligned)
    : { bytes: [], rex: random.oneIn(2) ? 4 : 0 };
  const rex = codeSize === 64 ? modrm.rex : 0;
  const usesV = parsed.operands.some((operand) => operand.register?.source === "vvvv");
  const vvvv = usesV ? random.below(codeSize === 64 ? 16 : 8) : 0;
  const length = parsed.vexLength === "any" ? random.below(2) : parsed.vexLength;
  const last = ((~vvvv & 15) << 3) | (length << 2) | ["NP", "66", "F3", "F2"].indexOf(parsed.prefix);
  const isShort = parsed.map === 5 && !isWide && (rex & 3) === 0 && random.oneIn(2);
  const prefix = isShort
    ? [0xc5, ((~rex & 4) << 5) | last]
    : [0xc4, ((~rex & 7) << 5) | (parsed.map - 4), (isWide ? 0x80 : 0) | last];
  const bytes = [...prefix, parsed.opcode, ...modrm.bytes];
  if (parsed.immediate === "byte") bytes.push(...immediate(random, 1));
  else if (parsed.immediate === "register") bytes.push(random.below(256));
  return bytes;
}

const hasVectorIndex = (parsed: ParsedForm): boolean => parsed.operands.some(({ memory }) => memory?.vectorIndex === true);

/** Number of the vector register that the instruction of a gather indexes with; undefined for others. */
function vectorIndexOf(bytes: readonly number[], parsed: ParsedForm): number | undefined {
  if (!hasVectorIndex(parsed)) return undefined;
  const at = bytes.indexOf(0xc4);
  // The prefix stores the index register's top bit inverted
  return (((bytes[at + 5] as number) >> 3) & 7) | (((bytes[at + 1] as number) & 0x40) !== 0 ? 0 : 8);
}

/** Bytes of one instruction of the form, with random operands. */
function encode(random: Random, parsed: ParsedForm, codeSize: CaseCodeSize, isAligned: boolean): Encoding {
  const bytes: number[] = [];
  const isSized = parsed.sizes.length > 1;
  const isPlainVex = parsed.map > 3 && !isSized && !parsed.narrow;
  const isWide =
    parsed.wide ||
    (codeSize === 64 && isSized && parsed.sizes.includes(64) && random.oneIn(3)) ||
    (isPlainVex && random.oneIn(4));
  const isForced = codeSize === 64 && parsed.form.attributes.includes("force64");
  // Near branches of another size leave the code page
  const isRelative = parsed.immediate === "relative8" || parsed.immediate === "relativeZ";
  const isVex = parsed.map > 3;
  const hasSizePrefix =
    !isVex &&
    !isWide &&
    !isForced &&
    !isRelative &&
    (parsed.prefix === "any" || parsed.prefix === "F2" || parsed.prefix === "F3") &&
    parsed.sizes.includes(16) &&
    random.oneIn(4);
  if (hasSizePrefix) bytes.push(0x66);
  const hasAddressPrefix = random.oneIn(codeSize === 16 ? 4 : 24);
  if (hasAddressPrefix) bytes.push(0x67);
  const addressSize = codeSize === 64 ? (hasAddressPrefix ? 32 : 64) : (codeSize === 16) !== hasAddressPrefix ? 16 : 32;
  if (isVex)
    return { bytes: [...bytes, ...encodeVex(random, parsed, codeSize, addressSize, isAligned, isWide)], relativeBytes: 0 };
  if (parsed.prefix === "66") bytes.push(0x66);
  else if (parsed.prefix === "F2") bytes.push(0xf2);
  else if (parsed.prefix === "F3") bytes.push(0xf3);
  const opcode = parsed.opcode + random.below(parsed.opcodeCount);
  const modrm = parsed.hasModrm ? encodeModrm(random, parsed, codeSize, addressSize, isAligned) : { bytes: [], rex: 0 };
  let rex = modrm.rex | (isWide ? 8 : 0);
  if (!parsed.hasModrm && parsed.opcodeCount > 1 && !parsed.isConditional && random.oneIn(2)) rex |= 1;
  if (codeSize === 64 && (rex !== 0 || random.oneIn(8))) bytes.push(0x40 | rex);
  if (parsed.map > 0) bytes.push(0x0f);
  if (parsed.map === 2) bytes.push(0x38);
  if (parsed.map === 3) bytes.push(0x3a);
  bytes.push(opcode, ...modrm.bytes);
  const z = (codeSize === 16) !== hasSizePrefix ? 2 : 4;
  switch (parsed.immediate) {
    case "byte":
    case "byteSigned":
      bytes.push(...immediate(random, 1));
      break;
    case "word":
      bytes.push(random.below(32), 0);
      break;
    case "wordByte":
      bytes.push(random.below(64), 0, random.below(4));
      break;
    case "dword":
      bytes.push(...immediate(random, 4));
      break;
    case "qword":
      bytes.push(...immediate(random, 8));
      break;
    case "z":
      bytes.push(...immediate(random, z));
      break;
    case "v":
      bytes.push(...immediate(random, isWide ? 8 : z));
      break;
    case "moffs": {
      const at = dataBase(codeSize) + random.below(DATA_BYTES);
      bytes.push(...littleEndian(at, Math.min(addressSize, 32) / 8));
      if (addressSize === 64) bytes.push(0, 0, 0, 0);
      break;
    }
    case "relative8":
      return { bytes, relativeBytes: 1 };
    case "relativeZ":
      return { bytes, relativeBytes: codeSize === 16 ? 2 : 4 };
    case "far":
      throw new Error(`${parsed.form.opcode}: far pointers are not generated`);
    case "none":
      break;
  }
  return { bytes, relativeBytes: 0 };
}

interface Effects {
  read: number;
  written: number;
  undefined: number;
  /** A loop counted in R15 would never end, or end early. */
  writesLoopCounter: boolean;
}

// iced-x86's RflagsBits to RFLAGS: OF SF ZF AF CF PF DF IF AC UIF
const ICED_FLAGS = [0x800, 0x80, 0x40, 0x10, 1, 4, 0x400];
function fromIced(bits: number): number {
  return ICED_FLAGS.reduce((flags, flag, i) => (((bits >> i) & 1) !== 0 ? flags | flag : flags), 0);
}

const WRITES: readonly OpAccess[] = [OpAccess.Write, OpAccess.CondWrite, OpAccess.ReadWrite, OpAccess.ReadCondWrite];
const registerUse = new InstructionInfoFactory();

function writesRegister(decoded: IcedInstruction, register: Register): boolean {
  const info = registerUse.info(decoded);
  const used = info.usedRegisters();
  const writes = used.some(
    ({ register: one, access }) => RegisterExt.fullRegister(one) === register && WRITES.includes(access),
  );
  for (const one of used) one.free();
  info.free();
  return writes;
}

/** What the instruction at the start of `bytes` does to flags, by iced-x86's tables; undefined when it sees no instruction. */
function effectsOf(bytes: readonly number[], codeSize: CaseCodeSize): Effects | undefined {
  const decoder = new Decoder(codeSize, Uint8Array.from([...bytes, ...new Array<number>(15).fill(0)]), DecoderOptions.None);
  const decoded = decoder.decode();
  const mnemonic = Mnemonic[decoded.mnemonic];
  const isValid = mnemonic !== "INVALID" && decoded.length === bytes.length;
  const use = {
    read: fromIced(decoded.rflagsRead),
    written: fromIced(decoded.rflagsWritten | decoded.rflagsCleared | decoded.rflagsSet),
    undefined: fromIced(decoded.rflagsUndefined),
    writesLoopCounter: writesRegister(decoded, Register.R15),
  };
  // A count of zero changes no flag, so an undefined one stays what it was; and rotates of more than one leave OF open
  if (/^(Sh[lr]d?|Sa[lr]|Ro[lr]|Rc[lr])$/.test(mnemonic)) {
    use.written = 0;
    use.undefined |= decoded.opCount > 1 && /^(Sh|Sa)/.test(mnemonic) ? 0x810 : 0x800;
  }
  // Repeated zero times, comparisons change no flag either
  if (decoded.hasRepePrefix || decoded.hasRepnePrefix) use.written = 0;
  decoded.free();
  decoder.free();
  return isValid ? use : undefined;
}

/** Approximations; what EMMS does to TOP; whether a conversion from memory enters MMX state; which byte of a masked store faults. */
export const LEFT_OUT = /^(V?(RCP|RSQRT)[PS]S|EMMS|CVTPI2PS|V?MASKMOV(Q|DQU))$/;

/** Whether code of that size has the form, and cases are made of it. */
export function isCompared({ mnemonic, parsed }: GeneratedForm, codeSize: CaseCodeSize): boolean {
  const { attributes } = parsed.form;
  if (LEFT_OUT.test(mnemonic) || attributes.includes(codeSize === 64 ? "invalid64" : "only64")) return false;
  if (parsed.wide && parsed.map <= 3 && codeSize !== 64) return false;
  // Of 16 bits, without a prefix that makes more of them: the manuals leave the result open
  if (codeSize === 16 && mnemonic === "BSWAP" && !parsed.sizes.includes(16)) return false;
  // A random 16-bit target is in the code now and then, between instructions, where nothing says which flags are defined
  return !(codeSize === 16 && /^(CALL|JMP|RET)/.test(mnemonic) && !parsed.immediate.startsWith("rel"));
}

/** Instructions whose result the manuals leave undefined, or where Intel's and AMD's processors differ. */
function isModelSpecific(bytes: readonly number[], { mnemonic, parsed }: GeneratedForm, codeSize: CaseCodeSize): boolean {
  // Counts above the operand size; 16-bit BSWAP; PREFETCHW with a register
  if (/^SH[LR]D$/.test(mnemonic) || mnemonic === "BSWAP") return (codeSize === 16) !== (bytes[0] === 0x66);
  return mnemonic === "NOP" && parsed.opcode === 0x0d && bytes[bytes.length - 1] >= 0xc0;
}

export interface GeneratorOptions {
  readonly codeSize: CaseCodeSize;
  readonly fx: (random: Random) => Uint8Array;
  /** The form of the first instruction, if it can be had in this mode; else a random one. */
  readonly first?: GeneratedForm | undefined;
  /** 64-bit code: the instructions run so many times, counted in R15. */
  readonly rounds?: number | undefined;
}

/** Times that operands are drawn for the form that a case is to begin with. */
const ATTEMPTS_AT_FIRST = 40;

export function generateCase(random: Random, forms: readonly GeneratedForm[], options: GeneratorOptions): TestCase {
  const { codeSize } = options;
  // Vector operands fault unless they are aligned
  const isAligned = random.oneIn(2);
  const encodings: Encoding[] = [];
  const names: string[] = [];
  /** Vector registers that gathers index with. */
  const indices: number[] = [];
  const undefinedFlags: number[] = [0];
  const wanted = 1 + random.below(4);
  let isStraight = true;
  for (let attempts = 0; encodings.length < wanted && attempts < 100; attempts++) {
    // Most operands of some forms are refused: gathers into the register of their mask, say
    const isFirst = encodings.length === 0 && attempts < ATTEMPTS_AT_FIRST;
    const generated = isFirst && options.first !== undefined ? options.first : random.pick(forms);
    if (!isCompared(generated, codeSize)) continue;
    const encoding = encode(random, generated.parsed, codeSize, isAligned);
    const whole = [...encoding.bytes, ...new Array<number>(encoding.relativeBytes).fill(0)];
    if (isModelSpecific(whole, generated, codeSize)) continue;
    const effects = effectsOf(whole, codeSize);
    const before = undefinedFlags[undefinedFlags.length - 1];
    if (effects === undefined || (effects.read & before) !== 0) continue;
    if (options.rounds !== undefined && effects.writesLoopCounter) continue;
    encodings.push(encoding);
    const index = vectorIndexOf(encoding.bytes, generated.parsed);
    if (index !== undefined) indices.push(index);
    names.push(`${generated.mnemonic} ${generated.parsed.form.operands}`);
    // What is written becomes defined again, unless a branch may skip it
    undefinedFlags.push((isStraight ? before & ~effects.written : before) | effects.undefined);
    if (encoding.relativeBytes > 0) isStraight = false;
  }

  const starts: number[] = [0];
  for (const { bytes, relativeBytes } of encodings) starts.push(starts[starts.length - 1] + bytes.length + relativeBytes);
  const code: number[] = [];
  encodings.forEach(({ bytes, relativeBytes }, i) => {
    code.push(...bytes);
    if (relativeBytes === 0) return;
    const target = starts[i + 1 + random.below(encodings.length - i)];
    const displacement = target - starts[i + 1];
    for (let byte = 0; byte < relativeBytes; byte++) code.push((displacement >> (byte * 8)) & 255);
  });
  if (options.rounds !== undefined) {
    // DEC R15D; JNZ to the start
    code.push(0x41, 0xff, 0xcf, 0x0f, 0x85);
    const displacement = -(code.length + 4);
    for (let byte = 0; byte < 4; byte++) code.push((displacement >> (byte * 8)) & 255);
  }
  code.push(0xcc);

  const base = dataBase(codeSize);
  const gpr = new BigUint64Array(16);
  for (let i = 0; i < 16; i++) gpr[i] = randomRegister(random, isAligned, base);
  // The stack is in the data pages nearly always, and RCX a small count often
  if (!random.oneIn(16)) gpr[4] = BigInt(base + 512 + random.below(DATA_BYTES - 1024)) & ~(random.oneIn(4) ? 0n : 7n);
  if (random.oneIn(2)) gpr[1] = BigInt(random.below(40));
  if (options.rounds !== undefined) gpr[15] = BigInt(options.rounds);
  if (codeSize !== 64) for (let i = 0; i < 16; i++) gpr[i] = i < 8 ? gpr[i] & 0xffff_ffffn : 0n;
  const direction = random.oneIn(4) ? 0x400 : 0;
  const rflags = (random.next() & FLAG_BITS) | direction | 0x202;
  const fx = options.fx(random);
  const ymm = options.fx(random).slice(160, 416);
  for (const index of indices) {
    for (const [file, at] of [
      [fx, 160],
      [ymm, 0],
    ] as const) {
      const words = new DataView(file.buffer, file.byteOffset + at + index * 16, 16);
      // Mostly within the data, for indices of both sizes
      for (let i = 0; i < 16; i += 4) words.setInt32(i, i % 8 === 4 && random.oneIn(2) ? 0 : random.below(600) - 200, true);
    }
  }
  return { codeSize, gpr, rflags, code: Uint8Array.from(code), starts, undefinedFlags, names, fx, ymm };
}
