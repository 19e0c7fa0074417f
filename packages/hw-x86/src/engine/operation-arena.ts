/** Room in the bank for decoded code: taken from the front on; what was given back is used again first. */
import { OP_ARENA, OP_ARENA_BYTES } from "./cpu-state.ts";
import { OP_BYTES } from "./operation.ts";

/** A header, an operation and the end of a block: nothing smaller is worth keeping. */
const FEWEST_RECORDS = 3;

export class OperationArena {
  readonly #end: number;
  #next = OP_ARENA;
  #freeBytes = 0;
  /** Bank offsets of what was given back, by number of records. */
  readonly #free: number[][] = [];

  /** `kept`: records at the end of the arena that are somebody else's. */
  constructor(kept: number) {
    this.#end = OP_ARENA + OP_ARENA_BYTES - kept * OP_BYTES;
  }

  /** Bytes that are in use. */
  get used(): number {
    return this.#next - OP_ARENA - this.#freeBytes;
  }
  /** Where so many records may be written that have not been taken yet; 0 when there is no room. */
  room(records: number): number {
    return this.#next + records * OP_BYTES <= this.#end ? this.#next : 0;
  }
  /** Bank offset of so many records; 0 when there is no room. Where none are free it is what `room` said. */
  take(records: number): number {
    for (let size = records; size < this.#free.length; size++) {
      const rest = size - records;
      if (rest > 0 && rest < FEWEST_RECORDS) continue;
      const at = this.#free[size]?.pop();
      if (at === undefined) continue;
      this.#freeBytes -= size * OP_BYTES;
      if (rest > 0) this.giveBack(at + records * OP_BYTES, rest);
      return at;
    }
    const at = this.room(records);
    if (at !== 0) this.#next += records * OP_BYTES;
    return at;
  }
  giveBack(at: number, records: number): void {
    this.#free[records] ??= [];
    this.#free[records].push(at);
    this.#freeBytes += records * OP_BYTES;
  }
  clear(): void {
    this.#next = OP_ARENA;
    this.#free.length = 0;
    this.#freeBytes = 0;
  }
}

export function recordsOf(bytes: number): number {
  return Math.ceil(bytes / OP_BYTES);
}
