/**
 * A body of WebAssembly code under construction: instructions by name, with the nesting of blocks tracked so that a branch names
 * its target by a label and not by a relative depth.
 */
import { Bytes } from "./bytes.ts";
import { OPCODES, VALUE_TYPE_CODES, type ValueType } from "./opcodes.ts";

/** A block, loop or if that is open; branches to it are by identity. */
export interface Label {
  readonly depth: number;
}

export class Code {
  readonly bytes = new Bytes();
  /** Positions of `if` and `br_if` instructions whose condition is seldom true (WebAssembly branch hinting). */
  readonly unlikely: number[] = [];
  #depth = 0;

  /** Plain instruction without immediates, by its name in the specification. */
  op(name: string): this {
    const encoding = OPCODES.get(name);
    if (encoding === undefined) throw new Error(`no WebAssembly instruction is called ${name}`);
    this.bytes.push(encoding & 0xff);
    if (encoding > 0xff) this.bytes.unsigned((encoding >>> 8) - 1);
    return this;
  }
  i32(value: number): this {
    this.bytes.push(0x41);
    this.bytes.signed32(value);
    return this;
  }
  i64(value: bigint | number): this {
    this.bytes.push(0x42);
    // Arithmetic on bigints is slow
    if (typeof value === "number" && (value | 0) === value) this.bytes.signed32(value);
    else this.bytes.signed64(BigInt(value));
    return this;
  }
  f64(value: number): this {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setFloat64(0, value, true);
    this.bytes.push(0x44);
    this.bytes.append(bytes);
    return this;
  }
  v128(lanes: readonly number[]): this {
    if (lanes.length !== 16) throw new Error("a v128 constant has 16 bytes");
    this.op("v128.const").bytes.append(lanes);
    return this;
  }
  shuffle(lanes: readonly number[]): this {
    if (lanes.length !== 16) throw new Error("a shuffle has 16 lanes");
    this.op("i8x16.shuffle").bytes.append(lanes);
    return this;
  }
  lane(name: string, index: number): this {
    this.op(name).bytes.push(index);
    return this;
  }
  get(local: number): this {
    this.bytes.push(0x20);
    this.bytes.unsigned(local);
    return this;
  }
  set(local: number): this {
    this.bytes.push(0x21);
    this.bytes.unsigned(local);
    return this;
  }
  globalGet(global: number): this {
    this.bytes.push(0x23);
    this.bytes.unsigned(global);
    return this;
  }
  tee(local: number): this {
    this.bytes.push(0x22);
    this.bytes.unsigned(local);
    return this;
  }
  /** Load or store; alignment is declared as 1 byte, which costs nothing on the machines we run on. */
  memory(name: string, offset: number): this {
    this.op(name).bytes.push(0);
    this.bytes.unsigned(offset);
    return this;
  }
  /** Load from a constant address. */
  loadAt(name: string, address: number): this {
    return this.i32(0).memory(name, address);
  }
  /** (to, from, bytes), as memmove. */
  memoryCopy(): this {
    this.bytes.append([0xfc, 10, 0, 0]);
    return this;
  }
  /** (to, byte, bytes). */
  memoryFill(): this {
    this.bytes.append([0xfc, 11, 0]);
    return this;
  }
  call(functionIndex: number): this {
    this.bytes.push(0x10);
    this.bytes.unsigned(functionIndex);
    return this;
  }
  callIndirect(typeIndex: number): this {
    this.bytes.push(0x11);
    this.bytes.unsigned(typeIndex);
    this.bytes.push(0);
    return this;
  }
  /** Tail calls: the caller's frame is gone before the callee runs. */
  returnCall(functionIndex: number): this {
    this.bytes.push(0x12);
    this.bytes.unsigned(functionIndex);
    return this;
  }
  returnCallIndirect(typeIndex: number): this {
    this.bytes.push(0x13);
    this.bytes.unsigned(typeIndex);
    this.bytes.push(0);
    return this;
  }
  return(): this {
    this.bytes.push(0x0f);
    return this;
  }
  block(): Label {
    return this.#open(0x02);
  }
  loop(): Label {
    return this.#open(0x03);
  }
  if(result?: ValueType): Label {
    return this.#open(0x04, result);
  }
  /** The same for a condition that is seldom true: the code goes out of the way, and what it calls costs the rest no registers. */
  ifUnlikely(result?: ValueType): Label {
    this.unlikely.push(this.bytes.length);
    return this.#open(0x04, result);
  }
  else(): this {
    this.bytes.push(0x05);
    return this;
  }
  end(): this {
    this.#depth--;
    this.bytes.push(0x0b);
    return this;
  }
  br(label: Label): this {
    this.bytes.push(0x0c);
    this.bytes.unsigned(this.#depth - label.depth);
    return this;
  }
  brIf(label: Label): this {
    this.bytes.push(0x0d);
    this.bytes.unsigned(this.#depth - label.depth);
    return this;
  }
  /** The same for a condition that is seldom true. */
  brIfUnlikely(label: Label): this {
    this.unlikely.push(this.bytes.length);
    return this.brIf(label);
  }
  /** Puts the code of another body in front, which is done with. */
  prepend(other: Code): void {
    const { length } = other.bytes;
    this.bytes.prepend(other.bytes.written);
    other.bytes.release();
    for (let i = 0; i < this.unlikely.length; i++) this.unlikely[i] = (this.unlikely[i] as number) + length;
    this.unlikely.unshift(...other.unlikely);
  }
  brTable(labels: readonly Label[], fallback: Label): this {
    this.bytes.push(0x0e);
    this.bytes.unsigned(labels.length);
    for (const label of labels) this.bytes.unsigned(this.#depth - label.depth);
    this.bytes.unsigned(this.#depth - fallback.depth);
    return this;
  }
  #open(opcode: number, result?: ValueType): Label {
    this.bytes.push(opcode);
    this.bytes.push(result === undefined ? 0x40 : VALUE_TYPE_CODES[result]);
    return { depth: ++this.#depth };
  }
}
