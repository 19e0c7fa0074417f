/** Flags where paths meet that left different ones, and what INC and DEC keep of them: as the interpreter has it. */
import { expect, it } from "vitest";
import { RAX, RBX, RCX, RDI, RDX, RSI, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { createFlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
/** All of the loop is one region after a part of them. */
const ROUNDS = 4 * HOT_ENTRIES_IN_TESTS;

/** On RAX and RBX, which are different in every round. */
const WRITERS: Readonly<Record<string, readonly number[]>> = {
  "cmp al, bl": [0x38, 0xd8],
  "cmp ax, bx": [0x66, 0x39, 0xd8],
  "cmp eax, ebx": [0x39, 0xd8],
  "cmp rax, rbx": [0x48, 0x39, 0xd8],
  "add bl, al": [0x00, 0xc3],
  "add rbx, rax": [0x48, 0x01, 0xc3],
  "sbb ebx, eax": [0x19, 0xc3],
  "test eax, ebx": [0x85, 0xd8],
  "shl ebx, 3": [0xc1, 0xe3, 3],
  "inc bl": [0xfe, 0xc3],
  stc: [0xf9],
};
const KEEPERS: Readonly<Record<string, readonly number[]>> = { "inc esi": [0xff, 0xc6], "dec sil": [0x40, 0xfe, 0xce] };

/**
 * again: imul rax, rax, 0x10dcd; add rax, 0x3039; lea rbx, [rbx+rax*2]; bt rax, 40; jc other; FIRST; jmp met; other: SECOND;
 * jmp met; met: KEEPER; adc edi, edi; setc dl; add edi, edx; dec ecx; jnz again; hlt
 */
function program(first: readonly number[], second: readonly number[], keeper: readonly number[]): number[] {
  const head = [0x48, 0x69, 0xc0, 0xcd, 0x0d, 0x01, 0x00, 0x48, 0x05, 0x39, 0x30, 0, 0, 0x48, 0x8d, 0x1c, 0x43];
  const choice = [0x48, 0x0f, 0xba, 0xe0, 40, 0x72, first.length + 2];
  const body = [...head, ...choice, ...first, 0xeb, second.length + 2, ...second, 0xeb, 0, ...keeper];
  const tail = [0x11, 0xff, 0x0f, 0x92, 0xc2, 0x01, 0xd7, 0xff, 0xc9];
  const all = [...body, ...tail];
  const back = -(all.length + 6);
  return [...all, 0x0f, 0x85, ...[0, 8, 16, 24].map((shift) => (back >> shift) & 255), 0xf4];
}

function outcome(mode: TranslateMode, code: readonly number[]): readonly bigint[] {
  const m = createFlatMachine(64, 1 << 20, mode);
  m.ram.set(code, CODE);
  m.engine.set64(state.rip, BigInt(CODE));
  for (const [register, value] of [
    [RAX, 12345n],
    [RBX, 678n],
    [RCX, BigInt(ROUNDS)],
    [RDX, 0n],
    [RSI, 7n],
    [RDI, 1n],
  ] as const)
    m.engine.setReg(register, value);
  expect(m.engine.run(100 * ROUNDS)).toBe("halted");
  if (mode !== "off") expect(m.engine.counts().translator.regionsMade).toBeGreaterThan(0);
  return [RAX, RBX, RCX, RDX, RSI, RDI].map((register) => m.engine.reg(register));
}

for (const [keeper, kept] of Object.entries(KEEPERS)) {
  it.each(Object.keys(WRITERS))(`${keeper} keeps CF of %s where another path left other flags`, (first) => {
    for (const second of Object.keys(WRITERS)) {
      const code = program(WRITERS[first] as number[], WRITERS[second] as number[], kept);
      expect(outcome("hot", code), second).toEqual(outcome("off", code));
    }
  });
}
