/**
 * Which variants have an arm of their own in the interpreter's main function. The rest are functions, which costs a few
 * nanoseconds an instruction; too many arms cost compile time of the main function in the JavaScript engine. Chosen by how
 * often compilers emit them.
 */
import type { Variant } from "../decoder/variant.ts";

const HOT = new Set(
  `MOV MOVZX MOVSX LEA XCHG CMOVcc SETcc NOP PUSH POP LEAVE JMP Jcc CALL RET
   ADD SUB AND OR XOR ADC SBB CMP TEST INC DEC NEG NOT IMUL MUL SHL SHR SAR ROL ROR SHLD SHRD
   CBW/CWDE/CDQE CWD/CDQ/CQO BSWAP BT BTS BTR BSF BSR POPCNT CMPXCHG XADD CLD
   MOVAPS MOVUPS MOVDQA MOVDQU MOVQ MOVD/MOVQ PXOR POR PAND XORPS/XORPD`.split(/\s+/),
);
/** Of these only operands of 32 and 64 bits are common. */
const WIDE_ONLY = new Set(
  "ADC SBB XCHG BTS BTR SHLD SHRD ROL ROR CMPXCHG XADD CMOVcc PUSH POP LEAVE JMP Jcc CALL RET".split(" "),
);

export function isHot(variant: Variant): boolean {
  if (variant.form.attributes.includes("cold")) return false;
  // Segment and control register moves share the mnemonic MOV.
  if (variant.access.some(({ kind }) => kind === "segmentRegister" || kind === "controlRegister" || kind === "debugRegister"))
    return false;
  const { mnemonic } = variant.instruction;
  return HOT.has(mnemonic) && (variant.size >= 32 || !WIDE_ONLY.has(mnemonic));
}
