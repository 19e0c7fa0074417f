/** Flags that regions do not keep: those that nobody reads behind a block's end, and those that a loop finds as it leaves them. */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const ROUNDS = 40;

/** again: BODY; dec ecx; jnz again; hlt */
const loopOf = (body: readonly number[]): number[] => [...body, 0xff, 0xc9, 0x75, -(body.length + 4) & 255, 0xf4];

const PROGRAMS: Readonly<Record<string, readonly number[]>> = {
  // cmp al, 7; jb m; cmp bl, al; jmp m; m: cmp dl, al; adc edx, 1; add eax, 3
  "one comparison behind others": loopOf([0x3c, 7, 0x72, 4, 0x38, 0xc3, 0xeb, 0, 0x38, 0xc2, 0x83, 0xd2, 1, 0x83, 0xc0, 3]),
  // test al, 1; jnz m; sub ebx, eax; m: inc edx; cmp ebx, edx; setb dl; add eax, 5
  "INC and a comparison behind others": loopOf([
    0xa8, 1, 0x75, 2, 0x29, 0xc3, 0xff, 0xc2, 0x39, 0xd3, 0x0f, 0x92, 0xc2, 0x83, 0xc0, 5,
  ]),
  // mov edx, 3; cmp edx, 0; again: sub edx, 1; cmp edx, 0; ja again; adc ebx, 5; add eax, ebx
  "a loop that finds what it leaves": loopOf([
    0xba, 3, 0, 0, 0, 0x83, 0xfa, 0, 0x83, 0xea, 1, 0x83, 0xfa, 0, 0x77, 0xf8, 0x83, 0xd3, 5, 0x01, 0xd8,
  ]),
  // mov edx, 3; cmp edx, 0; again: cmp edx, eax; lea edx, [rdx-1]; cmp edx, 0; ja again; adc ebx, 5; add eax, ebx
  "a loop that writes the registers of its flags": loopOf([
    0xba, 3, 0, 0, 0, 0x83, 0xfa, 0, 0x39, 0xc2, 0x8d, 0x52, 0xff, 0x83, 0xfa, 0, 0x77, 0xf6, 0x83, 0xd3, 5, 0x01, 0xd8,
  ]),
  // mov edx, 3; add bl, bl; again: lea edx, [rdx-1]; inc edx; dec edx; jnz again; adc eax, 1
  "a loop that keeps CF of what was before it": loopOf([
    0xba, 3, 0, 0, 0, 0x00, 0xdb, 0x8d, 0x52, 0xff, 0xff, 0xc2, 0xff, 0xca, 0x75, 0xf7, 0x83, 0xd0, 1,
  ]),
};

function machine(mode: "off" | "always", code: readonly number[]): FlatMachine {
  const made = createFlatMachine(64, 1 << 20, mode);
  made.ram.set(code, CODE);
  made.engine.set64(state.rip, BigInt(CODE));
  for (const [register, value] of [
    [RAX, 1n],
    [RBX, 0x55n],
    [RCX, BigInt(ROUNDS)],
    [RDX, 9n],
  ] as const)
    made.engine.setReg(register, value);
  return made;
}
const seen = ({ engine }: FlatMachine): string =>
  [engine.get64(state.rip), ...[RAX, RBX, RCX, RDX].map((register) => engine.reg(register)), BigInt(engine.readFlags())]
    .map((value) => value.toString(16))
    .join(" ");

describe.each(Object.entries(PROGRAMS))("%s", (_name, code) => {
  it.each([1, 2, 3, 5, 7, 11, 13, 29, 64, 97, 1000])("leaves what the interpreter leaves, every %i instructions", (slice) => {
    const [reference, translated] = [machine("off", code), machine("always", code)];
    for (let reason = "budget"; reason === "budget"; ) {
      reason = reference.engine.run(slice);
      expect(translated.engine.run(slice)).toBe(reason);
      expect(seen(translated)).toBe(seen(reference));
    }
    expect(translated.engine.counts().translator.regionsMade).toBeGreaterThan(0);
  });
});
