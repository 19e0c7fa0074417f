/**
 * The 512-byte image of x87, MMX and SSE state that FXSAVE writes (Intel SDM Vol. 2A, FXSAVE - Save x87 FPU, MMX Technology, and
 * SSE State), and the state after reset. Also what root mode saves and loads for a guest.
 */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { updateSummary } from "./x87-state.ts";

/** Memory that holds the CPU state block: that of an engine, or of a logical CPU that works on no bank yet. */
export type StateMemory = Pick<Cpu, "u8" | "u16" | "u32" | "u64">;

export const FXSAVE_BYTES = 512;
/** Bits that exist in MXCSR; loading any other is #GP. */
export const MXCSR_MASK = 0xffff;
export const MXCSR_INITIAL = 0x1f80;

export const MXCSR_AT = 24;
const MXCSR_MASK_AT = 28,
  REGISTERS_AT = 32;
export const XMM_AT = 160;

/** Formats: 64-bit instruction and data pointers (REX.W), or 32-bit pointers with selectors. `xmmCount`: 8 outside 64-bit mode. */
export interface FxsaveForm {
  readonly wide: boolean;
  readonly xmmCount: 8 | 16;
}
const ROOT_FORM: FxsaveForm = { wide: true, xmmCount: 16 };

/** One bit a register that is not empty, by physical number. */
function abridgedTags(cpu: StateMemory): number {
  const tags = cpu.u16[state.fpuTags >> 1];
  let abridged = 0;
  for (let i = 0; i < 8; i++) if (((tags >> (i * 2)) & 3) !== 3) abridged |= 1 << i;
  return abridged;
}

/** Tag word with "valid" for every register in use; FNSTENV works out the finer tags from the contents. */
function fullTags(abridged: number): number {
  let tags = 0;
  for (let i = 0; i < 8; i++) if ((abridged & (1 << i)) === 0) tags |= 3 << (i * 2);
  return tags;
}

let lastImage: Uint8Array | undefined;
let lastView: DataView | undefined;
/** A view of the image. A vCPU's is saved and loaded in turns, often for no other's between: then it is made once. */
export function viewOf(image: Uint8Array): DataView {
  if (lastView === undefined || image !== lastImage) {
    lastImage = image;
    lastView = new DataView(image.buffer, image.byteOffset, image.byteLength);
  }
  return lastView;
}

/** Copies registers to an image, by words: all their bits or'ed. Of both, and of `bytes`, 4 is a divisor. */
export function saveWords(cpu: StateMemory, registers: number, view: DataView, offset: number, bytes: number): number {
  const { u32 } = cpu;
  const first = registers >>> 2;
  let all = 0;
  for (let at = 0; at < bytes; at += 4) {
    const word = u32[first + (at >>> 2)];
    view.setUint32(offset + at, word, true);
    all |= word;
  }
  return all;
}
/** The other way. */
export function loadWords(cpu: StateMemory, registers: number, view: DataView, offset: number, bytes: number): void {
  const { u32 } = cpu;
  const first = registers >>> 2;
  for (let at = 0; at < bytes; at += 4) u32[first + (at >>> 2)] = view.getUint32(offset + at, true);
}

/** The x87 part: bytes 0 to 23 and 32 to 159. */
export function saveX87(cpu: StateMemory, view: DataView, wide: boolean): void {
  const topOfStack = (cpu.u16[state.fpuStatus >> 1] >> 11) & 7;
  view.setUint16(0, cpu.u16[state.fpuControl >> 1], true);
  view.setUint16(2, cpu.u16[state.fpuStatus >> 1], true);
  view.setUint8(4, abridgedTags(cpu));
  view.setUint8(5, 0);
  view.setUint16(6, cpu.u16[state.fpuOpcode >> 1] & 0x7ff, true);
  if (wide) {
    saveWords(cpu, state.fpuIp, view, 8, 8);
    saveWords(cpu, state.fpuDp, view, 16, 8);
  } else {
    view.setUint32(8, cpu.u32[state.fpuIp >> 2], true);
    view.setUint32(12, cpu.u16[state.fpuCs >> 1], true);
    view.setUint32(16, cpu.u32[state.fpuDp >> 2], true);
    view.setUint32(20, cpu.u16[state.fpuDs >> 1], true);
  }
  for (let i = 0; i < 8; i++) {
    const from = state.fpr + ((topOfStack + i) & 7) * 16;
    const to = REGISTERS_AT + i * 16;
    saveWords(cpu, from, view, to, 8);
    view.setUint32(to + 8, cpu.u16[(from + 8) >> 1], true);
    view.setUint32(to + 12, 0, true);
  }
}

/** MXCSR and the mask of its bits: bytes 24 to 31. */
export function saveMxcsr(cpu: StateMemory, view: DataView): void {
  view.setUint32(MXCSR_AT, cpu.u32[state.mxcsr >> 2], true);
  view.setUint32(MXCSR_MASK_AT, MXCSR_MASK, true);
}

/** Writes the image; reserved bytes and those of registers that the form leaves out keep their value. */
export function saveImage(cpu: StateMemory, target: Uint8Array, form: FxsaveForm): void {
  const view = viewOf(target);
  saveX87(cpu, view, form.wide);
  saveMxcsr(cpu, view);
  saveWords(cpu, state.xmm, view, XMM_AT, form.xmmCount * 16);
}

/** MXCSR in an image. */
export function imageMxcsr(source: Uint8Array): number {
  return viewOf(source).getUint32(MXCSR_AT, true);
}

/** The x87 part of an image. */
export function loadX87(cpu: StateMemory, view: DataView, wide: boolean): void {
  const status = view.getUint16(2, true);
  cpu.u16[state.fpuControl >> 1] = (view.getUint16(0, true) & CONTROL_BITS) | CONTROL_FIXED;
  cpu.u16[state.fpuStatus >> 1] = status;
  cpu.u16[state.fpuTags >> 1] = fullTags(view.getUint8(4));
  cpu.u16[state.fpuOpcode >> 1] = view.getUint16(6, true) & 0x7ff;
  if (wide) {
    loadWords(cpu, state.fpuIp, view, 8, 8);
    loadWords(cpu, state.fpuDp, view, 16, 8);
    cpu.u16[state.fpuCs >> 1] = 0;
    cpu.u16[state.fpuDs >> 1] = 0;
  } else {
    cpu.u64[state.fpuIp >> 3] = BigInt(view.getUint32(8, true));
    cpu.u16[state.fpuCs >> 1] = view.getUint16(12, true);
    cpu.u64[state.fpuDp >> 3] = BigInt(view.getUint32(16, true));
    cpu.u16[state.fpuDs >> 1] = view.getUint16(20, true);
  }
  const topOfStack = (status >> 11) & 7;
  for (let i = 0; i < 8; i++) {
    const to = state.fpr + ((topOfStack + i) & 7) * 16;
    const from = REGISTERS_AT + i * 16;
    loadWords(cpu, to, view, from, 8);
    cpu.u16[(to + 8) >> 1] = view.getUint16(from + 8, true);
  }
  updateSummary(cpu);
}

/** Loads an image; the caller has checked its MXCSR. */
export function loadImage(cpu: StateMemory, source: Uint8Array, form: FxsaveForm): void {
  const view = viewOf(source);
  loadX87(cpu, view, form.wide);
  cpu.u32[state.mxcsr >> 2] = view.getUint32(MXCSR_AT, true);
  loadWords(cpu, state.xmm, view, XMM_AT, form.xmmCount * 16);
}

/** Bits of the control word that can be set; bit 6 always reads as one. */
export const CONTROL_BITS = 0x1f7f;
export const CONTROL_FIXED = 0x40;

/** FXSAVE64 for root mode: `target` has at least 512 bytes. */
export function fxsave(cpu: StateMemory, target: Uint8Array): void {
  saveImage(cpu, target, ROOT_FORM);
}

/** FXRSTOR64 for root mode. Bits of MXCSR that do not exist are cleared, since root mode has no guest to raise #GP in. */
export function fxrstor(cpu: StateMemory, source: Uint8Array): void {
  loadImage(cpu, source, ROOT_FORM);
  cpu.u32[state.mxcsr >> 2] &= MXCSR_MASK;
}

/** State after power-up and RESET (Intel SDM Vol. 3A, Processor State After Reset). */
export function resetFpu(cpu: StateMemory): void {
  cpu.u8.fill(0, state.fpr, state.fpr + 128);
  cpu.u8.fill(0, state.xmm, state.xmm + 256);
  cpu.u8.fill(0, state.ymmHigh, state.ymmHigh + 256);
  cpu.u16[state.fpuControl >> 1] = 0x40;
  cpu.u16[state.fpuStatus >> 1] = 0;
  cpu.u16[state.fpuTags >> 1] = 0x5555;
  clearPointers(cpu);
  cpu.u32[state.mxcsr >> 2] = MXCSR_INITIAL;
  cpu.u32[state.mxcsrMask >> 2] = MXCSR_MASK;
}

/** FNINIT's state. */
export function initializeFpu(cpu: StateMemory): void {
  cpu.u16[state.fpuControl >> 1] = 0x37f;
  cpu.u16[state.fpuStatus >> 1] = 0;
  cpu.u16[state.fpuTags >> 1] = 0xffff;
  clearPointers(cpu);
}

function clearPointers(cpu: StateMemory): void {
  cpu.u64[state.fpuIp >> 3] = 0n;
  cpu.u64[state.fpuDp >> 3] = 0n;
  cpu.u16[state.fpuCs >> 1] = 0;
  cpu.u16[state.fpuDs >> 1] = 0;
  cpu.u16[state.fpuOpcode >> 1] = 0;
}
