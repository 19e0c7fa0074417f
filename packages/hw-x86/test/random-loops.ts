/**
 * Random programs for comparing ways of running the same code: loops in loops around arithmetic, accesses through pointers that
 * wander over pages and their edges, branches, calls. They run for ever, and reach memory of their own only.
 */
import type { Random } from "./random.ts";

/** Where the data lies that programs reach, at most. */
export const DATA_START = 0x8_0000;
export const DATA_END = 0x10_0000;

const EAX = 0,
  ECX = 1,
  EDX = 2,
  EBX = 3,
  EBP = 5,
  ESI = 6,
  EDI = 7;
const GENERAL = [EAX, ECX, EDX, EBX];
const POINTERS = [ESI, EDI];
const LARGEST_BODY = 9;

const u32 = (value: number): number[] => [value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24];

class LoopWriter {
  readonly bytes: number[] = [];
  readonly #random: Random;
  readonly #bits: 32 | 64;

  constructor(random: Random, bits: 32 | 64) {
    this.#random = random;
    this.#bits = bits;
  }

  /** Operand size: prefix, and what is added to the opcode of the form on bytes. */
  #size(): { prefix: number[]; wide: 0 | 1 } {
    const choice = this.#random.below(this.#bits === 64 ? 8 : 6);
    if (choice === 0) return { prefix: [], wide: 0 };
    if (choice === 1) return { prefix: [0x66], wide: 1 };
    return { prefix: choice >= 6 ? [0x48] : [], wide: 1 };
  }
  /** ModRM of a register in `field` and memory near a pointer, aligned or not. */
  #memory(field: number): number[] {
    const pointer = this.#random.pick(POINTERS);
    const displacement = this.#random.oneIn(2) ? this.#random.below(16) * 8 : this.#random.below(128);
    if (this.#random.oneIn(4)) return [0x84 | (field << 3), (this.#random.below(2) << 6) | (ECX << 3) | pointer, ...u32(0)];
    return [0x40 | (field << 3) | pointer, displacement];
  }
  /** Index registers are small where they are used. */
  #bound(): void {
    this.bytes.push(0x81, 0xe0 | ECX, ...u32(0xfff));
  }

  #instruction(): void {
    this.bytes.push(...this.#encode());
  }
  #encode(): number[] {
    const random = this.#random;
    const { prefix, wide } = this.#size();
    const a = random.pick(GENERAL);
    const b = random.pick(GENERAL);
    const put = (...bytes: number[]): number[] => [...prefix, ...bytes];
    const registers = 0xc0 | (a << 3) | b;
    switch (random.below(25)) {
      case 0:
      case 1:
      case 2:
        return put((random.below(8) << 3) | wide, registers);
      case 3:
      case 4:
        return put(0x82 | wide, 0xc0 | (random.below(8) << 3) | a, random.below(256));
      case 5:
      case 6:
        this.#bound();
        return put((random.below(8) << 3) | 2 | wide, ...this.#memory(a));
      case 7:
        this.#bound();
        return put((random.below(8) << 3) | wide, ...this.#memory(a));
      case 8:
        this.#bound();
        return put(0x8a | wide, ...this.#memory(a));
      case 9:
      case 10:
        this.#bound();
        return put(0x88 | wide, ...this.#memory(a));
      case 11:
        this.#bound();
        return [0x0f, random.pick([0xb6, 0xb7, 0xbe, 0xbf]), ...this.#memory(a)];
      case 12:
        return put(0xc0 | wide, 0xc0 | (random.pick([0, 1, 4, 5, 7]) << 3) | a, random.below(34));
      case 13:
        return put(0xd2 | wide, 0xc0 | (random.below(8) << 3) | a);
      case 14:
        return put(0xfe | wide, 0xc0 | (random.below(2) << 3) | a);
      case 15:
        return put(0x84 | wide, registers);
      case 16:
        return [0x0f, 0x90 | random.below(16), 0xc0 | a];
      case 17:
        return [0x0f, 0x40 | random.below(16), registers];
      case 18:
        return [0x0f, 0xaf, registers];
      case 19:
        return [0x50 | a, 0x58 | b];
      case 20:
        return put(0xf6 | wide, 0xc0 | (random.pick([2, 3, 4, 5]) << 3) | a);
      case 21:
        return [0x0f, random.pick([0xb6, 0xb7, 0xbe, 0xbf]), registers];
      case 22:
        return this.#bits === 64 ? [0x48, 0x63, registers] : [0x98];
      case 23:
        return this.#mask(a, b);
      default:
        return this.#movePointer();
    }
  }
  /** "This if the bit is set, else zero", as compilers write it, sometimes with something in between. */
  #mask(a: number, b: number): number[] {
    const random = this.#random;
    const wide = (): number[] => (this.#bits === 64 && random.oneIn(3) ? [0x48] : []);
    const between = (): number[] => (random.oneIn(4) ? this.#encode() : []);
    const bit = [...wide(), 0x83, 0xe0 | a, 1, ...between(), ...wide(), 0xf7, 0xd8 | a, ...between()];
    const registers = random.oneIn(2) ? [0x21, 0xc0 | (a << 3) | b] : [0x21, 0xc0 | (b << 3) | a];
    const kept = random.oneIn(3) ? [0x81, 0xe0 | a, ...u32(random.next())] : registers;
    return [...bit, ...wide(), ...kept];
  }
  /** By a step, and back into the data. */
  #movePointer(): number[] {
    const random = this.#random;
    const pointer = random.pick(POINTERS);
    const step = random.pick([1, 4, 8, 63, 4096, 4093, 40_000]);
    const moved = [0x81, 0xc0 | pointer, ...u32(step)];
    return [...moved, 0x81, 0xe0 | pointer, ...u32(0x3_ffff), 0x81, 0xc8 | pointer, ...u32(DATA_START)];
  }
  #branchOver(): void {
    const condition = this.#random.below(16);
    const at = this.bytes.length;
    this.bytes.push(0x70 | condition, 0);
    if (!this.#random.oneIn(8)) this.#instruction();
    if (this.#random.oneIn(2)) this.#instruction();
    this.bytes[at + 1] = this.bytes.length - at - 2;
  }
  body(): void {
    const length = 1 + this.#random.below(LARGEST_BODY);
    for (let i = 0; i < length; i++) {
      if (this.#random.oneIn(6)) this.#branchOver();
      else this.#instruction();
    }
  }
  /** A loop of some rounds, counted on the stack or in EBP, with what `inside` writes in it. */
  loop(rounds: number, inside: () => void): void {
    this.bytes.push(0x55, 0xb8 | EBP, ...u32(rounds));
    const start = this.bytes.length;
    inside();
    this.bytes.push(...(this.#random.oneIn(2) ? [0x83, 0xe8 | EBP, 1] : [0xff, 0xc8 | EBP]));
    if (this.#random.oneIn(3)) this.bytes.push(0x83, 0xf8 | EBP, 0);
    this.bytes.push(0x0f, 0x85, ...u32(start - this.bytes.length - 6));
    this.bytes.push(0x58 | EBP);
  }
  call(target: number): void {
    this.bytes.push(0xe8, ...u32(target - this.bytes.length - 5));
  }
}

/** Code that fits a page, with its entry's distance from the start. Registers need no particular values but ESI and EDI: data. */
export function randomLoops(random: Random, bits: 32 | 64): { code: Uint8Array; entry: number } {
  const writer = new LoopWriter(random, bits);
  writer.body();
  writer.bytes.push(0xc3);
  const entry = writer.bytes.length;
  writer.loop(5, () => {
    writer.body();
    writer.loop(1 + random.below(12), () => writer.body());
    if (random.oneIn(2)) writer.call(0);
    if (random.oneIn(2)) writer.loop(1 + random.below(40), () => writer.body());
  });
  writer.bytes.push(0xe9, ...u32(entry - writer.bytes.length - 5));
  if (writer.bytes.length > 4096) throw new Error("the program does not fit a page");
  return { code: Uint8Array.from(writer.bytes), entry };
}
