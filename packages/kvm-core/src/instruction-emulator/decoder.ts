/** Decoding of the instructions that touch MMIO. Source: Intel SDM Vol. 2A, Instruction Format. */
import { Gpr, SegmentRegister, Vector } from "../arch/registers.ts";
import type { EmulatedCpu } from "./emulated-cpu.ts";
import { FaultSignal, UnsupportedSignal } from "./signals.ts";

const MAX_INSTRUCTION_BYTES = 15;
const PAGE = 4096;

export interface Decoded {
  /** 0x00 to 0xff; 0x0f00 and up: behind 0F; 0x0f3800 and up: behind 0F 38. */
  readonly opcode: number;
  readonly operandSize: 2 | 4 | 8;
  readonly addressSize: 2 | 4 | 8;
  readonly hasRex: boolean;
  /** 0xf3, 0xf2, or 0. */
  readonly repeat: number;
  readonly operandPrefix: boolean;
  /** Segment of the memory operand, by prefix; undefined: the default. */
  readonly segmentOverride: number | undefined;
  /** ModRM, with REX bits in. */
  readonly reg: number;
  readonly rm: number;
  readonly isRegister: boolean;
  /** Offset and segment of the memory operand of ModRM, or of moffs. */
  readonly memory: { readonly segment: number; readonly offset: bigint } | undefined;
  /** Sign-extended. */
  readonly immediate: bigint;
  readonly length: number;
  readonly bytes: Uint8Array;
}

/** Bytes at RIP, fetched as they are needed: the next page only when the instruction goes on there. */
export function createFetcher(cpu: EmulatedCpu): { readonly bytes: number[]; next(): number } {
  const bytes: number[] = [];
  const linearAt = (index: number) => {
    const linear = cpu.segmentBase(SegmentRegister.CS) + cpu.rip + BigInt(index);
    return cpu.codeBits === 64 ? BigInt.asUintN(64, cpu.rip + BigInt(index)) : linear & 0xffff_ffffn;
  };
  let page: Uint8Array | undefined;
  let pageStart = 0;
  return {
    bytes,
    next() {
      const index = bytes.length;
      if (index >= MAX_INSTRUCTION_BYTES) throw new FaultSignal({ vector: Vector.GP, errorCode: 0, cr2: undefined });
      if (page === undefined || index - pageStart >= page.length) {
        const gpa = cpu.translate(linearAt(index), "fetch");
        if (typeof gpa !== "number") throw new FaultSignal(gpa);
        page = cpu.readRam(gpa, Math.min(MAX_INSTRUCTION_BYTES - index, PAGE - (gpa % PAGE)))?.slice();
        pageStart = index;
        if (page === undefined) throw new UnsupportedSignal();
      }
      const byte = page[index - pageStart];
      bytes.push(byte);
      return byte;
    },
  };
}

const SEGMENT_PREFIXES: Readonly<Record<number, number>> = {
  38: SegmentRegister.ES,
  46: SegmentRegister.CS,
  54: SegmentRegister.SS,
  62: SegmentRegister.DS,
  100: SegmentRegister.FS,
  101: SegmentRegister.GS,
};

/** True where a ModRM byte follows. Only opcodes that `execute` knows matter. */
function hasModrm(opcode: number): boolean {
  if (opcode < 0x40) return (opcode & 7) < 4;
  if (opcode === 0x63 || opcode === 0xc6 || opcode === 0xc7 || opcode === 0x8f) return true;
  if (opcode >= 0x80 && opcode <= 0x8b) return true;
  if (opcode === 0xf6 || opcode === 0xf7 || opcode === 0xfe || opcode === 0xff) return true;
  if (opcode >= 0x0f40 && opcode <= 0x0f4f) return true;
  if (opcode >= 0x0f90 && opcode <= 0x0f9f) return true;
  return TWO_BYTE_WITH_MODRM.has(opcode);
}
const TWO_BYTE_WITH_MODRM: ReadonlySet<number> = new Set([
  0x0fa3, 0x0fab, 0x0fb0, 0x0fb1, 0x0fb3, 0x0fb6, 0x0fb7, 0x0fba, 0x0fbb, 0x0fbe, 0x0fbf, 0x0fc0, 0x0fc1, 0x0fc3, 0x0fc7,
  0x0f38f0, 0x0f38f1,
]);
const STRING_OPCODES: ReadonlySet<number> = new Set([0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]);

function immediateBytes(opcode: number, reg: number, operandSize: number): number {
  const word = operandSize === 2 ? 2 : 4;
  switch (opcode) {
    case 0x80:
    case 0x82:
    case 0x83:
    case 0xc6:
    case 0x0fba:
      return 1;
    case 0x81:
    case 0xc7:
      return word;
    case 0xf6:
      return reg < 2 ? 1 : 0;
    case 0xf7:
      return reg < 2 ? word : 0;
    default:
      return 0;
  }
}

export function decode(cpu: EmulatedCpu, fetcher: ReturnType<typeof createFetcher>): Decoded {
  const next = () => fetcher.next();
  const unsigned = (bytes: number) => {
    let value = 0n;
    for (let i = 0; i < bytes; i++) value |= BigInt(next()) << BigInt(8 * i);
    return value;
  };
  const signed = (bytes: number) => BigInt.asIntN(bytes * 8, unsigned(bytes));

  const is64 = cpu.codeBits === 64;
  let operandPrefix = false;
  let addressPrefix = false;
  let repeat = 0;
  let segmentOverride: number | undefined;
  let rex = 0;
  let byte = next();
  for (; ; byte = next()) {
    const segment = SEGMENT_PREFIXES[byte];
    if (byte === 0x66) operandPrefix = true;
    else if (byte === 0x67) addressPrefix = true;
    else if (byte === 0xf2 || byte === 0xf3) repeat = byte;
    else if (segment !== undefined) {
      if (!is64 || segment >= SegmentRegister.FS) segmentOverride = segment;
    } else if (byte !== 0xf0) break;
  }
  if (is64 && byte >= 0x40 && byte <= 0x4f) {
    rex = byte;
    byte = next();
  }
  let opcode = byte;
  if (opcode === 0x0f) {
    opcode = 0x0f00 | next();
    if (opcode === 0x0f38) opcode = 0x0f3800 | next();
  }
  const wide = (rex & 8) !== 0;
  const defaultSize = cpu.codeBits === 16 ? 2 : 4;
  const operandSize = wide ? 8 : operandPrefix ? (defaultSize === 2 ? 4 : 2) : defaultSize;
  const addressSize = is64 ? (addressPrefix ? 4 : 8) : addressPrefix === (cpu.codeBits === 16) ? 4 : 2;
  const mask = (1n << BigInt(addressSize * 8)) - 1n;

  let reg = 0;
  let rm = 0;
  let isRegister = false;
  let address: { segment: number; offset: bigint; fromRip: boolean } | undefined;
  if (hasModrm(opcode)) {
    const modrm = next();
    const mod = modrm >> 6;
    reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
    rm = modrm & 7;
    isRegister = mod === 3;
    if (isRegister) rm |= (rex & 1) << 3;
    else address = addressSize === 2 ? address16(mod, rm) : address32(mod, rm);
  } else if (opcode >= 0xa0 && opcode <= 0xa3)
    address = { segment: SegmentRegister.DS, offset: unsigned(addressSize), fromRip: false };
  else if (!STRING_OPCODES.has(opcode)) throw new UnsupportedSignal();
  const immediate = signed(immediateBytes(opcode, reg & 7, operandSize));
  const length = fetcher.bytes.length;
  const offset = address && (address.fromRip ? address.offset + cpu.rip + BigInt(length) : address.offset) & mask;

  return {
    opcode,
    operandSize,
    addressSize,
    hasRex: rex !== 0,
    repeat,
    operandPrefix,
    segmentOverride,
    reg,
    rm,
    isRegister,
    memory: address && { segment: segmentOverride ?? address.segment, offset: offset as bigint },
    immediate,
    length,
    bytes: Uint8Array.from(fetcher.bytes),
  };

  function address16(mod: number, form: number): { segment: number; offset: bigint; fromRip: boolean } {
    const { RBX, RBP, RSI, RDI } = Gpr;
    const registers: readonly number[] = [[RBX, RSI], [RBX, RDI], [RBP, RSI], [RBP, RDI], [RSI], [RDI], [RBP], [RBX]][form];
    const isDirect = mod === 0 && form === 6;
    let sum = isDirect ? 0n : registers.reduce((all, register) => all + cpu.gpr(register), 0n);
    sum += isDirect ? unsigned(2) : mod === 1 ? signed(1) : mod === 2 ? unsigned(2) : 0n;
    const usesStack = !isDirect && registers.includes(RBP);
    return { segment: usesStack ? SegmentRegister.SS : SegmentRegister.DS, offset: sum, fromRip: false };
  }
  function address32(mod: number, form: number): { segment: number; offset: bigint; fromRip: boolean } {
    let base = form | ((rex & 1) << 3);
    let sum = 0n;
    if (form === 4) {
      const sib = next();
      const index = ((sib >> 3) & 7) | ((rex & 2) << 2);
      base = (sib & 7) | ((rex & 1) << 3);
      if (index !== 4) sum += cpu.gpr(index) << BigInt(sib >> 6);
      if ((base & 7) === 5 && mod === 0) return { segment: SegmentRegister.DS, offset: sum + signed(4), fromRip: false };
    } else if (form === 5 && mod === 0) return { segment: SegmentRegister.DS, offset: signed(4), fromRip: is64 };
    sum += cpu.gpr(base) + (mod === 1 ? signed(1) : mod === 2 ? signed(4) : 0n);
    const usesStack = base === Gpr.RSP || base === Gpr.RBP;
    return { segment: usesStack ? SegmentRegister.SS : SegmentRegister.DS, offset: sum, fromRip: false };
  }
}
