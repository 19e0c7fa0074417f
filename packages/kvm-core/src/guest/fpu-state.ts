/** The state that XSAVE manages, as an image of the standard format, and the structures of the uapi (SDM 1, "XSAVE Area"). */
import type { KvmFpu, StructValue } from "@mkvm/kvm-abi";

export type FpuValue = StructValue<(typeof KvmFpu)["fields"]>;
/** Of an image, of struct kvm_xsave: more than all components of the processor take. */
export const XSAVE_BYTES = 4096;
export const FXSAVE_BYTES = 512;
const XSTATE_BV = 512;
const X87_AND_SSE = 3n;
const MXCSR_MASK = 0xffff;
const PKRU_COMPONENT = 9n;
const PKRU_AT = 2688;
/** Number in XSTATE_BV, offset and bytes: upper halves of YMM, PKRU. */
const EXTENDED_COMPONENTS: readonly (readonly [bigint, number, number])[] = [
  [2n, 576, 256],
  [PKRU_COMPONENT, PKRU_AT, 8],
];

/** `image`: an XSAVE image or its legacy region. */
export function fpuFromXsave(image: Uint8Array): FpuValue {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  return {
    fcw: view.getUint16(0, true),
    fsw: view.getUint16(2, true),
    ftwx: image[4]!,
    pad1: 0,
    last_opcode: view.getUint16(6, true),
    last_ip: view.getBigUint64(8, true),
    last_dp: view.getBigUint64(16, true),
    mxcsr: view.getUint32(24, true),
    fpr: image.slice(32, 160),
    xmm: image.slice(160, 416),
    pad2: 0,
  };
}

/** Writes KVM_SET_FPU's fields over an XSAVE image. */
export function fpuIntoXsave(image: Uint8Array, value: FpuValue): void {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  view.setUint16(0, value.fcw, true);
  view.setUint16(2, value.fsw, true);
  image[4] = value.ftwx;
  view.setUint16(6, value.last_opcode, true);
  view.setBigUint64(8, value.last_ip, true);
  view.setBigUint64(16, value.last_dp, true);
  view.setUint32(24, value.mxcsr, true);
  image.set(value.fpr, 32);
  image.set(value.xmm, 160);
}

/** PKRU of an image: zero, its initial state, where the image has none. */
export function pkruFromXsave(image: Uint8Array): number {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  return (view.getBigUint64(XSTATE_BV, true) & (1n << PKRU_COMPONENT)) === 0n ? 0 : view.getUint32(PKRU_AT, true);
}

/** The image after reset: everything in its initial configuration, MXCSR and the control word as FNINIT leaves it. */
export function resetXsave(): Uint8Array {
  const image = new Uint8Array(XSAVE_BYTES);
  const view = new DataView(image.buffer);
  view.setUint16(0, 0x37f, true);
  view.setUint32(24, 0x1f80, true);
  view.setUint32(28, MXCSR_MASK, true);
  view.setBigUint64(XSTATE_BV, X87_AND_SSE, true);
  return image;
}

/** The image of a vCPU that has x87 and SSE state only. */
export function xsaveFromFxsave(legacy: Uint8Array): Uint8Array {
  const image = resetXsave();
  image.set(legacy);
  return image;
}

/** The legacy region where nothing outside it is in use; undefined otherwise. */
export function fxsaveFromXsave(image: Uint8Array): Uint8Array | undefined {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  return view.getBigUint64(XSTATE_BV, true) === X87_AND_SSE ? image.slice(0, FXSAVE_BYTES) : undefined;
}

/** `bytes`: a multiple of 4. */
function isZero(view: DataView, start: number, bytes: number): boolean {
  for (let at = start; at < start + bytes; at += 4) if (view.getUint32(at) !== 0) return false;
  return true;
}

/** KVM_SET_XSAVE's area as a processor with these components takes it; undefined: it does not (-EINVAL). */
export function checkedXsave(area: Uint8Array, supportedXcr0: bigint): Uint8Array | undefined {
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const components = view.getBigUint64(XSTATE_BV, true);
  if ((components & ~(supportedXcr0 | X87_AND_SSE)) !== 0n) return undefined;
  // The compacted format and the reserved header bytes
  if (!isZero(view, XSTATE_BV + 8, 56)) return undefined;
  if ((view.getUint32(24, true) & ~MXCSR_MASK) !== 0) return undefined;
  // In the one form in which the hardware saves it: the initial state spelled out, and nothing where no register is
  const image = resetXsave();
  const copy = (start: number, bytes: number): void => image.set(area.subarray(start, start + bytes), start);
  copy(24, 4);
  if ((components & 1n) !== 0n) {
    copy(0, 24);
    copy(32, 128);
  }
  if ((components & 2n) !== 0n) copy(160, 256);
  let present = X87_AND_SSE;
  for (const [index, start, bytes] of EXTENDED_COMPONENTS) {
    if ((components & (1n << index)) === 0n || isZero(view, start, bytes)) continue;
    copy(start, bytes);
    present |= 1n << index;
  }
  new DataView(image.buffer).setBigUint64(XSTATE_BV, present, true);
  return image;
}
