/**
 * Where the blocks and pages of a region lie in its bank. Its code finds them in a table beside the operations, so that the bytes of a
 * region are the same in every VM that runs the same guest code, whatever lies where: the host's compiler then makes one function of
 * them, and a further VM finds it optimised already.
 */
import { OP_BYTES } from "../operation.ts";
import type { Code } from "../wasm/code.ts";

/** What a region's module imports: the bank offset of this table, an immutable i32. */
export const LAYOUT_IMPORT = { module: "region", name: "layout" } as const;
const WORD_BYTES = 4;

interface Block {
  readonly header: number;
  readonly page: number;
}

export class RegionLayout {
  readonly #global: number;
  readonly #words: number[] = [];
  /** Numbers of the words. */
  readonly #numbers = new Map<number, number>();

  /** `global`: index of what LAYOUT_IMPORT names. */
  constructor(global: number) {
    this.#global = global;
  }

  /** The table as it is to be written. */
  get words(): readonly number[] {
    return this.#words;
  }

  /** Pushes the bank offset of the block's header. */
  header(c: Code, { header }: Pick<Block, "header">): void {
    this.#push(c, header);
  }
  /** Pushes the bank offset of one of the block's operations. */
  operation(c: Code, block: Pick<Block, "header">, at: number): void {
    this.header(c, block);
    c.i32(at - block.header).op("i32.add");
  }
  firstOperation(c: Code, block: Pick<Block, "header">): void {
    this.operation(c, block, block.header + OP_BYTES);
  }
  /** Pushes the bank offset of the page that the block lies in. */
  page(c: Code, { page }: Pick<Block, "page">): void {
    this.#push(c, page);
  }

  /** Pushes, as i64, the one of these signed 32-bit numbers whose index a local holds. To be called after all others. */
  choose(c: Code, index: number, numbers: readonly number[]): void {
    const first = this.#words.length;
    this.#words.push(...numbers);
    c.globalGet(this.#global).get(index).i32(Math.log2(WORD_BYTES)).op("i32.shl").op("i32.add");
    c.memory("i64.load32_s", first * WORD_BYTES);
  }

  #push(c: Code, word: number): void {
    let number = this.#numbers.get(word);
    if (number === undefined) {
      number = this.#words.push(word) - 1;
      this.#numbers.set(word, number);
    }
    c.globalGet(this.#global).memory("i32.load", number * WORD_BYTES);
  }
}
