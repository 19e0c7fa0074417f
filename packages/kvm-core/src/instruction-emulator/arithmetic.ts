/** Arithmetic with its flags. Operands are unsigned, `bytes` wide. Source: Intel SDM Vol. 1, EFLAGS Cross-Reference. */
import { Rflags } from "../arch/registers.ts";

export const STATUS_FLAGS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF;

export interface Outcome {
  readonly value: bigint;
  /** RFLAGS with the status flags replaced. */
  readonly rflags: bigint;
}

const signOf = (bytes: number) => 1n << BigInt(bytes * 8 - 1);
export const maskOf = (bytes: number) => (1n << BigInt(bytes * 8)) - 1n;

function resultFlags(value: bigint, bytes: number): bigint {
  let low = Number(value & 0xffn);
  low ^= low >> 4;
  low ^= low >> 2;
  low ^= low >> 1;
  return (low & 1 ? 0n : Rflags.PF) | (value === 0n ? Rflags.ZF : 0n) | (value & signOf(bytes) ? Rflags.SF : 0n);
}
const keep = (rflags: bigint, flags: bigint) => rflags & ~flags;

export function add(a: bigint, b: bigint, carry: bigint, bytes: number, rflags: bigint): Outcome {
  const value = (a + b + carry) & maskOf(bytes);
  const flags =
    resultFlags(value, bytes) |
    (a + b + carry > maskOf(bytes) ? Rflags.CF : 0n) |
    ((a ^ b ^ value) & 0x10n ? Rflags.AF : 0n) |
    ((a ^ value) & (b ^ value) & signOf(bytes) ? Rflags.OF : 0n);
  return { value, rflags: keep(rflags, STATUS_FLAGS) | flags };
}

export function subtract(a: bigint, b: bigint, borrow: bigint, bytes: number, rflags: bigint): Outcome {
  const value = (a - b - borrow) & maskOf(bytes);
  const flags =
    resultFlags(value, bytes) |
    (a < b + borrow ? Rflags.CF : 0n) |
    ((a ^ b ^ value) & 0x10n ? Rflags.AF : 0n) |
    ((a ^ b) & (a ^ value) & signOf(bytes) ? Rflags.OF : 0n);
  return { value, rflags: keep(rflags, STATUS_FLAGS) | flags };
}

export function logic(value: bigint, bytes: number, rflags: bigint): Outcome {
  return { value, rflags: keep(rflags, STATUS_FLAGS) | resultFlags(value, bytes) };
}

/** The eight operations of opcodes 00 to 3F, in the order of the reg field. CMP's value is the unchanged operand. */
export function group1(operation: number, a: bigint, b: bigint, bytes: number, rflags: bigint): Outcome {
  const carry = rflags & Rflags.CF;
  switch (operation) {
    case 0:
      return add(a, b, 0n, bytes, rflags);
    case 1:
      return logic(a | b, bytes, rflags);
    case 2:
      return add(a, b, carry, bytes, rflags);
    case 3:
      return subtract(a, b, carry, bytes, rflags);
    case 4:
      return logic(a & b, bytes, rflags);
    case 5:
      return subtract(a, b, 0n, bytes, rflags);
    case 6:
      return logic(a ^ b, bytes, rflags);
    default:
      return { value: a, rflags: subtract(a, b, 0n, bytes, rflags).rflags };
  }
}

/** INC and DEC leave CF alone. */
export function increment(a: bigint, by: 1 | -1, bytes: number, rflags: bigint): Outcome {
  const { value, rflags: flags } = by > 0 ? add(a, 1n, 0n, bytes, rflags) : subtract(a, 1n, 0n, bytes, rflags);
  return { value, rflags: keep(flags, Rflags.CF) | (rflags & Rflags.CF) };
}

/** BT, BTS, BTR, BTC: operations 4 to 7 of the reg field of 0F BA. Only CF is defined. */
export function bitTest(operation: number, a: bigint, bit: bigint, rflags: bigint): Outcome {
  const mask = 1n << bit;
  const value = operation === 5 ? a | mask : operation === 6 ? a & ~mask : operation === 7 ? a ^ mask : a;
  return { value, rflags: keep(rflags, Rflags.CF) | (a & mask ? Rflags.CF : 0n) };
}

/** Condition of Jcc, SETcc and CMOVcc: low four bits of the opcode. */
export function conditionHolds(condition: number, rflags: bigint): boolean {
  const has = (flag: bigint) => (rflags & flag) !== 0n;
  const tests = [
    has(Rflags.OF),
    has(Rflags.CF),
    has(Rflags.ZF),
    has(Rflags.CF) || has(Rflags.ZF),
    has(Rflags.SF),
    has(Rflags.PF),
    has(Rflags.SF) !== has(Rflags.OF),
    has(Rflags.ZF) || has(Rflags.SF) !== has(Rflags.OF),
  ];
  return tests[condition >> 1] !== ((condition & 1) !== 0);
}
