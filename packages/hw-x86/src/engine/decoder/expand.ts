/**
 * Turns the rows into variants, one for each operand size, register-or-memory choice and condition code of each form. The order
 * is that of the rows, so numbers are the same wherever the table is expanded: in the generator and in the running engine.
 */
import type { FormOperand, Instruction } from "../instruction.ts";
import { type OperandSize, type ParsedForm, type ParsedOperand, parseForm, sizeOfName } from "./form-syntax.ts";
import type { OperandAccess, Variant } from "./variant.ts";

const FIELDS = ["a", "b", "c"] as const;
/** A fourth register, named in an immediate. */
const IMMEDIATE_FIELD = "immediate";
const CONDITIONS = ["O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G"];

/** True when operand `operand` of a variant names its register in the operation record. */
export function usesField(operand: ParsedOperand, isMemory: boolean): boolean {
  if (operand.register === undefined || operand.register.source === "is4") return false;
  return !(isMemory && operand.register.source === "rm");
}

function accessOf(operand: ParsedOperand, field: number, size: OperandSize, isMemory: boolean): OperandAccess {
  const { register, memory, other } = operand;
  if (other !== undefined) {
    switch (other.kind) {
      case "fixedGpr":
        return { kind: "fixedGpr", register: other.register, size: sizeOfName(other.size, size) as OperandSize };
      case "immediate":
        return { kind: "immediate", size: sizeOfName(other.size, size) as OperandSize };
      default:
        return other;
    }
  }
  if (memory !== undefined && isMemory) return { kind: "memory", size: sizeOfName(memory.size, size) + memory.extra };
  if (register === undefined) throw new SyntaxError(`"${operand.text}" is neither register nor memory here`);
  if (register.source === "is4") return { kind: "xmm", field: IMMEDIATE_FIELD, size: sizeOfName(register.size, size) };
  const name = FIELDS[field];
  if (name === undefined) throw new SyntaxError("more than three register operands");
  const bits = sizeOfName(register.size, size);
  switch (register.class) {
    case "gpr":
      return { kind: "gpr", field: name, size: bits as OperandSize };
    case "xmm":
    case "mm":
      return { kind: register.class, field: name, size: bits };
    default:
      return { kind: register.class, field: name };
  }
}

/** Whether variants for memory, for registers or both exist. A form without an r/m operand counts as register. */
export function memoryChoices(parsed: ParsedForm): readonly boolean[] {
  const hasMemory = parsed.operands.some((operand) => operand.memory !== undefined);
  if (!hasMemory) return [false];
  return parsed.mod === "any" ? [false, true] : [parsed.mod === "memory"];
}

export function expandTable(instructions: readonly Instruction[]): Variant[] {
  const variants: Variant[] = [];
  for (const instruction of instructions) {
    for (const form of instruction.forms) {
      const parsed = parseForm(form);
      const operands: FormOperand[] = parsed.operands.map(({ text }, position) => ({ text, position }));
      for (let condition = 0; condition < (parsed.isConditional ? 16 : 1); condition++) {
        for (const size of parsed.sizes) {
          for (const isMemory of memoryChoices(parsed)) {
            let field = 0;
            const access = parsed.operands.map((operand) =>
              accessOf(operand, usesField(operand, isMemory) ? field++ : 0, size, isMemory),
            );
            const mnemonic = parsed.isConditional ? `${instruction.mnemonic} (${CONDITIONS[condition]})` : instruction.mnemonic;
            variants.push({
              number: variants.length,
              instruction,
              form,
              size,
              isMemory,
              condition: parsed.isConditional ? condition : undefined,
              operands,
              access,
              name: `${mnemonic} ${form.operands} [${form.opcode}] ${size}${isMemory ? " memory" : ""}`,
            });
          }
        }
      }
    }
  }
  if (variants.length > 0xffff) throw new RangeError("more variants than handler numbers");
  return variants;
}
