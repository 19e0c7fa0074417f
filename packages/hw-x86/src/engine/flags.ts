/**
 * The arithmetic flags in lazy form, outside generated code. Fields of the state block:
 *   flagResult  result of the last operation, sign-extended to 64 bits: ZF is "zero", SF its sign, PF the parity of its low byte
 *   flagCarry   carry-out vector of the operation shifted so that its top carry is bit 63: CF is bit 63, OF bit 63 xor bit 62.
 *               For a + b = r it is (a & b) | ((a | b) & ~r), for a - b = r it is (~a & b) | ((~a | b) & r).
 *   flagAux     AF is bit 4 of flagAux xor flagResult; bits 8-15 are xored into the byte whose parity is PF, bit 31 into SF, so that
 *               POPF and the like can set combinations that no result has
 */
import { state } from "./cpu-state.ts";

const CF = 0x1,
  PF = 0x4,
  AF = 0x10,
  ZF = 0x40,
  SF = 0x80,
  OF = 0x800;
export const ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF;

const RESULT = state.flagResult >>> 2,
  CARRY = state.flagCarry >>> 2,
  AUX = state.flagAux >>> 2,
  SYSTEM = state.systemFlags >>> 2;

/** RFLAGS as a word. */
export function readFlags(u32: Uint32Array): number {
  const low = u32[RESULT];
  const high = u32[RESULT + 1];
  const carry = u32[CARRY + 1];
  const aux = u32[AUX];
  let flags = u32[SYSTEM];
  if (carry >>> 31 !== 0) flags |= CF;
  if (((carry ^ (carry << 1)) & 0x8000_0000) !== 0) flags |= OF;
  if ((low | high) === 0) flags |= ZF;
  if (((high ^ aux) & 0x8000_0000) !== 0) flags |= SF;
  if (((low ^ aux) & AF) !== 0) flags |= AF;
  let parity = (low ^ (aux >>> 8)) & 0xff;
  parity ^= parity >>> 4;
  parity ^= parity >>> 2;
  parity ^= parity >>> 1;
  if ((parity & 1) === 0) flags |= PF;
  return flags >>> 0;
}

/** Sets every flag, in lazy form; bit 1 is set whatever the word says. */
export function writeFlags(u32: Uint32Array, flags: number): void {
  u32[SYSTEM] = (flags & ~ARITHMETIC_FLAGS) | 2;
  const isZero = (flags & ZF) !== 0;
  u32[RESULT] = isZero ? 0 : 1;
  u32[RESULT + 1] = 0;
  // Zero has even parity and 1 odd; the delta corrects what differs.
  const parityDelta = isZero === ((flags & PF) !== 0) ? 0 : 0x100;
  u32[AUX] = (flags & AF) | ((flags & SF) !== 0 ? 0x8000_0000 : 0) | parityDelta;
  const carry = (flags & CF) !== 0;
  const overflow = (flags & OF) !== 0;
  u32[CARRY] = 0;
  u32[CARRY + 1] = (carry ? 0x8000_0000 : 0) | (carry !== overflow ? 0x4000_0000 : 0);
}
