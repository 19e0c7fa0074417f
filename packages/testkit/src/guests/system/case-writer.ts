/** What cases of the system guest are written with: machine code, mostly as bytes, beside words for what every case needs. */
import { Code } from "iced-x86";
import type { Assembler, Label } from "../../assembler/assembler.ts";
import { ALIAS_DISTANCE, GDT, IDT } from "./layout.ts";

export const bytes32 = (value: number): number[] => [
  value & 0xff,
  (value >>> 8) & 0xff,
  (value >>> 16) & 0xff,
  (value >>> 24) & 0xff,
];
export const bytes64 = (value: bigint): number[] => [
  ...bytes32(Number(BigInt.asUintN(32, value))),
  ...bytes32(Number(BigInt.asUintN(32, value >> 32n))),
];

export const Register = { eax: 0, ecx: 1, edx: 2, ebx: 3, ebp: 5, esi: 6, edi: 7 } as const;
export type RegisterName = keyof typeof Register;

/** How a case has paging: two levels, PAE, or none in 32-bit code; four levels in 64-bit code, where there is no other way. */
export interface PagingChoice {
  readonly mode: "off" | "twoLevel" | "pae" | "long";
  /** Bits of CR0 beside PE, ET and PG, of CR4 beside PAE, of EFER beside LME. */
  readonly cr0?: number;
  readonly cr4?: number;
  readonly efer?: number;
}

/** One thing to try. */
export interface SystemCase {
  readonly name: string;
  readonly bits: 32 | 64;
  /** Privilege of the action. Default 0. */
  readonly ring?: 0 | 1 | 2 | 3;
  /** RFLAGS at the action, bit 1 beside. */
  readonly flags?: number;
  readonly registers?: Partial<Record<RegisterName, number | bigint>>;
  readonly paging?: PagingChoice;
  /** Runs at privilege 0, before registers and privilege are what the case asks for. May use all registers. */
  readonly setup?: (m: CaseWriter) => void;
  /** Where it runs to its end, the case completes: INT 81h follows. */
  readonly action: readonly number[] | ((m: CaseWriter) => void);
  /** Left out of the short form. */
  readonly isLong?: boolean;
}

export class CaseWriter {
  readonly bits: 32 | 64;
  /** Where the case's action begins. */
  begin: Label = { label: "no case" };
  readonly #a: Assembler;

  constructor(assembler: Assembler, bits: 32 | 64) {
    this.#a = assembler;
    this.bits = bits;
  }

  bytes(...values: number[]): this {
    this.#a.bytes(...values);
    return this;
  }

  label(name?: string): Label {
    return this.#a.label(name);
  }
  place(label: Label): this {
    this.#a.place(label);
    return this;
  }
  /** A near call of a routine of the runtime. */
  call(label: Label): this {
    this.#a.emit(this.bits === 64 ? Code.Call_rel32_64 : Code.Call_rel32_32, label);
    return this;
  }
  jump(label: Label): this {
    this.#a.emit(this.bits === 64 ? Code.Jmp_rel32_64 : Code.Jmp_rel32_32, label);
    return this;
  }

  /** MOV [address], imm32 or imm16 or imm8. */
  poke(address: number, value: number, size: 1 | 2 | 4 = 4): this {
    if (size === 2) this.#a.bytes(0x66);
    this.#a.bytes(size === 1 ? 0xc6 : 0xc7, ...this.#absolute(0, address), ...bytes32(value).slice(0, size));
    return this;
  }
  /** MOV [address], imm32 with a label's address. */
  pokeLabel(address: number, label: Label): this {
    this.#a.bytes(0xc7, ...this.#absolute(0, address)).doublewords(label);
    return this;
  }
  /** The bytes of an instruction with a ModR/M byte for a place in memory. */
  at(address: number, register: number, ...opcode: number[]): this {
    this.#a.bytes(...opcode, ...this.#absolute(register, address));
    return this;
  }
  #absolute(register: number, address: number): number[] {
    return this.bits === 64 ? [(register << 3) | 4, 0x25, ...bytes32(address)] : [(register << 3) | 5, ...bytes32(address)];
  }

  /** MOV register, constant. */
  load(register: RegisterName, value: number | bigint): this {
    const number = Register[register];
    const wide = BigInt(value);
    if (this.bits === 64 && wide > 0xffff_ffffn) this.#a.bytes(0x48, 0xb8 + number, ...bytes64(wide));
    else if (wide === 0n) this.#a.bytes(0x31, 0xc0 + number * 9);
    else this.#a.bytes(0xb8 + number, ...bytes32(Number(BigInt.asUintN(32, wide))));
    return this;
  }
  /** MOV register, the address of a label. */
  loadLabel(register: RegisterName, label: Label): this {
    this.#a.bytes(0xb8 + Register[register]).doublewords(label);
    return this;
  }

  /** Words of a descriptor in the GDT. */
  define(selector: number, words: readonly number[]): this {
    for (const [i, word] of words.entries()) this.poke(GDT + (selector & ~7) + i * 4, word);
    return this;
  }
  /** Words of a gate in the IDT. */
  interruptGate(vector: number, words: readonly number[]): this {
    for (const [i, word] of words.entries()) this.poke(IDT + vector * (this.bits === 64 ? 16 : 8) + i * 4, word);
    return this;
  }
  /** WRMSR. */
  writeMsr(msr: number, value: number): this {
    return this.load("ecx", msr).load("eax", value).load("edx", 0).bytes(0x0f, 0x30);
  }
  /** MOV CRn, EAX of a constant. */
  writeCr(cr: number, value: number): this {
    return this.load("eax", value).bytes(0x0f, 0x22, 0xc0 | (cr << 3));
  }
  /** MOV DRn, EAX of a constant. */
  writeDr(dr: number, value: number): this {
    return this.load("eax", value).bytes(0x0f, 0x23, 0xc0 | (dr << 3));
  }
  /** MOV DRn, EAX of a label's address; `offset` bytes behind it. */
  breakAt(dr: number, label: Label, offset = 0, ring = 0): this {
    this.loadLabel("eax", label).bytes(0x05, ...bytes32(offset)); // add eax, offset
    if (ring === 3 && this.bits === 64) this.bytes(0x2d, ...bytes32(ALIAS_DISTANCE)); // sub eax, distance
    return this.bytes(0x0f, 0x23, 0xc0 | (dr << 3));
  }
}
