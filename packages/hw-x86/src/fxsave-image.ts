/**
 * x87 and SSE state as one 512-byte FXSAVE64 image. Source: Intel SDM Vol. 1, FXSAVE Area; Vol. 2A, FXSAVE - Save x87 FPU, MMX
 * Technology, and SSE State. The state block holds physical registers R0 to R7 and the full tag word; the image holds ST(0) to
 * ST(7) and one "not empty" bit for each physical register.
 */
import { state } from "./engine/cpu-state.ts";
import type { StateBlock } from "./state-block.ts";

const ST_AREA = 32;
const XMM_AREA = 160;

export function fxsaveImage(block: StateBlock, to: Uint8Array): void {
  if (to.length < 512) throw new RangeError("an FXSAVE area is 512 bytes");
  const source = block.view;
  const target = new DataView(to.buffer, to.byteOffset, 512);
  const status = source.getUint16(state.fpuStatus, true);
  const tags = source.getUint16(state.fpuTags, true);
  let present = 0;
  for (let register = 0; register < 8; register++) if (((tags >> (register * 2)) & 3) !== 3) present |= 1 << register;
  to.fill(0, 0, 416);
  target.setUint16(0, source.getUint16(state.fpuControl, true), true);
  target.setUint16(2, status, true);
  target.setUint8(4, present);
  target.setUint16(6, source.getUint16(state.fpuOpcode, true), true);
  target.setBigUint64(8, block.get(state.fpuIp), true);
  target.setBigUint64(16, block.get(state.fpuDp), true);
  target.setUint32(24, source.getUint32(state.mxcsr, true), true);
  target.setUint32(28, source.getUint32(state.mxcsrMask, true), true);
  const top = (status >> 11) & 7;
  for (let i = 0; i < 8; i++) {
    const from = state.fpr + ((top + i) & 7) * 16;
    to.set(block.u8.subarray(from, from + 10), ST_AREA + i * 16);
  }
  to.set(block.u8.subarray(state.xmm, state.xmm + 256), XMM_AREA);
}

/** Reserved bits of MXCSR are dropped: who checks them is the instruction or ioctl that brought the image. */
export function fxrstorImage(block: StateBlock, from: Uint8Array): void {
  if (from.length < 512) throw new RangeError("an FXSAVE area is 512 bytes");
  const source = new DataView(from.buffer, from.byteOffset, 512);
  const target = block.view;
  const status = source.getUint16(2, true);
  const present = source.getUint8(4);
  target.setUint16(state.fpuControl, source.getUint16(0, true), true);
  target.setUint16(state.fpuStatus, status, true);
  target.setUint16(state.fpuOpcode, source.getUint16(6, true), true);
  block.set(state.fpuIp, source.getBigUint64(8, true));
  block.set(state.fpuDp, source.getBigUint64(16, true));
  target.setUint32(state.mxcsr, source.getUint32(24, true) & target.getUint32(state.mxcsrMask, true), true);
  const top = (status >> 11) & 7;
  let tags = 0;
  for (let i = 0; i < 8; i++) {
    const register = (top + i) & 7;
    block.u8.set(from.subarray(ST_AREA + i * 16, ST_AREA + i * 16 + 10), state.fpr + register * 16);
    if ((present & (1 << register)) === 0) tags |= 3 << (register * 2);
    else tags |= tagOf(source, ST_AREA + i * 16) << (register * 2);
  }
  target.setUint16(state.fpuTags, tags, true);
  block.u8.set(from.subarray(XMM_AREA, XMM_AREA + 256), state.xmm);
}

/** Tag of a register that is not empty: 0 valid, 1 zero, 2 special. */
function tagOf(image: DataView, at: number): number {
  const exponent = image.getUint16(at + 8, true) & 0x7fff;
  const low = image.getUint32(at, true);
  const high = image.getUint32(at + 4, true);
  if (exponent === 0 && low === 0 && high === 0) return 1;
  return exponent === 0 || exponent === 0x7fff || high >>> 31 === 0 ? 2 : 0;
}
