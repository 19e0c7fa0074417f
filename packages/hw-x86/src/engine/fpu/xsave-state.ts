/** The components of XSAVE as registers: which are in use, which are put into their initial configuration; and root mode's image. */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import {
  fxrstor,
  fxsave,
  initializeFpu,
  loadWords,
  MXCSR_AT,
  MXCSR_INITIAL,
  MXCSR_MASK,
  type StateMemory,
  saveWords,
  viewOf,
} from "./fxsave.ts";
import { COMPONENTS, XSAVE_HEADER, XSAVE_HEADER_BYTES, Xstate } from "./xsave-layout.ts";

function isZero(cpu: StateMemory, start: number, bytes: number): boolean {
  for (let at = start >>> 2; at < (start + bytes) >>> 2; at++) if (cpu.u32[at] !== 0) return false;
  return true;
}

function isX87Initial(cpu: StateMemory): boolean {
  return (
    cpu.u16[state.fpuControl >> 1] === 0x37f &&
    cpu.u16[state.fpuStatus >> 1] === 0 &&
    cpu.u16[state.fpuTags >> 1] === 0xffff &&
    cpu.u16[state.fpuOpcode >> 1] === 0 &&
    cpu.u16[state.fpuCs >> 1] === 0 &&
    cpu.u16[state.fpuDs >> 1] === 0 &&
    isZero(cpu, state.fpuIp, 8) &&
    isZero(cpu, state.fpuDp, 8) &&
    isZero(cpu, state.fpr, 128)
  );
}

/** XINUSE: the components of `among` that are not in their initial configuration. MXCSR does not count. */
export function componentsInUse(cpu: StateMemory, among: number): number {
  let inUse = 0;
  if ((among & Xstate.x87) !== 0 && !isX87Initial(cpu)) inUse |= Xstate.x87;
  if ((among & Xstate.sse) !== 0 && !isZero(cpu, state.xmm, 256)) inUse |= Xstate.sse;
  for (const { bit, registers, bytes } of COMPONENTS) {
    if ((among & bit) !== 0 && !isZero(cpu, registers, bytes)) inUse |= bit;
  }
  return inUse;
}

/** Puts x87 state into its initial configuration, registers included. */
export function clearX87(cpu: StateMemory): void {
  cpu.u8.fill(0, state.fpr, state.fpr + 128);
  initializeFpu(cpu);
}

/**
 * The state of a guest for root mode: standard format with 64-bit pointers. XSTATE_BV always has x87 and SSE, the others where they
 * are in use, so that equal state gives equal bytes. `target` has room for all of the model's components; what lies between is not
 * touched.
 */
export function xsaveAll(cpu: StateMemory, target: Uint8Array, components: number): void {
  fxsave(cpu, target);
  const view = viewOf(target);
  let inUse = Xstate.x87 | Xstate.sse;
  for (const { bit, offset, bytes, registers } of COMPONENTS) {
    if ((components & bit) !== 0 && saveWords(cpu, registers, view, offset, bytes) !== 0) inUse |= bit;
  }
  view.setUint32(XSAVE_HEADER, inUse, true);
  target.fill(0, XSAVE_HEADER + 4, XSAVE_HEADER + XSAVE_HEADER_BYTES);
}

/** Loads such an image; components that XSTATE_BV leaves out are initialized. Bits of MXCSR that do not exist are cleared. */
export function xrstorAll(cpu: StateMemory, source: Uint8Array, components: number): void {
  fxrstor(cpu, source);
  const view = viewOf(source);
  const present = view.getUint32(XSAVE_HEADER, true);
  if ((present & Xstate.x87) === 0) clearX87(cpu);
  if ((present & Xstate.sse) === 0) cpu.u8.fill(0, state.xmm, state.xmm + 256);
  for (const { bit, offset, bytes, registers } of COMPONENTS) {
    if ((components & present & bit) !== 0) loadWords(cpu, registers, view, offset, bytes);
    else cpu.u8.fill(0, registers, registers + bytes);
  }
}

/** MXCSR in a view of an area; #GP(0) where it has bits that do not exist. */
export function checkedMxcsr(cpu: Cpu, view: DataView): number {
  const value = view.getUint32(MXCSR_AT, true);
  if ((value & ~MXCSR_MASK) !== 0) cpu.raise(13, 0);
  return value;
}

export const isMxcsrInitial = (cpu: StateMemory): boolean => cpu.u32[state.mxcsr >> 2] === MXCSR_INITIAL;
