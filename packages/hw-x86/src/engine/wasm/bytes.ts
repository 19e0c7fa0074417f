/** Bytes written one after the other, with the numbers of the WebAssembly binary format (WebAssembly Core Specification, Values). */
const FIRST_ROOM = 4096;
/** Rooms kept for whoever writes next. */
const MOST_ROOMS = 6;

const encoder = new TextEncoder();
const rooms: Uint8Array<ArrayBuffer>[] = [];

const texts = new Map<string, Uint8Array>();
const NO_ROOM = new Uint8Array(0);

export class Bytes {
  #room = rooms.pop() ?? new Uint8Array(FIRST_ROOM);
  #length = 0;

  get length(): number {
    return this.#length;
  }
  /** What has been written; valid until more is. */
  get written(): Uint8Array<ArrayBuffer> {
    return this.#room.subarray(0, this.#length);
  }

  /** Nobody writes to it, or reads it, any more. */
  release(): void {
    if (rooms.length < MOST_ROOMS) rooms.push(this.#room);
    this.#room = NO_ROOM;
    this.#length = 0;
  }

  push(byte: number): void {
    if (this.#length === this.#room.length) this.#makeRoom(1);
    this.#room[this.#length++] = byte;
  }
  append(bytes: ArrayLike<number>): void {
    this.#makeRoom(bytes.length);
    this.#room.set(bytes, this.#length);
    this.#length += bytes.length;
  }
  prepend(bytes: ArrayLike<number>): void {
    this.#makeRoom(bytes.length);
    this.#room.copyWithin(bytes.length, 0, this.#length);
    this.#room.set(bytes);
    this.#length += bytes.length;
  }
  /** An unsigned LEB128 number, below 2^53. */
  unsigned(value: number): void {
    if (value >= 0 && value < 128 && Number.isInteger(value)) {
      this.push(value);
      return;
    }
    if (value < 0 || !Number.isSafeInteger(value)) throw new Error(`not an unsigned integer: ${value}`);
    let rest = value;
    while (rest >= 128) {
      this.push((rest % 128) + 128);
      rest = Math.floor(rest / 128);
    }
    this.push(rest);
  }
  /** A signed LEB128 number of 32 bits. */
  signed32(value: number): void {
    let rest = value | 0;
    for (;;) {
      const low = rest & 0x7f;
      rest >>= 7;
      const isLast = (rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0);
      this.push(isLast ? low : low | 0x80);
      if (isLast) return;
    }
  }
  /** A signed LEB128 number of 64 bits. */
  signed64(value: bigint): void {
    let rest = BigInt.asIntN(64, value);
    // Nearly all are small, and arithmetic on bigints is slow
    while (BigInt.asIntN(32, rest) !== rest) {
      this.push(Number(rest & 0x7fn) | 0x80);
      rest >>= 7n;
    }
    this.signed32(Number(rest));
  }
  /** A name: its length, then its UTF-8. Few are different. */
  text(value: string): void {
    let encoded = texts.get(value);
    if (encoded === undefined) {
      encoded = encoder.encode(value);
      texts.set(value, encoded);
    }
    this.#counted(encoded);
  }
  /** The length of what was written elsewhere, then that. */
  vector(bytes: Bytes): void {
    this.#counted(bytes.written);
  }
  #counted(bytes: Uint8Array): void {
    this.unsigned(bytes.length);
    this.append(bytes);
  }

  #makeRoom(more: number): void {
    const needed = this.#length + more;
    if (needed <= this.#room.length) return;
    const larger = new Uint8Array(Math.max(needed, 2 * this.#room.length));
    larger.set(this.written);
    this.#room = larger;
  }
}
