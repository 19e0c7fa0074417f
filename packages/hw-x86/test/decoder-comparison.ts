/** Holds our decoder beside iced-x86's: what both make of the same bytes, and where they differ. */
import { Code, Decoder, DecoderOptions, type Instruction, Mnemonic, OpKind, Register } from "iced-x86";
import { gprOffset, segmentOffset, state } from "../src/engine/cpu-state.ts";
import { createDecodedOperation, decode, variants } from "../src/engine/decoder/decoder.ts";
import type { DecodeResult, Variant } from "../src/engine/decoder/variant.ts";

/** Bytes of each case: an instruction of 15 and one more. */
export const CASE_BYTES = 16;

export type CodeSize = 16 | 32 | 64;

export interface Comparison {
  readonly bytes: Uint8Array;
  readonly ours: DecodeResult;
  readonly variant: Variant | undefined;
  /** iced-x86's mnemonic; INVALID where it sees none. */
  readonly mnemonic: string;
  /** Undefined when both agree, or when one of them does not know the bytes as an instruction. */
  readonly difference: string | undefined;
}

const FIRST: Readonly<Record<number, number>> = { 8: Register.AL, 16: Register.AX, 32: Register.EAX, 64: Register.RAX };

/** iced-x86's number of a general register by its place in the CPU state. */
function registerAt(offset: number, size: number): number {
  const inFile = offset - state.gpr;
  const number = inFile >> 3;
  if ((inFile & 7) === 1) return Register.AH + number;
  if (size === 8 && number >= 4) return Register.SPL + number - 4;
  return FIRST[size] + number;
}

/** The 64-bit register of a 16- or 32-bit one. */
function widened(register: number): number {
  if (register >= Register.AX && register <= Register.R15W) return register - Register.AX + Register.RAX;
  if (register >= Register.EAX && register <= Register.R15D) return register - Register.EAX + Register.RAX;
  return register;
}

function ourRegisters(variant: Variant): number[] {
  return variant.access.flatMap((access, i) => {
    // iced-x86 lists no register that the encoding does not name
    if (variant.operands[i].text === "XMM0") return [];
    switch (access.kind) {
      case "gpr":
        return [registerAt(operation[access.field], access.size)];
      case "fixedGpr":
        return [FIRST[access.size] + access.register];
      case "xmm": {
        const place = access.field === "immediate" ? operation.immediateLow : operation[access.field];
        return [(access.size === 256 ? Register.YMM0 : Register.XMM0) + (place - state.xmm) / 16];
      }
      case "mm":
        return [Register.MM0 + (operation[access.field] - state.fpr) / 16];
      case "segmentRegister":
        return [Register.ES + operation[access.field]];
      case "controlRegister":
        return [Register.CR0 + operation[access.field]];
      case "debugRegister":
        return [Register.DR0 + operation[access.field]];
      case "stackIndex":
        return [Register.ST0 + operation[access.field]];
      default:
        return [];
    }
  });
}

function theirRegisters(instruction: Instruction): number[] {
  const registers: number[] = [];
  for (let i = 0; i < instruction.opCount; i++) {
    if (instruction.opKind(i) === OpKind.Register) registers.push(instruction.opRegister(i));
  }
  return registers;
}

const operation = createDecodedOperation();

function immediateOf(): bigint {
  return BigInt.asUintN(64, (BigInt(operation.immediateHigh) << 32n) | BigInt(operation.immediateLow >>> 0));
}

function addressRegister(offset: number): number {
  return offset === state.zero ? Register.None : FIRST[operation.addressSize] + (offset - gprOffset(0)) / 8;
}

function indexRegister(variant: Variant): number {
  const kind = /\bvm(?:32|64)([xy])\b/.exec(variant.form.operands)?.[1];
  if (kind === undefined) return addressRegister(operation.index);
  return (kind === "x" ? Register.XMM0 : Register.YMM0) + (operation.index - state.xmm) / 16;
}

function compareMemory(variant: Variant, theirs: Instruction, codeSize: CodeSize): string | undefined {
  const width = operation.addressSize;
  const expect = (what: string, our: number | bigint, their: number | bigint): string | undefined =>
    our === their ? undefined : `${what}: ours ${our}, theirs ${their}`;
  const segment = (operation.segment - segmentOffset(0)) / (segmentOffset(1) - segmentOffset(0));
  // In 64-bit mode only FS and GS matter; iced-x86 reports the other overrides as written
  const isSame = (a: number, b: number): boolean => a === b || (codeSize === 64 && Math.max(a, b) < Register.FS);
  if (!isSame(Register.ES + segment, theirs.memorySegment)) {
    return `segment: ours ${Register[Register.ES + segment]}, theirs ${Register[theirs.memorySegment]}`;
  }
  const displacement = BigInt.asUintN(width, theirs.memoryDisplacement);
  if (variant.form.operands.includes("moffs")) return expect("offset", immediateOf(), displacement);
  if (operation.ripRelative) {
    return (
      expect("rip", width === 64 ? Register.RIP : Register.EIP, theirs.memoryBase) ??
      expect("displacement", BigInt.asUintN(width, BigInt(operation.displacement + operation.length)), displacement)
    );
  }
  return (
    expect("base", addressRegister(operation.base), theirs.memoryBase) ??
    expect("index", indexRegister(variant), theirs.memoryIndex) ??
    (operation.index === state.zero ? undefined : expect("scale", 1 << operation.scale, theirs.memoryIndexScale)) ??
    expect("displacement", BigInt.asUintN(width, BigInt(operation.displacement)), displacement)
  );
}

function compareOperands(variant: Variant, theirs: Instruction, codeSize: CodeSize): string | undefined {
  if (variant.operands.length === 0) return undefined;
  const { operands } = variant.form;
  const our = ourRegisters(variant);
  let their = theirRegisters(theirs);
  // x87 rows leave out ST(0), and the width of a register of fixed size is written differently
  if (/st\(i\)/.test(operands) && their.length > 1) their.splice(their.indexOf(Register.ST0), 1);
  if (/r16|r32|r\/m16|m32/.test(operands)) {
    our.forEach((register, i) => {
      our[i] = widened(register);
    });
    their = their.map(widened);
  }
  our.sort((a, b) => a - b);
  their.sort((a, b) => a - b);
  // F3 with REX.B and 90 is PAUSE for iced-x86; silicon exchanges RAX and R8
  if (variant.form.opcode === "91+r" && their.length === 0) return undefined;
  // Hint NOPs and UD name registers that they never look at
  if (!["NOP", "UD"].includes(variant.instruction.mnemonic) && our.join() !== their.join()) {
    const names = (registers: number[]): string => registers.map((register) => Register[register]).join(" ");
    return `registers: ours ${names(our)}, theirs ${names(their)}`;
  }
  for (let i = 0; i < theirs.opCount; i++) {
    const kind = theirs.opKind(i);
    if (kind === OpKind.Memory) {
      const difference = compareMemory(variant, theirs, codeSize);
      if (difference) return difference;
    } else if (kind >= OpKind.Immediate8 && kind <= OpKind.Immediate32to64 && !variant.form.opcode.includes("iw ib")) {
      const access = variant.access.find((candidate) => candidate.kind === "immediate");
      if (access?.kind !== "immediate") continue;
      const ourValue = immediateOf();
      const theirValue = BigInt.asUintN(access.size, theirs.immediate(i));
      if (ourValue !== theirValue) return `immediate: ours ${ourValue}, theirs ${theirValue}`;
    } else if (kind >= OpKind.NearBranch16 && kind <= OpKind.NearBranch64) {
      const width = kind === OpKind.NearBranch16 ? 16 : kind === OpKind.NearBranch32 ? 32 : 64;
      const ourValue = BigInt.asUintN(width, immediateOf() + BigInt(operation.length));
      if (width !== variant.size) return `branch size: ours ${variant.size}, theirs ${width}`;
      if (ourValue !== theirs.nearBranchTarget) return `target: ours ${ourValue}, theirs ${theirs.nearBranchTarget}`;
    } else if (kind === OpKind.FarBranch16 || kind === OpKind.FarBranch32) {
      const offset = kind === OpKind.FarBranch16 ? theirs.farBranch16 : theirs.farBranch32;
      const theirValue = (BigInt(theirs.farBranchSelector) << 32n) | BigInt(offset);
      if (immediateOf() !== theirValue) return `far pointer: ours ${immediateOf()}, theirs ${theirValue}`;
    }
  }
  return undefined;
}

/** Compares every case of CASE_BYTES in `code`, and calls `report` with each. */
export function compareDecoders(code: Uint8Array, codeSize: CodeSize, report: (comparison: Comparison) => void): void {
  const decoder = new Decoder(codeSize, code, DecoderOptions.None);
  try {
    for (let at = 0; at + CASE_BYTES <= code.length; at += CASE_BYTES) {
      decoder.position = at;
      decoder.ip = 0n;
      const theirs = decoder.decode();
      try {
        const ours = decode(code, at, CASE_BYTES, codeSize, operation);
        const variant = ours === "ok" ? variants[operation.handler] : undefined;
        let difference: string | undefined;
        if (variant !== undefined && theirs.code !== Code.INVALID) {
          if (operation.length !== theirs.length) difference = `length: ours ${operation.length}, theirs ${theirs.length}`;
          else difference = compareOperands(variant, theirs, codeSize);
        }
        report({ bytes: code.subarray(at, at + CASE_BYTES), ours, variant, mnemonic: Mnemonic[theirs.mnemonic], difference });
      } finally {
        theirs.free();
      }
    }
  } finally {
    decoder.free();
  }
}
