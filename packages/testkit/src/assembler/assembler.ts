import { type Code, Encoder, Instruction, MemoryOperand, Register } from "iced-x86";

/** A register operand; `reg` is iced-x86's number. */
export interface Reg {
  readonly reg: Register;
}
/** A place in memory: [base + index * scale + displacement], or a label. */
export interface Mem {
  readonly base?: Reg;
  readonly index?: Reg;
  readonly scale?: 1 | 2 | 4 | 8;
  readonly displacement?: number | bigint | Label;
  readonly segment?: Reg;
}
/** A name for an address; it gets its value where it is placed. */
export interface Label {
  readonly label: string;
}
export type Operand = Reg | Mem | Label | number | bigint;

const named = (register: Register): Reg => ({ reg: register });
export const AL = named(Register.AL),
  AX = named(Register.AX),
  EAX = named(Register.EAX),
  EBX = named(Register.EBX),
  ECX = named(Register.ECX),
  EDX = named(Register.EDX),
  ESI = named(Register.ESI),
  EDI = named(Register.EDI),
  DX = named(Register.DX),
  CL = named(Register.CL),
  BL = named(Register.BL),
  DL = named(Register.DL);
export const RAX = named(Register.RAX),
  RBX = named(Register.RBX),
  RCX = named(Register.RCX),
  RDX = named(Register.RDX),
  RSI = named(Register.RSI),
  RDI = named(Register.RDI),
  RBP = named(Register.RBP),
  RSP = named(Register.RSP);
export const R8 = named(Register.R8),
  R9 = named(Register.R9),
  R10 = named(Register.R10),
  R11 = named(Register.R11),
  R12 = named(Register.R12),
  R13 = named(Register.R13),
  R14 = named(Register.R14),
  R15 = named(Register.R15);
export const CR0 = named(Register.CR0),
  CR2 = named(Register.CR2),
  CR3 = named(Register.CR3),
  CR4 = named(Register.CR4),
  DS = named(Register.DS),
  ES = named(Register.ES),
  SS = named(Register.SS),
  R12D = named(Register.R12D),
  R13D = named(Register.R13D);

export function mem(
  base: Reg | undefined,
  displacement: number | bigint | Label = 0,
  index?: Reg,
  scale: 1 | 2 | 4 | 8 = 1,
): Mem {
  return { displacement, scale, ...(base && { base }), ...(index && { index }) };
}

type Item =
  | { kind: "code"; code: Code; operands: readonly Operand[] }
  | { kind: "bytes"; bytes: () => Uint8Array; length: number };

/**
 * Assembles small guests: instructions named by iced-x86's `Code`, with labels. Every instruction's form is the one named, so its
 * length does not depend on where labels lie, and two passes suffice. Branch codes must be of the rel32 (rel16) forms.
 */
export class Assembler {
  readonly #bits: 16 | 32 | 64;
  readonly #origin: bigint;
  readonly #items: Item[] = [];
  readonly #places = new Map<string, number>();
  readonly #addresses = new Map<string, bigint>();
  #names = 0;

  /** `origin`: linear address at which the code will lie. */
  constructor(bits: 16 | 32 | 64, origin: number | bigint) {
    this.#bits = bits;
    this.#origin = BigInt(origin);
  }

  /** A label, not yet placed. */
  label(name = `local ${this.#names++}`): Label {
    return { label: name };
  }

  /** Places a label here. */
  place(label: Label): Label {
    if (this.#places.has(label.label)) throw new Error(`label ${label.label} is placed twice`);
    this.#places.set(label.label, this.#items.length);
    return label;
  }

  emit(code: Code, ...operands: Operand[]): this {
    this.#items.push({ kind: "code", code, operands });
    return this;
  }

  bytes(...values: number[]): this {
    this.#items.push({ kind: "bytes", bytes: () => Uint8Array.from(values), length: values.length });
    return this;
  }

  text(value: string): this {
    return this.bytes(...new TextEncoder().encode(value));
  }

  zeros(count: number): this {
    return this.bytes(...new Array<number>(count).fill(0));
  }

  /** Numbers of 64 bits; labels give their addresses. */
  quads(...values: (number | bigint | Label)[]): this {
    const bytes = () => {
      const words = BigUint64Array.from(values, (value) => BigInt.asUintN(64, this.#value(value)));
      return new Uint8Array(words.buffer);
    };
    this.#items.push({ kind: "bytes", bytes, length: values.length * 8 });
    return this;
  }

  /** Numbers of 32 bits; labels give their addresses, which must be below 4 GiB. */
  doublewords(...values: (number | Label)[]): this {
    const bytes = () => {
      const words = Uint32Array.from(values, (value) => Number(BigInt.asUintN(32, this.#value(value))));
      return new Uint8Array(words.buffer);
    };
    this.#items.push({ kind: "bytes", bytes, length: values.length * 4 });
    return this;
  }

  /** Address of a label, after `assemble`. */
  address(label: Label): bigint {
    return this.#value(label);
  }

  assemble(): Uint8Array {
    for (const name of this.#places.keys()) this.#addresses.set(name, this.#origin);
    this.#pass();
    return this.#pass();
  }

  #pass(): Uint8Array {
    const encoder = new Encoder(this.#bits);
    const parts: Uint8Array[] = [];
    const placed = new Map<number, string[]>();
    for (const [name, index] of this.#places) placed.set(index, [...(placed.get(index) ?? []), name]);
    let at = this.#origin;
    for (const [index, item] of this.#items.entries()) {
      for (const name of placed.get(index) ?? []) this.#addresses.set(name, at);
      if (item.kind === "bytes") {
        parts.push(item.bytes());
        at += BigInt(item.length);
        continue;
      }
      const instruction = this.#instruction(item.code, item.operands);
      const length = encoder.encode(instruction, at);
      parts.push(encoder.takeBuffer());
      instruction.free();
      at += BigInt(length);
    }
    for (const name of placed.get(this.#items.length) ?? []) this.#addresses.set(name, at);
    encoder.free();
    return Buffer.concat(parts);
  }

  #value(value: number | bigint | Label): bigint {
    if (typeof value !== "object") return BigInt(value);
    const address = this.#addresses.get(value.label);
    if (address === undefined) throw new Error(`label ${value.label} is used but not placed`);
    return address;
  }

  #memory(operand: Mem): MemoryOperand {
    const { base, index, scale = 1, displacement = 0, segment } = operand;
    const value = BigInt.asIntN(64, this.#value(displacement));
    const wide =
      !base && !index
        ? this.#bits / 8
        : value === 0n && typeof displacement !== "object"
          ? 0
          : this.#bits === 16
            ? 2
            : this.#bits === 64
              ? 8
              : 4;
    return new MemoryOperand(
      base?.reg ?? Register.None,
      index?.reg ?? Register.None,
      scale,
      value,
      wide,
      false,
      segment?.reg ?? Register.None,
    );
  }

  #instruction(code: Code, operands: readonly Operand[]): Instruction {
    const [first, second, third] = operands;
    if (first === undefined) return Instruction.create(code);
    const isReg = (operand: Operand | undefined): operand is Reg => typeof operand === "object" && "reg" in operand;
    const isLabel = (operand: Operand | undefined): operand is Label => typeof operand === "object" && "label" in operand;
    const isMem = (operand: Operand | undefined): operand is Mem =>
      typeof operand === "object" && !isReg(operand) && !isLabel(operand);
    const small = (operand: Operand) => Number(BigInt.asIntN(32, this.#value(operand as number | bigint | Label)));
    if (isLabel(first) && second === undefined) return Instruction.createBranch(code, this.#value(first));
    if (isReg(first)) {
      if (second === undefined) return Instruction.createReg(code, first.reg);
      if (isReg(second)) {
        if (third === undefined) return Instruction.createRegReg(code, first.reg, second.reg);
        if (typeof third === "number") return Instruction.createRegRegI32(code, first.reg, second.reg, third);
      } else if (isMem(second)) return Instruction.createRegMem(code, first.reg, this.#memory(second));
      else if (typeof second === "bigint" || isLabel(second))
        return Instruction.createRegU64(code, first.reg, BigInt.asUintN(64, this.#value(second)));
      else return Instruction.createRegI32(code, first.reg, small(second));
    }
    if (isMem(first)) {
      if (second === undefined) return Instruction.createMem(code, this.#memory(first));
      if (isReg(second)) return Instruction.createMemReg(code, this.#memory(first), second.reg);
      if (!isMem(second)) return Instruction.createMemI32(code, this.#memory(first), small(second));
    }
    if (typeof first === "number") {
      if (second === undefined) return Instruction.createI32(code, first);
      if (isReg(second)) return Instruction.createI32Reg(code, first, second.reg);
    }
    throw new Error(`the assembler knows no instruction with operands ${JSON.stringify(operands)}`);
  }
}
