/** Parts of the integer rows that generated code leaves to TypeScript. */

import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";

const DIVIDE_ERROR = 0;
const MASK64 = (1n << 64n) - 1n;

/** Dividend (low, high) and divisor are in helper slots 0 to 2; quotient and remainder go to 0 and 1. #DE on overflow. */
function divide128(cpu: Cpu): void {
  const dividend = (cpu.get64(state.helper + 8) << 64n) | cpu.get64(state.helper);
  const divisor = cpu.get64(state.helper + 16);
  const quotient = dividend / divisor;
  if (quotient > MASK64) cpu.raise(DIVIDE_ERROR);
  cpu.set64(state.helper, quotient);
  cpu.set64(state.helper + 8, dividend % divisor);
}

/** The same for signed numbers; the remainder has the sign of the dividend. */
function signedDivide128(cpu: Cpu): void {
  const dividend = (BigInt.asIntN(64, cpu.get64(state.helper + 8)) << 64n) | cpu.get64(state.helper);
  const divisor = BigInt.asIntN(64, cpu.get64(state.helper + 16));
  const quotient = dividend / divisor;
  if (quotient !== BigInt.asIntN(64, quotient)) cpu.raise(DIVIDE_ERROR);
  cpu.set64(state.helper, quotient & MASK64);
  cpu.set64(state.helper + 8, (dividend % divisor) & MASK64);
}

export const integerHelpers: HelperTable = { divide128, signedDivide128 };
