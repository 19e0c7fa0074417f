/**
 * Which variants have an arm of their own in the interpreter's main function. The rest are functions, which costs a few
 * nanoseconds an instruction; too many arms cost compile time of the main function in the JavaScript engine. Chosen by how
 * often compilers emit them.
 */
import type { Variant } from "../decoder/variant.ts";

const ALL = new Set([8, 16, 32, 64]);
const WIDE = new Set([32, 64]);
const HOT = new Map<string, ReadonlySet<number>>([
  ["MOV", new Set([8, 32, 64])],
  ["ADD", WIDE],
  ["SUB", WIDE],
  ["AND", WIDE],
  ["OR", WIDE],
  ["XOR", WIDE],
  ["ADC", WIDE],
  ["SBB", WIDE],
  ["CMP", new Set([8, 32, 64])],
  ["TEST", new Set([8, 32, 64])],
  ["INC", WIDE],
  ["DEC", WIDE],
  ["NEG", WIDE],
  ["NOT", WIDE],
  ["LEA", WIDE],
  ["MOVZX", WIDE],
  ["MOVSX", WIDE],
  ["MOVSXD", WIDE],
  ["IMUL", WIDE],
  ["SHL", WIDE],
  ["SHR", WIDE],
  ["SAR", WIDE],
  ["ROL", WIDE],
  ["ROR", WIDE],
  ["PUSH", WIDE],
  ["POP", WIDE],
  ["CALL", WIDE],
  ["RET", WIDE],
  ["JMP", WIDE],
  ["Jcc", WIDE],
  ["CMOVcc", WIDE],
  ["SETcc", ALL],
  ["NOP", ALL],
  ["ENDBR64", ALL],
  ["CDQE", WIDE],
  ["CWDE", WIDE],
  ["CDQ", WIDE],
  ["CQO", WIDE],
  ["LEAVE", WIDE],
]);

export function isHot(variant: Variant): boolean {
  if (variant.form.attributes.includes("cold")) return false;
  // Segment and control register moves share the mnemonic MOV.
  if (variant.access.some(({ kind }) => kind === "segmentRegister" || kind === "controlRegister" || kind === "debugRegister"))
    return false;
  return HOT.get(variant.instruction.mnemonic)?.has(variant.size) ?? false;
}
