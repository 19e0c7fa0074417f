/** AES-NI, SHA and PCLMULQDQ: rows that hand their vectors to helpers (crypto-helpers.ts). */
import type { Emitter, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { behaves, VendorBehaviour } from "../vendor-behaviour.ts";
import { viaHelper } from "./vector-common.ts";

function checkOperand(e: Emitter, mnemonic: string, operand: FormOperand): void {
  if (!e.isMemory(operand)) return;
  if (!mnemonic.startsWith("SHA")) e.checkAligned(operand);
  else e.if(behaves(e, VendorBehaviour.shaChecksAlignment), () => e.checkAligned(operand));
}

/** `helper` gets destination and source, and the immediate if the form has one. */
function row(mnemonic: string, opcode: string, operands: string, helper: string): Instruction {
  return instruction(mnemonic, {
    source: sdm("2", mnemonic),
    requires: ["sse"],
    forms: [form(opcode, operands)],
    semantics(e: Emitter, [dst, src, immediate]: readonly FormOperand[]) {
      checkOperand(e, mnemonic, src);
      const b = e.readVec(src);
      const control = immediate === undefined ? [] : [e.low32(e.read(immediate))];
      e.writeVec(dst, viaHelper(e, e.readVec(dst), b, helper, ...control));
    },
  });
}
const TWO = "xmm, xmm/m128";
const WITH_IMMEDIATE = "xmm, xmm/m128, imm8";

export const cryptography: readonly Instruction[] = [
  row("AESIMC", "66 0F 38 DB /r", TWO, "aesInverseMixColumns"),
  row("AESENC", "66 0F 38 DC /r", TWO, "aesEncrypt"),
  row("AESENCLAST", "66 0F 38 DD /r", TWO, "aesEncryptLast"),
  row("AESDEC", "66 0F 38 DE /r", TWO, "aesDecrypt"),
  row("AESDECLAST", "66 0F 38 DF /r", TWO, "aesDecryptLast"),
  row("AESKEYGENASSIST", "66 0F 3A DF /r ib", WITH_IMMEDIATE, "aesKeyAssist"),
  row("PCLMULQDQ", "66 0F 3A 44 /r ib", WITH_IMMEDIATE, "carrylessMultiply"),
  row("SHA1NEXTE", "NP 0F 38 C8 /r", TWO, "sha1NextE"),
  row("SHA1MSG1", "NP 0F 38 C9 /r", TWO, "sha1Message1"),
  row("SHA1MSG2", "NP 0F 38 CA /r", TWO, "sha1Message2"),
  row("SHA256MSG1", "NP 0F 38 CC /r", TWO, "sha256Message1"),
  row("SHA256MSG2", "NP 0F 38 CD /r", TWO, "sha256Message2"),
  row("SHA1RNDS4", "NP 0F 3A CC /r ib", WITH_IMMEDIATE, "sha1Rounds4"),
  instruction("SHA256RNDS2", {
    source: sdm("2B", "SHA256RNDS2 - Perform Two Rounds of SHA256 Operation"),
    requires: ["sse"],
    forms: [form("NP 0F 38 CB /r", "xmm, xmm/m128, XMM0")],
    semantics(e, [dst, src, words]) {
      checkOperand(e, "SHA256RNDS2", src);
      const b = e.readVec(src);
      const keyed = e.lane("i64x2.extract_lane", 0, e.readVec(words)) as ReturnType<Emitter["int"]>;
      const first = e.low32(keyed);
      const second = e.low32(e.shr(keyed, e.int(32)));
      const result: Vec = viaHelper(e, e.readVec(dst), b, "sha256Rounds2", first, second);
      e.writeVec(dst, result);
    },
  }),
];
