/** What regions know of general registers: how long their values are, and which are a bit spread over all others. */
import { describe, expect, test } from "vitest";
import { RAX, RBX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const RAM = 2 << 20;
const HLT = 0xf4;
const W = 0x48;

const AND_EAX_1 = [0x83, 0xe0, 1];
const NEG_EAX = [0xf7, 0xd8];
const AND_EAX_EBX = [0x21, 0xd8];
const AND_EBX_EAX = [0x21, 0xc3];
const MOV_ECX_EAX = [0x89, 0xc1];
const MOVSXD_RCX_EAX = [W, 0x63, 0xc8];

const programs: readonly [name: string, code: readonly number[]][] = [
  ["32 bits by a mask", [...AND_EAX_1, ...NEG_EAX, ...AND_EAX_EBX]],
  ["a mask by 32 bits", [...AND_EAX_1, ...NEG_EAX, ...AND_EBX_EAX]],
  ["64 bits by a mask", [W, ...AND_EAX_1, W, ...NEG_EAX, W, ...AND_EAX_EBX]],
  ["64 bits by a mask of 32", [...AND_EAX_1, ...NEG_EAX, W, ...AND_EAX_EBX]],
  ["32 bits by a mask of 64", [W, ...AND_EAX_1, W, ...NEG_EAX, ...AND_EAX_EBX]],
  ["a number by a mask", [...AND_EAX_1, ...NEG_EAX, 0x25, 0x20, 0x83, 0xb8, 0xed]],
  // mov ecx, eax; xor eax, eax; and ecx, ebx
  ["a mask that was moved", [...AND_EAX_1, ...NEG_EAX, ...MOV_ECX_EAX, 0x31, 0xc0, 0x21, 0xd9]],
  // mov al, 5 and mov ah, 5
  ["a mask whose low byte was written", [...AND_EAX_1, ...NEG_EAX, 0xb0, 5, ...AND_EAX_EBX]],
  ["a mask whose second byte was written", [...AND_EAX_1, ...NEG_EAX, 0xb4, 5, ...AND_EAX_EBX]],
  // mov ah, 5: the bit is one no more
  ["a bit beside a byte", [...AND_EAX_1, 0xb4, 5, ...NEG_EAX, ...AND_EAX_EBX]],
  // neg al
  ["a byte's mask", [...AND_EAX_1, 0xf6, 0xd8, ...AND_EAX_EBX]],
  // cmpxchg ecx, edx writes EAX where they differ
  ["a bit that may have been replaced", [...AND_EAX_1, 0x0f, 0xb1, 0xd1, ...NEG_EAX, ...AND_EAX_EBX]],
  ["a mask that may have been replaced", [...AND_EAX_1, ...NEG_EAX, 0x0f, 0xb1, 0xd1, ...AND_EAX_EBX]],
  // and edx, 1; cmpxchg ecx, edx; neg ecx; and ecx, ebx
  ["a register that may be a bit now", [0x83, 0xe2, 1, 0x0f, 0xb1, 0xd1, 0xf7, 0xd9, 0x21, 0xd9]],
  // shl eax, cl changes nothing where CL is zero
  ["a mask that may have been shifted", [...AND_EAX_1, ...NEG_EAX, 0xd3, 0xe0, ...AND_EAX_EBX]],
  // cmovz eax, ecx after test edx, edx
  ["a mask that may have been moved to", [...AND_EAX_1, ...NEG_EAX, 0x85, 0xd2, 0x0f, 0x44, 0xc1, ...AND_EAX_EBX]],
  // bsf eax, edx changes nothing where EDX is zero
  ["a bit that may have been found", [...AND_EAX_1, 0x0f, 0xbc, 0xc2, ...NEG_EAX, ...AND_EAX_EBX]],
  ["the flags of a mask", [...AND_EAX_1, ...NEG_EAX]],
  // movzx eax, bl; neg eax: no bit
  ["no mask of a byte", [0x0f, 0xb6, 0xc3, ...NEG_EAX, ...AND_EAX_EBX]],
  // mov eax, ebx; movsxd rcx, eax
  ["a sign of 32 bits", [0x89, 0xd8, ...MOVSXD_RCX_EAX]],
  // and eax, 0x7fffffff
  ["no sign of 31 bits", [0x25, 0xff, 0xff, 0xff, 0x7f, ...MOVSXD_RCX_EAX]],
  // lea eax, [rax + rbx]; movsxd rcx, eax
  ["a sign of a sum", [0x8d, 0x04, 0x18, ...MOVSXD_RCX_EAX]],
  // movzx eax, bl; movsx ecx, al; movsx edx, ax
  ["signs of a byte and a word", [0x0f, 0xb6, 0xc3, 0x0f, 0xbe, 0xc8, 0x0f, 0xbf, 0xd0]],
  // mov eax, ebx; mov rcx, rax; mov ax, dx; mov rdx, rax
  ["parts of a register", [0x89, 0xd8, W, 0x89, 0xc1, 0x66, 0x89, 0xd0, W, 0x89, 0xc2]],
];

const values = [0n, 1n, 2n, 0x8000_0000n, 0x7fff_ff81n, 0x1234_5678_9abc_def1n, 0xffff_ffff_ffff_fffen];

/** Runs the code with RAX, RBX, RCX and RDX as given; what they are then. */
function runner(mode: TranslateMode, code: readonly number[]): (registers: readonly bigint[]) => string {
  const { engine, ram } = createFlatMachine(64, RAM, mode);
  ram.set([...code, HLT], CODE);
  return (registers) => {
    engine.set64(state.rip, BigInt(CODE));
    engine.set32(state.activity, 0);
    for (const [i, register] of ORDER.entries()) engine.setReg(register, registers[i]);
    expect(engine.run(100)).toBe("halted");
    return `${ORDER.map((register) => engine.reg(register).toString(16)).join(" ")} flags ${engine.readFlags().toString(16)}`;
  };
}
const ORDER = [RAX, RBX, RCX, RDX];

describe("a region's arithmetic on registers that it knows something of", () => {
  test.each(programs)("has %s as the interpreter has", (_, code) => {
    const [interpreted, translated] = [runner("off", code), runner("always", code)];
    for (const [i, rax] of values.entries()) {
      for (const rbx of values) {
        // CL zero every other time, and ECX what CMPXCHG compares with
        const registers = [rax, rbx, i % 2 === 0 ? rax & 1n : 0xff00n, values[(i + 3) % values.length]];
        expect(translated(registers), registers.join(" ")).toBe(interpreted(registers));
      }
    }
  });
});
