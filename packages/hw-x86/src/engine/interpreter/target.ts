/** Where the code of a handler goes: into an arm of the interpreter's main function, or into a function of its own. */

import type { Label } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";
import type { CommonFunctions } from "./common-functions.ts";

/** The main function's places that an arm can go to, and the locals through which it says what it wants there. */
export interface MainFunction {
  /** Next operation: `pc` is set. */
  readonly dispatch: Label;
  /** The block at `rip`. */
  readonly lookup: Label;
  /** The block at `rip`, through the link field at bank offset `link`, which is filled if it may be. */
  readonly follow: Label;
  readonly rip: number;
  readonly link: number;
}

export interface HandlerTarget {
  readonly fn: FunctionBuilder;
  /** Local that holds the bank offset of the running operation's record. */
  readonly pc: number;
  /** Undefined: a function (operation) -> next operation, or 0 to go on with the block at `state.rip`. */
  readonly main: MainFunction | undefined;
  readonly common: CommonFunctions;
  /** Function index of a helper; throws when nobody registered it. */
  readonly helper: (name: string) => number;
  /**
   * The variant for flat segments: the address size is that of the code, and ES, CS, SS and DS have base 0 and no limit.
   * Blocks are decoded for it only where that holds.
   */
  readonly flat: boolean;
  /** Flat, and the operation's memory operand has no index register. */
  readonly noIndex: boolean;
}

/** What emitting a handler showed about it. */
export interface HandlerTraits {
  /** It leaves the straight run of its block, at least sometimes: the block ends with it. */
  endsBlock: boolean;
  /** It reaches guest memory, or computes the address of a memory operand, in a way that flat segments shorten. */
  usesMemory: boolean;
  /** Its memory operand's address is computed from base, index and displacement. */
  usesAddress: boolean;
}
