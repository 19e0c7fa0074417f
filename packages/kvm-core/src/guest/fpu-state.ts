/** The x87 and SSE state between the FXSAVE image and the structures of the uapi. */
import type { KvmFpu, StructValue } from "@mkvm/kvm-abi";

export type FpuValue = StructValue<(typeof KvmFpu)["fields"]>;
const XSAVE_BYTES = 4096;
const XSTATE_BV = 512;

export function fpuFromFxsave(image: Uint8Array): FpuValue {
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

/** Writes KVM_SET_FPU's fields over an FXSAVE image. */
export function fpuIntoFxsave(image: Uint8Array, value: FpuValue): void {
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

/** The FXSAVE image after reset. */
export function resetFxsave(): Uint8Array {
  const image = new Uint8Array(512);
  const view = new DataView(image.buffer);
  view.setUint16(0, 0x37f, true);
  view.setUint32(24, 0x1f80, true);
  view.setUint32(28, 0xffff, true);
  return image;
}

/** Standard-format XSAVE area: the legacy region, and a header that says x87 and SSE are there. */
export function xsaveFromFxsave(image: Uint8Array): Uint8Array {
  const area = new Uint8Array(XSAVE_BYTES);
  area.set(image);
  new DataView(area.buffer).setBigUint64(XSTATE_BV, 3n, true);
  return area;
}

/** undefined: components that this processor has not, or a bad header or MXCSR (-EINVAL). */
export function fxsaveFromXsave(area: Uint8Array): Uint8Array | undefined {
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const components = view.getBigUint64(XSTATE_BV, true);
  if ((components & ~3n) !== 0n) return undefined;
  // The compacted format and the reserved header bytes
  if (area.subarray(XSTATE_BV + 8, XSTATE_BV + 64).some((byte) => byte !== 0)) return undefined;
  if ((view.getUint32(24, true) & ~0xffff) !== 0) return undefined;
  const initial = resetFxsave();
  const image = area.slice(0, 512);
  if ((components & 1n) === 0n) {
    image.set(initial.subarray(0, 24));
    image.set(initial.subarray(32, 160), 32);
  }
  if ((components & 2n) === 0n) image.set(initial.subarray(160, 416), 160);
  return image;
}
