/**
 * How often the interpreter entered a block, as the block's header counts it. The engine is asked whether a block is to be translated
 * whenever its count comes to a multiple of ENTRIES_PER_QUESTION; counts begin where the first of these answers is at `hotEntries`.
 */
import type { Cpu } from "../cpu.ts";
import { block, NEVER_ASKED } from "../operation.ts";

/** A multiple of ENTRIES_PER_QUESTION, above all that a threshold may be. */
const HOT_COUNT = 0x4000_0000;

export class EntryCounts {
  /** What a new block's `entries` begins at. */
  readonly initial: number;
  readonly #cpu: Cpu;

  /** `hotEntries`: after how many the engine is asked first; undefined: never. */
  constructor(cpu: Cpu, hotEntries: number | undefined) {
    this.#cpu = cpu;
    this.initial = hotEntries === undefined ? NEVER_ASKED : HOT_COUNT - hotEntries;
  }

  /** A number to compare with later ones of the same block. */
  now(header: number): number {
    return this.#cpu.u32[(header + block.entries) >>> 2];
  }
  /** Entries since `now` was that number, or since the block was decoded. */
  since(header: number, then = this.initial): number {
    return (this.now(header) - then) >>> 0;
  }
  restart(header: number): void {
    this.#cpu.u32[(header + block.entries) >>> 2] = this.initial;
  }
  /** The engine is not asked about the block again. */
  silence(header: number): void {
    this.#cpu.u32[(header + block.entries) >>> 2] |= NEVER_ASKED;
  }
}
