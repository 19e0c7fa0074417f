/** Code for wild guests: likely instructions of all kinds, system instructions with operands that nearly fit, and plain noise. */
import { randomCode } from "../decoder-cases.ts";
import { CASE_BYTES, type CodeSize } from "../decoder-comparison.ts";
import type { Random } from "../random.ts";

export const CODE_AT = 0x8000;
export const CODE_BYTES = 0x4000;
const MOST_INSTRUCTION_BYTES = 15;
const FIRST_EXTRAS = 4;
/** Where guests have the registers of their local APIC, if the processor virtualizes it. */
export const APIC_AT = 0x3_0000;
/** Of these the CPU itself keeps the values: EFER, the system calls', bases, DEBUGCTL, PAT, XSS, TSC_AUX, and of the APIC in x2APIC mode. */
const MSRS = [
  ...[0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0x174, 0x175, 0x176],
  ...[0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0103, 0x1d9, 0x277, 0xda0, 0x1db, 0x10],
  ...[0x808, 0x80b, 0x83f, 0x830, 0x80d],
];
/** TPR EOI LDR DFR SPIV ISR IRR ICR timer, and what is no register. */
const APIC_REGISTERS = [0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x110, 0x220, 0x300, 0x310, 0x320, 0x380, 0x3fc, 0x0, 0x20];

const SYSTEM: readonly (readonly number[])[] = [
  [0xf4], // HLT
  [0xfa], // CLI
  [0xfb], // STI
  [0x9c], // PUSHF
  [0x9d], // POPF
  [0xcf], // IRET
  [0xcb], // RETF
  [0xcc],
  [0xf1],
  [0xce],
  [0x06],
  [0x1f],
  [0x17], // POP SS
  [0x0f, 0x05], // SYSCALL
  [0x0f, 0x07],
  [0x0f, 0x34], // SYSENTER
  [0x0f, 0x35],
  [0x0f, 0x06], // CLTS
  [0x0f, 0x08],
  [0x0f, 0x09],
  [0x0f, 0x0b],
  [0x0f, 0xa2],
  [0x0f, 0x30], // WRMSR
  [0x0f, 0x32],
  [0x0f, 0x31],
  [0x0f, 0x01, 0xf8], // SWAPGS
  [0x0f, 0x01, 0xf9], // RDTSCP
  [0x0f, 0x01, 0xca], // CLAC
  [0x0f, 0x01, 0xcb], // STAC
  [0x0f, 0x01, 0xd0],
  [0x0f, 0x01, 0xd1],
  [0x0f, 0x01, 0xee], // RDPKRU
  [0x0f, 0x01, 0xef], // WRPKRU
  [0x0f, 0x01, 0xc1],
  [0x0f, 0x01, 0xd9],
  [0x0f, 0xaa], // RSM
  [0x48, 0xcf],
  [0x48, 0xcb],
  [0x66, 0xcf],
];

export class CodeWriter {
  readonly #random: Random;
  readonly #codeSize: CodeSize;
  readonly #extras: Random | undefined;
  readonly #bytes = new Uint8Array(CODE_BYTES);
  #at = 0;

  constructor(random: Random, codeSize: CodeSize, extras?: Random) {
    this.#random = random;
    this.#extras = extras;
    this.#codeSize = codeSize;
  }

  write(): Uint8Array {
    const random = this.#random;
    const style = random.below(8);
    // Guests live short lives: what is to be reached is at their beginning, now and then
    if (style !== 0 && this.#extras?.oneIn(2)) {
      for (let i = 0; i < FIRST_EXTRAS; i++) this.#apicAccess(this.#extras);
      for (let i = 0; i < FIRST_EXTRAS; i++) this.#extra(this.#extras);
    }
    if (style === 0) for (let i = 0; i < CODE_BYTES; i++) this.#bytes[i] = random.next();
    while (style !== 0 && this.#at < CODE_BYTES - 64) this.#one();
    return this.#bytes;
  }

  #put(...bytes: readonly number[]): void {
    for (const byte of bytes) if (this.#at < CODE_BYTES) this.#bytes[this.#at++] = byte;
  }
  #put32(value: number): void {
    this.#put(value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24);
  }
  #wide(): void {
    if (this.#codeSize === 64 && this.#random.oneIn(2)) this.#put(0x48);
  }

  #one(): void {
    const random = this.#random;
    if (this.#extras?.oneIn(10)) {
      this.#extra(this.#extras);
      return;
    }
    switch (random.below(14)) {
      case 0:
      case 1:
      case 2: {
        const bytes = randomCode(random, this.#codeSize, 1);
        this.#put(...bytes.subarray(0, 4 + random.below(CASE_BYTES - 4)));
        return;
      }
      case 3:
        this.#put(...random.pick(SYSTEM));
        return;
      case 4: // jumps, near and back, so that there are loops
        if (random.oneIn(3)) this.#putWith(random.below(0x400) - 0x200, 0xe9);
        else
          this.#put(
            random.oneIn(4) ? 0xe2 : 0x70 + random.below(16),
            random.oneIn(2) ? 0xf0 + random.below(14) : random.below(128),
          );
        return;
      case 5: // store to the code nearby
        this.#store();
        return;
      case 6: // prefixes up to the limit of 15 bytes and past it
        for (let i = 8 + random.below(8); i > 0; i--) this.#put(random.pick([0x66, 0x2e, 0xf3, 0x67, 0x3e]));
        this.#put(0x01, 0xc8);
        return;
      case 7:
        this.#control();
        return;
      case 8:
        this.#farTransfer();
        return;
      case 9: // string instructions with a count that ends
        this.#wide();
        this.#putWith(random.below(300), 0xb9);
        this.#put(random.pick([0xf3, 0xf2]), random.pick([0xa4, 0xa5, 0xaa, 0xab, 0xa6, 0xae, 0xac, 0x6c, 0x6e]));
        return;
      case 10: // a register with something that may be an address
        this.#putWith(random.oneIn(2) ? random.below(0x4_0000) : random.next(), 0xb8 + random.below(8));
        return;
      case 11: // push, pop, call, return
        this.#put(random.pick([0x50, 0x53, 0x58, 0x5b, 0xc3, 0x5c, 0x54, 0xc9]));
        return;
      case 12: // plain arithmetic on registers and memory by register
        this.#wide();
        this.#put(
          random.pick([0x01, 0x29, 0x31, 0x39, 0x85, 0x89, 0x8b, 0x03, 0x11, 0x87]),
          random.below(256) & 0xf8 & random.pick([0xff, 0x3f]),
        );
        return;
      default: // across the end of a page
        if (random.oneIn(12))
          while (this.#at % 4096 < 4096 - MOST_INSTRUCTION_BYTES && this.#at < CODE_BYTES - 64) this.#put(0x90);
        else this.#put(0xcd, random.below(256));
    }
  }

  /** MSRs, process contexts, protection keys, registers of the APIC, single steps, branches that lead nowhere. */
  #extra(random: Random): void {
    const is64 = this.#codeSize === 64;
    const prefix = this.#codeSize === 16 ? [0x66] : [];
    const load = (opcode: number, value: number): void => {
      this.#put(...prefix, opcode);
      this.#put32(value);
    };
    switch (random.below(7)) {
      case 0:
      case 1:
        load(0xb9, random.pick(MSRS));
        load(0xb8, random.pick([0, 1, 2, 3, 8, 0x40, 0xd01, 0x501, CODE_AT + random.below(CODE_BYTES), random.next()]));
        if (random.oneIn(4)) load(0xba, random.next());
        else this.#put(0x31, 0xd2);
        this.#put(0x0f, random.oneIn(5) ? 0x32 : 0x30);
        return;
      case 2: // mov rax, the tables of the guest under some identifier; mov cr3, rax
        if (!is64) return;
        this.#put(0x48, 0xb8);
        this.#put32(random.pick([0x1000, 0x1000, 0xc000]) | random.below(4));
        this.#put32(random.oneIn(2) ? 0x8000_0000 : 0);
        this.#put(0x0f, 0x22, 0xd8);
        return;
      case 3: // xor ecx, ecx; xor edx, edx; wrpkru
        load(0xb8, random.next() & random.next());
        this.#put(0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xef);
        return;
      case 4:
        this.#apicAccess(random);
        return;
      case 5: // push of flags with TF, popf
        this.#put(0x68);
        this.#immediate(0x302 | (random.next() & 0x8d5));
        this.#put(0x9d);
        return;
      default:
        this.#put(random.pick([0xeb, 0x74, 0x75, 0xe2, 0xe3]), 0);
    }
  }

  /** MOV to or from a register of the APIC, or something longer than that. */
  #apicAccess(random: Random): void {
    const is64 = this.#codeSize === 64;
    const opcode = random.pick([0x89, 0x89, 0xc7, 0x8b, 0x8b, 0x01, 0x87]);
    this.#put(...(this.#codeSize === 16 ? [0x67, 0x66] : []), ...(is64 && random.oneIn(8) ? [0x48] : []), opcode);
    this.#put(...(is64 ? [0x04, 0x25] : [0x05]));
    this.#put32(APIC_AT + random.pick(APIC_REGISTERS));
    if (opcode === 0xc7) this.#put32(random.oneIn(2) ? random.below(256) : random.next());
  }

  #immediate(value: number): void {
    if (this.#codeSize === 16) this.#put(value & 0xff, (value >>> 8) & 0xff);
    else this.#put32(value);
  }
  /** Opcode bytes and an immediate operand. */
  #putWith(value: number, ...opcode: readonly number[]): void {
    this.#put(...opcode);
    this.#immediate(value);
  }

  #store(): void {
    const random = this.#random;
    const target = CODE_AT + ((this.#at + random.below(128) - 32) & (CODE_BYTES - 1));
    this.#put(random.oneIn(2) ? 0xc6 : 0xc7);
    const isByte = this.#bytes[this.#at - 1] === 0xc6;
    if (this.#codeSize === 16) this.#put(0x06, target & 0xff, target >>> 8);
    else {
      this.#put(...(this.#codeSize === 32 ? [0x05] : [0x04, 0x25]));
      this.#put32(target);
    }
    if (isByte) this.#put(random.next());
    else this.#immediate(random.next());
  }

  /** MOV to control and debug registers, LGDT and its like, LMSW, INVLPG, INVPCID, moves to segment registers. */
  #control(): void {
    const random = this.#random;
    switch (random.below(6)) {
      case 0:
        this.#putWith(
          random.pick([0x8000_0031, 0x31, 0x10, 0x8001_0033, 0x20, 0x6a0, 0x1000, 0x36_06f0, 0x1, 0x3000_0020]),
          0xb8,
        );
        this.#put(0x0f, random.pick([0x22, 0x22, 0x20, 0x23, 0x21]), 0xc0 | (random.pick([0, 2, 3, 4, 7, 6]) << 3));
        return;
      case 1:
        this.#put(0x0f, 0x01, 0xc0 | random.below(64));
        return;
      case 2:
        this.#put(0x0f, random.below(2), random.below(256));
        return;
      case 3:
        this.#put(0x8e, random.below(256));
        return;
      case 4:
        this.#put(0x66, 0x0f, 0x38, 0x82, random.below(64));
        return;
      default:
        this.#put(0x0f, random.pick([0x02, 0x03, 0xb2, 0xb4, 0xb5, 0xc7, 0xae, 0xa1, 0xa9]), random.below(256));
    }
  }

  #farTransfer(): void {
    const random = this.#random;
    const selector = random.oneIn(4) ? random.next() & 0xffff : random.below(32) * 8 + random.below(4);
    const target = CODE_AT + random.below(CODE_BYTES);
    if (this.#codeSize !== 64 && random.oneIn(2)) {
      this.#putWith(target, random.oneIn(2) ? 0xea : 0x9a);
      this.#put(selector & 0xff, selector >>> 8);
      return;
    }
    // push selector, push target, far return or IRET
    const push = (value: number): void => {
      this.#putWith(value, 0x68);
    };
    const isInterrupt = random.oneIn(2);
    if (isInterrupt) {
      if (random.oneIn(2)) {
        push(0x10 + random.below(4));
        push(0x2_8800);
      }
      push(random.oneIn(4) ? random.next() & 0x27_7fd7 : 0x3202);
    }
    push(selector);
    push(target);
    this.#wide();
    this.#put(isInterrupt ? 0xcf : 0xcb);
  }
}
