/**
 * Helpers of x87 instructions whose memory operand is no integer of a register's size: 80-bit and BCD numbers, the environment,
 * the whole state, and FXSAVE. They address memory themselves, through the segment of the running operation; a row leaves the
 * effective address in OPERAND_ADDRESS.
 */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { toInteger } from "./float-arithmetic.ts";
import { DEFAULT_NAN, IE, num, pack80 } from "./float-format.ts";
import {
  CONTROL_BITS,
  CONTROL_FIXED,
  FXSAVE_BYTES,
  imageMxcsr,
  initializeFpu,
  loadImage,
  MXCSR_MASK,
  saveImage,
} from "./fxsave.ts";
import { begin, x87Context as context } from "./x87-arithmetic.ts";
import {
  checkStore,
  control,
  isEmpty,
  noteInstruction,
  noteOperand,
  operandOffset,
  operandSegment,
  pop,
  probeOperand,
  push,
  raiseFlags,
  readRaw,
  readRegister,
  setC1,
  setStatus,
  stackFault,
  status,
  top,
  unmasked,
  updateSummary,
} from "./x87-state.ts";

const GP = 13;
const STACK_UNDERFLOW = 0x41;

/** The memory operand as bytes. */
function fetch(cpu: Cpu, bytes: number): Uint8Array {
  const buffer = new Uint8Array(bytes);
  cpu.readLinearBytes(cpu.linear(operandSegment(cpu), operandOffset(cpu), bytes, false), buffer);
  return buffer;
}
/** Writes it, whole or not at all. */
function deposit(cpu: Cpu, buffer: Uint8Array): void {
  cpu.writeLinearBytes(probeOperand(cpu, buffer.length), buffer);
}
const view = (buffer: Uint8Array): DataView => new DataView(buffer.buffer, buffer.byteOffset, buffer.length);

/** A packed decimal number of 18 digits and a sign. Digits above 9 are undefined; they count as their value. */
function decodeDecimal(buffer: Uint8Array): { sign: 0 | 1; value: bigint } {
  let value = 0n;
  for (let i = 8; i >= 0; i--) value = value * 100n + BigInt((buffer[i] >> 4) * 10 + (buffer[i] & 15));
  return { sign: buffer[9] & 0x80 ? 1 : 0, value };
}

const DECIMAL_LIMIT = 10n ** 18n;

function encodeDecimal(value: bigint, sign: 0 | 1): Uint8Array {
  const buffer = new Uint8Array(10);
  let rest = value;
  for (let i = 0; i < 9; i++) {
    const pair = Number(rest % 100n);
    rest /= 100n;
    buffer[i] = (Math.floor(pair / 10) << 4) | (pair % 10);
  }
  buffer[9] = sign << 7;
  return buffer;
}
const DECIMAL_INDEFINITE = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff);

/** FNSTENV's tags: finer than what the CPU state keeps, from the contents of the registers. */
function exactTags(cpu: Cpu): number {
  const base = top(cpu);
  let tags = 0;
  for (let i = 0; i < 8; i++) {
    const physical = (base + i) & 7;
    tags |= (isEmpty(cpu, i) ? 3 : contentTag(cpu, i)) << (physical * 2);
  }
  return tags;
}
function contentTag(cpu: Cpu, index: number): number {
  const { signExponent, significand } = readRaw(cpu, index);
  const field = signExponent & 0x7fff;
  if (field === 0 && significand === 0n) return 1;
  return field === 0 || field === 0x7fff || significand >> 63n === 0n ? 2 : 0;
}

/** Real-address or virtual-8086 mode: pointers are linear addresses there. */
function isRealMode(cpu: Cpu): boolean {
  return (cpu.u32[state.cr0 >> 2] & 1) === 0 || (cpu.u32[state.systemFlags >> 2] & 0x2_0000) !== 0;
}

function environmentBytes(size: number): number {
  return size === 16 ? 14 : 28;
}

function writeEnvironment(cpu: Cpu, buffer: Uint8Array, size: number): void {
  const to = view(buffer);
  const ip = cpu.u32[state.fpuIp >> 2];
  const dp = cpu.u32[state.fpuDp >> 2];
  const cs = cpu.u16[state.fpuCs >> 1];
  const ds = cpu.u16[state.fpuDs >> 1];
  const opcode = cpu.u16[state.fpuOpcode >> 1] & 0x7ff;
  const real = isRealMode(cpu);
  const linearIp = (ip + cs * 16) >>> 0;
  const linearDp = (dp + ds * 16) >>> 0;
  if (size === 16) {
    const words = real ? [linearIp, ((linearIp >>> 16) << 12) | opcode, linearDp, (linearDp >>> 16) << 12] : [ip, cs, dp, ds];
    [control(cpu), status(cpu), exactTags(cpu), ...words].forEach((word, i) => {
      to.setUint16(i * 2, word & 0xffff, true);
    });
    return;
  }
  const pointers = real
    ? [
        (0xffff_0000 | linearIp) >>> 0,
        ((linearIp >>> 16) << 12) | opcode,
        (0xffff_0000 | linearDp) >>> 0,
        (linearDp >>> 16) << 12,
      ]
    : [ip, cs | (opcode << 16), dp, 0xffff_0000 | ds];
  // Unused upper halves are stored as ones.
  const words = [0xffff_0000 | control(cpu), 0xffff_0000 | status(cpu), 0xffff_0000 | exactTags(cpu), ...pointers];
  words.forEach((word, i) => {
    to.setUint32(i * 4, word >>> 0, true);
  });
}

function loadControl(cpu: Cpu, value: number): void {
  cpu.u16[state.fpuControl >> 1] = (value & CONTROL_BITS) | CONTROL_FIXED;
  updateSummary(cpu);
}

function readEnvironment(cpu: Cpu, buffer: Uint8Array, size: number): void {
  const from = view(buffer);
  const step = size === 16 ? 2 : 4;
  const word = (i: number): number => (size === 16 ? from.getUint16(i * step, true) : from.getUint32(i * step, true));
  cpu.u16[state.fpuStatus >> 1] = word(1);
  cpu.u16[state.fpuTags >> 1] = word(2);
  let ip = word(3);
  let dp = word(5);
  if (isRealMode(cpu)) {
    const mask = size === 16 ? 0xf : 0xffff;
    ip = (ip & 0xffff) | (((word(4) >>> 12) & mask) << 16);
    dp = (dp & 0xffff) | (((word(6) >>> 12) & mask) << 16);
    cpu.u16[state.fpuOpcode >> 1] = word(4) & 0x7ff;
    cpu.u16[state.fpuCs >> 1] = 0;
    cpu.u16[state.fpuDs >> 1] = 0;
  } else {
    cpu.u16[state.fpuCs >> 1] = word(4) & 0xffff;
    if (size !== 16) cpu.u16[state.fpuOpcode >> 1] = (word(4) >>> 16) & 0x7ff;
    cpu.u16[state.fpuDs >> 1] = word(6) & 0xffff;
  }
  cpu.u64[state.fpuIp >> 3] = BigInt(ip >>> 0);
  cpu.u64[state.fpuDp >> 3] = BigInt(dp >>> 0);
  loadControl(cpu, word(0));
}

export const x87Memory: HelperTable = {
  fpuLoadExtended(cpu) {
    const from = view(fetch(cpu, 10));
    noteInstruction(cpu);
    noteOperand(cpu);
    setC1(cpu, false);
    push(cpu, DEFAULT_NAN);
    if ((status(cpu) & 0x200) !== 0) return;
    const at = state.fpr + top(cpu) * 16;
    cpu.u64[at >> 3] = from.getBigUint64(0, true);
    cpu.u16[(at + 8) >> 1] = from.getUint16(8, true);
  },
  fpuStoreExtended(cpu) {
    const buffer = new Uint8Array(10);
    checkStore(cpu, 10);
    const empty = isEmpty(cpu, 0);
    const refused = empty && (unmasked(cpu) & IE) !== 0;
    if (!refused) {
      const { signExponent, significand } = empty ? pack80(DEFAULT_NAN) : readRaw(cpu, 0);
      view(buffer).setBigUint64(0, significand, true);
      view(buffer).setUint16(8, signExponent, true);
      deposit(cpu, buffer);
    }
    noteInstruction(cpu);
    noteOperand(cpu);
    setC1(cpu, false);
    if (empty) stackFault(cpu, false);
    if (!refused) pop(cpu);
  },
  fpuLoadDecimal(cpu) {
    const { sign, value } = decodeDecimal(fetch(cpu, 10));
    noteInstruction(cpu);
    noteOperand(cpu);
    setC1(cpu, false);
    push(cpu, value === 0n ? num("zero", sign) : num("finite", sign, 0, value));
  },
  fpuStoreDecimal(cpu) {
    checkStore(cpu, 10);
    begin(cpu);
    const empty = isEmpty(cpu, 0);
    const source = empty ? DEFAULT_NAN : readRegister(cpu, 0);
    let integer = toInteger(context, source, 64);
    if (integer !== undefined && (integer >= DECIMAL_LIMIT || integer <= -DECIMAL_LIMIT)) {
      integer = undefined;
      context.flags = IE;
      context.roundedUp = false;
    }
    const flags = empty ? STACK_UNDERFLOW : context.flags;
    const refused = (flags & unmasked(cpu) & IE) !== 0;
    if (!refused) {
      const magnitude = integer !== undefined && integer < 0n ? -integer : integer;
      deposit(cpu, magnitude === undefined ? DECIMAL_INDEFINITE : encodeDecimal(magnitude, source.sign));
    }
    noteInstruction(cpu);
    noteOperand(cpu);
    setC1(cpu, context.roundedUp);
    raiseFlags(cpu, flags);
    if (!refused) pop(cpu);
  },

  fpuLoadControl: (cpu, value) => loadControl(cpu, value),
  fpuInitialize: initializeFpu,
  fpuClearExceptions: (cpu) => setStatus(cpu, status(cpu) & 0x7f00),

  /** a: operand size. */
  fpuStoreEnvironment(cpu, size) {
    const buffer = new Uint8Array(environmentBytes(size));
    writeEnvironment(cpu, buffer, size);
    deposit(cpu, buffer);
    loadControl(cpu, control(cpu) | 0x3f);
  },
  fpuLoadEnvironment(cpu, size) {
    readEnvironment(cpu, fetch(cpu, environmentBytes(size)), size);
  },
  fpuSave(cpu, size) {
    const head = environmentBytes(size);
    const buffer = new Uint8Array(head + 80);
    writeEnvironment(cpu, buffer, size);
    for (let i = 0; i < 8; i++) {
      const { signExponent, significand } = readRaw(cpu, i);
      view(buffer).setBigUint64(head + i * 10, significand, true);
      view(buffer).setUint16(head + i * 10 + 8, signExponent, true);
    }
    deposit(cpu, buffer);
    initializeFpu(cpu);
  },
  fpuRestore(cpu, size) {
    const head = environmentBytes(size);
    const buffer = fetch(cpu, head + 80);
    readEnvironment(cpu, buffer, size);
    const base = top(cpu);
    for (let i = 0; i < 8; i++) {
      const at = state.fpr + ((base + i) & 7) * 16;
      cpu.u64[at >> 3] = view(buffer).getBigUint64(head + i * 10, true);
      cpu.u16[(at + 8) >> 1] = view(buffer).getUint16(head + i * 10 + 8, true);
    }
  },

  /** a: operand size. The image's reserved part and what the form leaves out keep their bytes. */
  fpuFxsave(cpu, size) {
    checkAlignment(cpu);
    // What is kept of the image is read, but the access is a write
    probeOperand(cpu, FXSAVE_BYTES);
    const buffer = fetch(cpu, FXSAVE_BYTES);
    saveImage(cpu, buffer, fxsaveForm(cpu, size));
    deposit(cpu, buffer);
  },
  fpuFxrstor(cpu, size) {
    checkAlignment(cpu);
    const buffer = fetch(cpu, FXSAVE_BYTES);
    if ((imageMxcsr(buffer) & ~MXCSR_MASK) !== 0) cpu.raise(GP, 0);
    loadImage(cpu, buffer, fxsaveForm(cpu, size));
  },
};

function fxsaveForm(cpu: Cpu, size: number): { wide: boolean; xmmCount: 8 | 16 } {
  return { wide: size === 64, xmmCount: cpu.get32(state.codeSize) === 64 ? 16 : 8 };
}

function checkAlignment(cpu: Cpu): void {
  const address = cpu.linear(operandSegment(cpu), operandOffset(cpu), FXSAVE_BYTES, false);
  if ((address & 15n) !== 0n) cpu.raise(GP, 0);
}
