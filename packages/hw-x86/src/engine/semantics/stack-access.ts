/** The stack as pushes and pops see it: width of the pointer by SS (state.stackMask), width of the values by the form. */
import { RSP, SS, state } from "../cpu-state.ts";
import type { Emitter, Int, Size } from "../emitter.ts";

/** Forms with 64-bit operands exist in 64-bit mode only, where the stack pointer has 64 bits: no mask then. */
function isFlat(e: Emitter): boolean {
  return e.size === 64;
}

/** `offset` wrapped to the width of the stack pointer. */
export function wrapStack(e: Emitter, offset: Int): Int {
  return isFlat(e) ? offset : e.and(offset, e.state(state.stackMask, 64));
}

/** The stack pointer: RSP, ESP or SP. */
export function stackPointer(e: Emitter): Int {
  return wrapStack(e, e.reg(RSP, 64));
}

/** `value` has been wrapped. Bits of RSP above the stack pointer stay. */
export function setStackPointer(e: Emitter, value: Int): void {
  if (isFlat(e)) {
    e.setReg(RSP, 64, value);
    return;
  }
  const mask = e.state(state.stackMask, 64);
  e.setReg(RSP, 64, e.or(e.and(e.reg(RSP, 64), e.not(mask, 64)), value));
}

/** Bytes of a stack slot of the form. */
export function slotBytes(e: Emitter): number {
  return e.size / 8;
}

export function push(e: Emitter, value: Int): void {
  const top = wrapStack(e, e.sub(stackPointer(e), e.int(slotBytes(e)), 64));
  e.store(SS, top, e.size, value);
  setStackPointer(e, top);
}

/** The value on top; `release` then moves the stack pointer past it and `extra` bytes. */
export function pop(e: Emitter, extra: Int | undefined = undefined): { value: Int; release: () => void } {
  const top = stackPointer(e);
  const value = e.load(SS, top, e.size as Size);
  return {
    value,
    release: () => {
      const above = e.add(top, e.int(slotBytes(e)), 64);
      setStackPointer(e, wrapStack(e, extra === undefined ? above : e.add(above, extra, 64)));
    },
  };
}
