/** Byte strings for decoders, random and structured, and which of our answers are nothing to compare. */
import type { Variant } from "../src/engine/decoder/variant.ts";
import { CASE_BYTES, type CodeSize } from "./decoder-comparison.ts";
import type { Random } from "./random.ts";

const PREFIXES = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/** Random bytes; most cases with likely prefixes and opcode maps in front. */
export function randomCode(random: Random, codeSize: CodeSize, cases: number): Uint8Array {
  const code = new Uint8Array(cases * CASE_BYTES);
  for (let at = 0; at < code.length; at += CASE_BYTES) {
    for (let i = 0; i < CASE_BYTES; i++) code[at + i] = random.next();
    if (random.oneIn(4)) continue;
    let to = at;
    while (random.oneIn(3) && to < at + 6) code[to++] = random.pick(PREFIXES);
    if (codeSize === 64 && random.oneIn(2)) code[to++] = 0x40 + random.below(16);
    if (random.oneIn(2)) code[to++] = 0x0f;
    else if (random.oneIn(4)) {
      // VEX: any but the second byte of three; vvvv unused in many
      const isShort = random.oneIn(3);
      code[to++] = isShort ? 0xc5 : 0xc4;
      if (codeSize !== 64) code[to] |= 0xc0;
      if (!isShort) {
        code[to] = (code[to] & 0xe0) | (1 + random.below(3));
        to++;
      }
      if (random.oneIn(2)) code[to] |= 0x78;
    }
  }
  return code;
}

/** Forms that the decoder takes and whose semantics raise #UD, for registers that do not exist or are named twice by a gather, or that ignore prefixes iced-x86 minds. */
export function isJudgedLater(variant: Variant | undefined): boolean {
  return (
    variant !== undefined &&
    (/\b(sreg|cr|dr|vm(32|64)[xy])\b/.test(variant.form.operands) || variant.form.opcode.startsWith("0F 01"))
  );
}
