/**
 * State components of XSAVE and where they lie in an area (Intel SDM Vol. 1, XSAVE-Managed State; XSAVE Area). x87 and SSE are in the
 * legacy region, which has FXSAVE's format; the others follow the header, each at its own place in the standard format, one after
 * the other in the compacted one.
 */
import { state } from "../cpu-state.ts";

/** Bits of XCR0, IA32_XSS, XSTATE_BV and XCOMP_BV. */
export const Xstate = { x87: 0x1, sse: 0x2, avx: 0x4, pkru: 0x200 } as const;

export const XSAVE_HEADER = 512;
export const XSAVE_HEADER_BYTES = 64;
/** Where the extended region begins: the least that an area takes. */
export const EXTENDED_REGION = 576;
/** Bit 63 of XCOMP_BV: the area is compacted. Here as bit 31 of the upper half. */
export const COMPACTED = 0x8000_0000;

export interface Component {
  readonly index: number;
  readonly bit: number;
  /** In the standard format. */
  readonly offset: number;
  readonly bytes: number;
  /** Bank offset of the registers. */
  readonly registers: number;
}
/** Those behind the header, ascending. PKRU is where processors with AVX-512 have it: the gap is for what lies between. */
export const COMPONENTS: readonly Component[] = [
  { index: 2, bit: Xstate.avx, offset: 576, bytes: 256, registers: state.ymmHigh },
  { index: 9, bit: Xstate.pkru, offset: 2688, bytes: 8, registers: state.pkru },
];

/** Bytes of an area with these components. None of them asks for alignment in the compacted format. */
export function areaBytes(components: number, compacted: boolean): number {
  let end = EXTENDED_REGION;
  for (const { bit, offset, bytes } of COMPONENTS) {
    if ((components & bit) !== 0) end = compacted ? end + bytes : offset + bytes;
  }
  return end;
}

/** Where a component lies in an area compacted to `layout` (XCOMP_BV). */
export function compactedOffset(layout: number, component: Component): number {
  return areaBytes(layout & (component.bit - 1), true);
}
