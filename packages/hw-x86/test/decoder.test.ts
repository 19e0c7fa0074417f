import { describe, expect, test } from "vitest";
import { createDecodedOperation, createDecoder, decode, variants } from "../src/engine/decoder/decoder.ts";
import { expandTable } from "../src/engine/decoder/expand.ts";
import { form, type Instruction, instruction } from "../src/engine/instruction.ts";
import { isJudgedLater, randomCode } from "./decoder-cases.ts";
import { type CodeSize, compareDecoders } from "./decoder-comparison.ts";
import { chooseSeed, seededRandom } from "./random.ts";

const CASES = 70_000;
const MODES: readonly CodeSize[] = [16, 32, 64];

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text.replaceAll(" ", ""), "hex"));
}

describe("decoder", () => {
  const seed = chooseSeed();
  test.each(MODES)(`agrees with iced-x86 on random bytes in %i-bit mode (seed ${seed})`, (codeSize) => {
    const differences = new Set<string>();
    let decoded = 0;
    compareDecoders(
      randomCode(seededRandom(seed), codeSize, CASES),
      codeSize,
      ({ bytes, ours, variant, mnemonic, difference }) => {
        if (ours === "ok") decoded++;
        if (difference !== undefined) differences.add(`${hex(bytes)} ${variant?.name}: ${difference}`);
        if (ours === "ok" && mnemonic === "INVALID" && !isJudgedLater(variant))
          differences.add(`${hex(bytes)} ${variant?.name}: invalid for iced-x86`);
      },
    );
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
