/** Bitwise logic. CF and OF are cleared, AF is undefined (cleared here). */
import type { Emitter, Int } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { groupOneForms } from "./arithmetic.ts";

function combine(e: Emitter, target: FormOperand, source: FormOperand, operation: (a: Int, b: Int) => Int): void {
  const a = e.readForWrite(target);
  const b = e.read(source);
  const result = operation(a, b);
  e.write(target, result);
  e.recordFlags("logic", a, b, result);
}

export const AND = instruction("AND", {
  source: sdm("2A", "AND - Logical AND"),
  forms: groupOneForms(0x20, 4, true),
  semantics(e, [target, source]) {
    combine(e, target, source, (a, b) => e.and(a, b));
  },
});

export const OR = instruction("OR", {
  source: sdm("2B", "OR - Logical Inclusive OR"),
  forms: groupOneForms(0x08, 1, true),
  semantics(e, [target, source]) {
    combine(e, target, source, (a, b) => e.or(a, b));
  },
});

export const XOR = instruction("XOR", {
  source: sdm("2C", "XOR - Logical Exclusive OR"),
  forms: groupOneForms(0x30, 6, true),
  semantics(e, [target, source]) {
    combine(e, target, source, (a, b) => e.xor(a, b));
  },
});

export const NOT = instruction("NOT", {
  source: sdm("2B", "NOT - One's Complement Negation"),
  forms: [form("F6 /2", "r/m8", "lock"), form("F7 /2", "r/mv", "lock")],
  semantics(e, [target]) {
    const a = e.readForWrite(target);
    e.write(target, e.not(a));
  },
});

export const TEST = instruction("TEST", {
  source: sdm("2B", "TEST - Logical Compare"),
  // /1 of group 3 is an undocumented alias that silicon accepts
  forms: [
    form("84 /r", "r/m8, r8"),
    form("85 /r", "r/mv, rv"),
    form("A8 ib", "AL, imm8"),
    form("A9 iz", "rAX, immz"),
    form("F6 /0 ib", "r/m8, imm8"),
    form("F6 /1 ib", "r/m8, imm8"),
    form("F7 /0 iz", "r/mv, immz"),
    form("F7 /1 iz", "r/mv, immz"),
  ],
  semantics(e, [left, right]) {
    const a = e.read(left);
    const b = e.read(right);
    e.recordFlags("logic", a, b, e.and(a, b));
  },
});

export const logic: readonly Instruction[] = [AND, OR, XOR, NOT, TEST];
