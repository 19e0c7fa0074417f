import { describe, expect, test } from "vitest";
import { createDecodedOperation, createDecoder, decode, variants } from "../src/engine/decoder/decoder.ts";
import { expandTable } from "../src/engine/decoder/expand.ts";
import type { Variant } from "../src/engine/decoder/variant.ts";
import { form, type Instruction, instruction } from "../src/engine/instruction.ts";
import { CASE_BYTES, type CodeSize, compareDecoders } from "./decoder-comparison.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";

const CASES = 70_000;
const PREFIXES = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const MODES: readonly CodeSize[] = [16, 32, 64];

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** Random bytes; most cases with likely prefixes and opcode maps in front. */
function randomCode(random: Random, codeSize: CodeSize): Uint8Array {
  const code = new Uint8Array(CASES * CASE_BYTES);
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

/** Forms that the decoder takes and whose semantics raise #UD, for registers that do not exist, or that ignore prefixes iced-x86 minds. */
function isJudgedLater(variant: Variant | undefined): boolean {
  return variant !== undefined && (/\b(sreg|cr|dr)\b/.test(variant.form.operands) || variant.form.opcode.startsWith("0F 01"));
}

function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text.replaceAll(" ", ""), "hex"));
}

describe("decoder", () => {
  const seed = chooseSeed();
  test.each(MODES)(`agrees with iced-x86 on random bytes in %i-bit mode (seed ${seed})`, (codeSize) => {
    const differences = new Set<string>();
    let decoded = 0;
    compareDecoders(randomCode(seededRandom(seed), codeSize), codeSize, ({ bytes, ours, variant, mnemonic, difference }) => {
      if (ours === "ok") decoded++;
      if (difference !== undefined) differences.add(`${hex(bytes)} ${variant?.name}: ${difference}`);
      if (ours === "ok" && mnemonic === "INVALID" && !isJudgedLater(variant))
        differences.add(`${hex(bytes)} ${variant?.name}: invalid for iced-x86`);
    });
    expect([...differences].slice(0, 20)).toEqual([]);
    expect(decoded).toBeGreaterThan(CASES / 4);
  });

  test("asks for more when an instruction goes on beyond the available bytes", () => {
    const operation = createDecodedOperation();
    const code = bytesOf("48 81 84 88 78 56 34 12 ef cd ab 89");
    for (let available = 0; available < code.length; available++) {
      expect(decode(code, 0, available, 64, operation)).toBe("incomplete");
    }
    expect(decode(code, 0, code.length, 64, operation)).toBe("ok");
    expect(operation.length).toBe(code.length);
  });

  test("takes 15 bytes and refuses 16", () => {
    const operation = createDecodedOperation();
    const longest = bytesOf(`${"2e".repeat(14)}90`);
    expect(decode(longest, 0, 15, 64, operation)).toBe("ok");
    expect(operation.length).toBe(15);
    expect(decode(bytesOf(`${"2e".repeat(15)}90`), 0, 16, 64, operation)).toBe("tooLong");
    expect(decode(bytesOf(`${"2e".repeat(14)}90`), 0, 14, 64, operation)).toBe("incomplete");
    expect(decode(bytesOf(`${"2e".repeat(10)}8184 8878563412 efcdab89`), 0, 24, 64, operation)).toBe("tooLong");
  });

  test("allows LOCK on read-modify-write instructions with a memory destination only", () => {
    const operation = createDecodedOperation();
    const result = (text: string): string => decode(bytesOf(`${text}${"00".repeat(15)}`), 0, 15, 64, operation);
    expect(result("f0 01 00")).toBe("ok");
    expect(result("f0 01 c0")).toBe("undefined");
    expect(result("f0 03 00")).toBe("undefined");
    expect(result("f0 89 00")).toBe("undefined");
    expect(result("f0 0f ba 20 01")).toBe("undefined");
    expect(result("f0 0f ba 28 01")).toBe("ok");
  });

  test("ignores REX that does not stand right before the opcode", () => {
    const operation = createDecodedOperation();
    expect(decode(bytesOf("48 66 01 c0"), 0, 4, 64, operation)).toBe("ok");
    expect(variants[operation.handler].size).toBe(16);
  });
});

describe("forms", () => {
  const row = (...forms: Instruction["forms"]): Instruction =>
    instruction("TEST ROW", { source: "this test", forms, semantics() {} });
  const decoderOf = (...forms: Instruction["forms"]): unknown => createDecoder(expandTable([row(...forms)]));

  test("refuse two that claim one encoding", () => {
    expect(() => decoderOf(form("01 /r", "r/mv, rv"), form("01 /2", "r/mv"))).toThrow(/two forms claim opcode 01/);
    expect(() => decoderOf(form("50+r", "rv"), form("53", ""))).toThrow(/two forms claim/);
    expect(() => decoderOf(form("0F 01 /0", "r/mv"), form("0F 01 /0", "m16"))).toThrow(/two forms claim/);
  });

  test("let a mandatory prefix, REX.W, mod and whole ModRM bytes tell encodings apart", () => {
    expect(() =>
      decoderOf(
        form("90", ""),
        form("F3 90", ""),
        form("0F C7 /1", "m64"),
        form("REX.W 0F C7 /1", "m128"),
        form("NP 0F AE /5", "m8"),
        form("NP 0F AE E8+i", ""),
        form("0F 12 /r", "xmm, m64"),
        form("0F 12 /r", "xmm, xmm=rm"),
      ),
    ).not.toThrow();
  });

  test("are refused by name when malformed", () => {
    expect(() => decoderOf(form("01 /r", "r/m9, rv"))).toThrow(/form "01 \/r" "r\/m9, rv"/);
    expect(() => decoderOf(form("01", "r/mv"))).toThrow(/needs ModRM/);
  });
});
