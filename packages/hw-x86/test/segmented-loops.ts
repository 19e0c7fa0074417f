/**
 * Random programs for segments with bases and limits: loops in loops around accesses through any segment register, with operand
 * and address sizes of both kinds. Pointers wander over all of 64 KiB and past limits, so that programs fault now and then.
 */
import type { Random } from "./random.ts";

const ECX = 1,
  ESP = 4,
  EBP = 5;
const LARGEST_BODY = 9;
/** Largest offset of a pointer that is used with 32 bits. */
const POINTER_MASK = 0x7fff;

class SegmentedWriter {
  readonly bytes: number[] = [];
  readonly #random: Random;
  readonly #bits: 16 | 32;

  constructor(random: Random, bits: 16 | 32) {
    this.#random = random;
    this.#bits = bits;
  }

  #number(value: number, bits: number): number[] {
    const all = [value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24];
    return all.slice(0, bits / 8);
  }
  /** Any register but the loop counter and the stack pointer. */
  #register(): number {
    return this.#random.pick([0, 1, 2, 3, 6, 7]);
  }
  #operandSize(): { prefix: number[]; bits: 16 | 32 } {
    if (!this.#random.oneIn(4)) return { prefix: [], bits: this.#bits };
    return { prefix: [0x66], bits: this.#bits === 16 ? 32 : 16 };
  }
  #segment(): number[] {
    return this.#random.oneIn(3) ? [this.#random.pick([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65])] : [];
  }
  /** Prefixes, and ModRM with what follows, of a memory operand; pointers are brought into reach before. */
  #memory(field: number): { prefix: number[]; operand: number[] } {
    const random = this.#random;
    const isOther = random.oneIn(5);
    const prefix = [...this.#segment(), ...(isOther ? [0x67] : [])];
    const bits = isOther ? 48 - this.#bits : this.#bits;
    const mode = random.below(3);
    if (bits === 16) {
      const rm = random.below(8);
      const length = mode === 0 ? (rm === 6 ? 16 : 0) : mode * 8;
      return { prefix, operand: [(mode << 6) | (field << 3) | rm, ...this.#number(random.next(), length)] };
    }
    const base = random.pick([0, 2, 3, 6, 7, EBP, ESP]);
    if (base !== EBP && base !== ESP) this.#bound(base);
    const length = mode === 0 ? (base === EBP ? 32 : 0) : mode === 1 ? 8 : 32;
    const displacement = this.#number(random.oneIn(20) ? random.below(0x1_0000) : random.below(64), length);
    if (base === ESP) return { prefix, operand: [(mode << 6) | (field << 3) | 4, 0x24, ...displacement] };
    if (!random.oneIn(4)) return { prefix, operand: [(mode << 6) | (field << 3) | base, ...displacement] };
    this.#bound(ECX);
    const sib = (random.below(2) << 6) | (ECX << 3) | base;
    return { prefix, operand: [(mode << 6) | (field << 3) | 4, sib, ...displacement] };
  }
  #bound(register: number): void {
    const prefix = this.#bits === 16 ? [0x66] : [];
    this.bytes.push(...prefix, 0x81, 0xe0 | register, ...this.#number(POINTER_MASK, 32));
  }

  #instruction(): void {
    this.bytes.push(...this.#encode());
  }
  #encode(): number[] {
    const random = this.#random;
    const { prefix, bits } = this.#operandSize();
    const wide = random.oneIn(3) ? 0 : 1;
    const register = this.#register();
    const put = (...bytes: number[]): number[] => [...prefix, ...bytes];
    const withMemory = (field: number, ...opcode: number[]): number[] => {
      const memory = this.#memory(field);
      return put(...memory.prefix, ...opcode, ...memory.operand);
    };
    const operation = random.below(8) << 3;
    switch (random.below(20)) {
      case 0:
        return put(operation | wide, 0xc0 | (this.#register() << 3) | register);
      case 1:
        return put(0x81, 0xc0 | operation | register, ...this.#number(random.next(), bits));
      case 2:
      case 3:
        return withMemory(register, operation | 2 | wide);
      case 4:
      case 5:
        return withMemory(register, operation | wide);
      case 6:
      case 7:
        return withMemory(register, 0x8a | wide);
      case 8:
      case 9:
        return withMemory(register, 0x88 | wide);
      case 10:
        return withMemory(random.below(2), 0xfe | wide);
      case 11:
        return withMemory(register, 0x0f, random.pick([0xb6, 0xb7, 0xbe, 0xbf]));
      case 12:
        return withMemory(register, 0x8d);
      case 13:
        return [...put(0x50 | random.below(8)), ...put(0x58 | register)];
      case 14:
        this.#bound(6);
        this.#bound(7);
        return put(...this.#segment(), random.pick([0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xa6, 0xae]));
      case 15:
        return put(...this.#segment(), 0xa0 | random.below(4), ...this.#number(random.below(0x7ff0), this.#bits));
      case 16:
        return withMemory(register, 0x0f, 0xaf);
      case 17:
        return [...withMemory(6, 0xff), ...put(0x58 | register)];
      case 18:
        return put(0x40 | random.pick([0, 8]) | register);
      default:
        return put(0xc1, 0xc0 | (random.pick([0, 1, 4, 5, 7]) << 3) | register, random.below(34));
    }
  }
  #branchOver(): void {
    const random = this.#random;
    const opcode = random.oneIn(5) ? random.pick([0xe0, 0xe1, 0xe2, 0xe3]) : 0x70 | random.below(16);
    if (opcode >= 0xe0 && random.oneIn(3)) this.bytes.push(0x67);
    const at = this.bytes.length;
    this.bytes.push(opcode, 0);
    if (!random.oneIn(8)) this.#instruction();
    if (random.oneIn(2)) this.#instruction();
    this.bytes[at + 1] = this.bytes.length - at - 2;
  }
  body(): void {
    const length = 1 + this.#random.below(LARGEST_BODY);
    for (let i = 0; i < length; i++) {
      if (this.#random.oneIn(6)) this.#branchOver();
      else this.#instruction();
    }
  }
  /** `opcode` with a displacement of the operand size, or of the other one where that reaches as far. */
  #transfer(target: number, ...opcode: number[]): void {
    const isWide = this.#bits === 16 && this.#random.oneIn(4);
    const bits = isWide ? 32 : this.#bits;
    const code = isWide ? [0x66, ...opcode] : opcode;
    const length = code.length + bits / 8;
    this.bytes.push(...code, ...this.#number(target - this.bytes.length - length, bits));
  }
  loop(rounds: number, inside: () => void): void {
    this.bytes.push(0x55, 0xb8 | EBP, ...this.#number(rounds, this.#bits));
    const start = this.bytes.length;
    inside();
    this.bytes.push(0x48 | EBP);
    this.#transfer(start, 0x0f, 0x85);
    this.bytes.push(0x58 | EBP);
  }
  call(target: number): void {
    this.bytes.push(0xe8, ...this.#number(target - this.bytes.length - 1 - this.#bits / 8, this.#bits));
  }
  jump(target: number): void {
    this.#transfer(target, 0xe9);
  }
}

/** Code with its entry's distance from the start. */
export function segmentedLoops(random: Random, bits: 16 | 32): { code: Uint8Array; entry: number } {
  const writer = new SegmentedWriter(random, bits);
  writer.body();
  writer.bytes.push(0xc3);
  const entry = writer.bytes.length;
  writer.loop(5, () => {
    writer.body();
    writer.loop(1 + random.below(12), () => writer.body());
    if (random.oneIn(2)) writer.call(0);
    if (random.oneIn(2)) writer.loop(1 + random.below(40), () => writer.body());
  });
  writer.jump(entry);
  return { code: Uint8Array.from(writer.bytes), entry };
}
