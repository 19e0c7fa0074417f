/** The XMM registers of a region: locals that are loaded when it is entered and written back when it is left. */
import { state } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";

const BYTES = 16;

export class VectorRegisters {
  readonly #locals: readonly number[];
  #used = 0;
  #written = 0;

  constructor(fn: FunctionBuilder) {
    this.#locals = Array.from({ length: 16 }, () => fn.allocate("v128"));
  }

  /** Number of the register at that place of the state block. */
  static indexOf(offset: number): number {
    return (offset - state.xmm) / BYTES;
  }
  /** Local of a register that is read or written. */
  local(index: number, isWrite: boolean): number {
    this.#used |= 1 << index;
    if (isWrite) this.#written |= 1 << index;
    return this.#locals[index] as number;
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
