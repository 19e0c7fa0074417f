/** Regions outside flat segments are entered only where what they were made for is still so. */
import { describe, expect, test } from "vitest";
import { CS, DS, ES, gprOffset, RAX, RBX, RSP, SS, state } from "../src/engine/cpu-state.ts";
import { writeSegment } from "../src/engine/system/descriptors.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const BASE = 0x1_0000;
const MODES: readonly TranslateMode[] = ["off", "always"];
const CODE_16 = 0x9b,
  DATA_16 = 0x93,
  DATA_32 = 0x4093;

function machine(translate: TranslateMode, at: number, code: readonly number[]): FlatMachine {
  const made = createFlatMachine(32, 1 << 20, translate);
  const { engine, guest, ram } = made;
  const record = guest.exception.bind(guest);
  guest.exception = (vector, type, errorCode, payload) => {
    record(vector, type, errorCode, payload);
    guest.exit();
  };
  ram.set(code, BASE + at);
  writeSegment(engine, CS, 8, BASE, 0xffff, CODE_16);
  for (const segment of [SS, DS, ES]) writeSegment(engine, segment, 16, 0x2_0000, 0xffff, DATA_16);
  engine.updateSegments();
  return made;
}
function begin({ engine }: FlatMachine, rip: number): void {
  engine.set64(state.rip, BigInt(rip));
  engine.setReg(RSP, 0x8000n);
}
const register = ({ engine }: FlatMachine, index: number): bigint => engine.u64[gprOffset(index) >>> 3];

describe.each(MODES)("16-bit code, translated %s", (mode) => {
  // inc ax; jmp +0x10 -> inc ax; hlt-free loop back
  const jumping = [0x40, 0xeb, 0x0e, ...new Array<number>(14).fill(0x90), 0x40, 0xeb, 0xec];

  test("jumps within the limit of CS, and faults at the jump when the limit has become smaller", () => {
    const made = machine(mode, 0x100, jumping);
    begin(made, 0x100);
    expect(made.engine.run(40)).toBe("budget");
    expect(register(made, RAX)).toBe(20n);
    if (mode === "always") expect(made.engine.counts().translator.regionsMade).toBeGreaterThan(0);

    writeSegment(made.engine, CS, 8, BASE, 0x10f, CODE_16);
    made.engine.updateSegments();
    begin(made, 0x100);
    expect(made.engine.run(40)).toBe("exit");
    expect(made.guest.exceptions.map(({ vector }) => vector)).toEqual([13]);
    expect(made.engine.get64(state.rip)).toBe(0x101n);
    expect(register(made, RAX)).toBe(21n);
  });

  test("wraps where the same code is entered so far down in CS that its jump leads below 0", () => {
    // At 0x100 a jump back by 0x40; the same bytes are then at IP 0x20 of a CS further on
    const made = machine(mode, 0x100, [0x40, 0xeb, 0xbd]);
    made.ram.set([0x40, 0xeb, 0x3d], BASE + 0xc0);
    made.ram.set([0x48, 0xeb, 0xfd], BASE + 0xe0 + 0xffe0);
    begin(made, 0x100);
    expect(made.engine.run(40)).toBe("budget");
    expect(register(made, RAX)).toBe(20n);

    writeSegment(made.engine, CS, 8, BASE + 0xe0, 0xffff, CODE_16);
    made.engine.updateSegments();
    begin(made, 0x20);
    expect(made.engine.run(3)).toBe("budget");
    expect(made.engine.get64(state.rip)).toBe(0xffe1n);
    expect(register(made, RAX)).toBe(20n);
  });

  test("pushes through SP or ESP, as SS says at the time", () => {
    const made = machine(mode, 0x100, [0x50, 0xeb, 0xfd]);
    const { engine } = made;
    begin(made, 0x100);
    engine.setReg(RSP, 0x1_0004n);
    engine.run(4);
    expect(register(made, RSP)).toBe(0x1_0000n);
    engine.run(2);
    expect(register(made, RSP)).toBe(0x1_fffen);

    writeSegment(engine, SS, 16, 0x2_0000, 0x1_ffff, DATA_32);
    engine.updateSegments();
    engine.set64(state.rip, 0x100n);
    engine.setReg(RSP, 0x1_0002n);
    engine.run(4);
    expect(register(made, RSP)).toBe(0xfffen);
  });
});

describe.each([16, 32] as const)("a conditional jump to the next instruction in %i-bit code", (bits) => {
  test("is nothing, where both blocks are in one region", () => {
    const [interpreted, translated] = (["off", "hot"] as const).map((mode) => {
      const made = createFlatMachine(bits, 1 << 20, mode);
      // dec eax; jnz +0; aaa, which uses what it computed on both of its ways; jmp bx
      made.ram.set([0x48, 0x75, 0x00, 0x37, 0xff, 0xe3], 0x1000);
      made.engine.setReg(RBX, 0x1000n);
      made.engine.setReg(RSP, 0x8000n);
      made.engine.set64(state.rip, 0x1000n);
      made.engine.setReg(RAX, 0x1234n);
      for (let slice = 0; slice < 10; slice++) expect(made.engine.run(4001)).toBe("budget");
      return made;
    }) as [FlatMachine, FlatMachine];
    expect(translated.engine.counts().translator.regionsMade).toBeGreaterThan(0);
    expect(register(translated, RAX)).toBe(register(interpreted, RAX));
    expect(translated.engine.readFlags()).toBe(interpreted.engine.readFlags());
  });
});
