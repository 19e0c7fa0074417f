/** The halves of YMM registers of a region: locals that are loaded when it is entered and written back when it is left. */
import { state } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";

const BYTES = 16;
const ZEROS: readonly number[] = Array<number>(BYTES).fill(0);

/** Numbers of halves: those of the lower ones, then those of the upper ones, as they lie in the state block. */
export const UPPER_HALVES = (state.ymmHigh - state.xmm) / BYTES;

export class VectorRegisters {
  readonly #fn: FunctionBuilder;
  /** Of the halves that are used: code that is compiled at once sets every local to zero when it is entered, used or not. */
  readonly #locals: number[] = [];
  #used = 0;
  #written = 0;

  constructor(fn: FunctionBuilder) {
    this.#fn = fn;
  }

  /** Number of the half at that place of the state block. */
  static indexOf(offset: number): number {
    return (offset - state.xmm) / BYTES;
  }
  /** Local of a register that is read or written. */
  local(index: number, isWrite: boolean): number {
    this.#used |= 1 << index;
    if (isWrite) this.#written |= 1 << index;
    this.#locals[index] ??= this.#fn.allocate("v128");
    return this.#locals[index] as number;
  }
  /** After every operation was built: zeroes a half, in its local if the region has one. */
  zero(c: Code, index: number): void {
    if (((this.#used >>> index) & 1) === 0) {
      c.i32(0)
        .v128(ZEROS)
        .memory("v128.store", state.xmm + index * BYTES);
      return;
    }
    this.#written |= 1 << index;
    c.v128(ZEROS).set(this.#locals[index] as number);
  }
  load(c: Code): void {
    this.#locals.forEach((local, index) => {
      if (((this.#used >>> index) & 1) !== 0) c.loadAt("v128.load", state.xmm + index * BYTES).set(local);
    });
  }
  store(c: Code): void {
    this.#locals.forEach((local, index) => {
      if (((this.#written >>> index) & 1) !== 0)
        c.i32(0)
          .get(local)
          .memory("v128.store", state.xmm + index * BYTES);
    });
  }
}
