/** Registers that instructions use by address size: rCX as a counter, rSI and rDI as pointers. */
import type { Emitter, Int } from "../emitter.ts";

/**
 * Writes register `index` as the address size has it: 16 bits keep the rest, 32 bits clear the upper half. `value` has been
 * wrapped to the address size.
 */
export function setCounter(e: Emitter, index: number, value: Int): void {
  const merged = e.or(e.and(e.reg(index, 64), e.int(~0xffffn)), value);
  e.setReg(index, 64, e.select(e.eq(e.addressMask(), e.int(0xffff)), merged, value));
}
