/**
 * The CPU state block where the logical CPU has it now: in the bank that it works on, or, before the first bank, in a buffer of
 * its own. Fields are addressed by the offsets of cpu-state.ts in either.
 */
import { CPU_STATE, CPU_STATE_BYTES, SEG_BASE, SEG_LIMIT, SEG_READ_END, SEG_WRITE_END, state } from "./engine/cpu-state.ts";
import { initializeFpu, MXCSR_MASK } from "./engine/fpu/fxsave.ts";
import { MISC_ENABLE_VALUE } from "./root-msrs.ts";

const ALL_ONES = 0xffff_ffff_ffff_ffffn;

export class StateBlock {
  #own: ArrayBuffer | undefined = new ArrayBuffer(CPU_STATE + CPU_STATE_BYTES);
  u8: Uint8Array;
  u16: Uint16Array;
  u32: Uint32Array;
  u64: BigUint64Array;
  view: DataView;

  constructor() {
    const own = this.#own as ArrayBuffer;
    this.u8 = new Uint8Array(own);
    this.u16 = new Uint16Array(own);
    this.u32 = new Uint32Array(own);
    this.u64 = new BigUint64Array(own);
    this.view = new DataView(own);
    this.#powerOn();
  }

  /** The block itself, CPU_STATE_BYTES long. */
  bytes(): Uint8Array {
    return this.u8.subarray(CPU_STATE, CPU_STATE + CPU_STATE_BYTES);
  }

  /** From now on the block in this memory is the CPU's; the caller has copied it there. */
  moveTo(buffer: ArrayBufferLike): void {
    this.#own = undefined;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.view = new DataView(buffer);
  }

  /** Back into a buffer of its own, because the bank goes away. */
  moveOut(): void {
    if (this.#own !== undefined) return;
    const own = new ArrayBuffer(CPU_STATE + CPU_STATE_BYTES);
    new Uint8Array(own).set(this.bytes(), CPU_STATE);
    this.moveTo(own);
    this.#own = own;
  }

  get(offset: number): bigint {
    return this.u64[offset >>> 3] as bigint;
  }
  set(offset: number, value: bigint): void {
    this.u64[offset >>> 3] = value;
  }

  /** Everything is lost: into a buffer of its own with values after power-up. */
  losePower(): void {
    this.moveOut();
    this.u8.fill(0);
    this.#powerOn();
  }

  /** Values after power-up that VM entry does not load. Source: Intel SDM Vol. 3A, Processor State After Reset. */
  #powerOn(): void {
    this.u32[state.systemFlags >>> 2] = 2;
    this.set(state.cr0, 0x6000_0010n);
    this.set(state.xcr0, 1n);
    this.set(state.dr + 6 * 8, 0xffff_0ff0n);
    this.set(state.dr + 7 * 8, 0x400n);
    this.set(state.pat, 0x0007_0406_0007_0406n);
    this.set(state.apicBase, 0xfee0_0900n);
    this.set(state.miscEnable, MISC_ENABLE_VALUE);
    this.u32[state.mxcsr >>> 2] = 0x1f80;
    this.u32[state.mxcsrMask >>> 2] = MXCSR_MASK;
    initializeFpu(this);
    this.set(state.flatSegment + SEG_BASE, 0n);
    this.set(state.flatSegment + SEG_LIMIT, 0xffff_ffffn);
    this.set(state.flatSegment + SEG_READ_END, ALL_ONES);
    this.set(state.flatSegment + SEG_WRITE_END, ALL_ONES);
  }
}
