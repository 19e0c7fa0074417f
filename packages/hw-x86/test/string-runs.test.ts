/** REP MOVS and REP STOS beside their definition, element by element. */
import { describe, expect, it } from "vitest";
import { RAX, RCX, RDI, RSI, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine } from "./flat-machine.ts";
import { chooseSeed, seededRandom } from "./random.ts";

const SEED = chooseSeed();
const CODE = 0x10_0000;
const DATA = 0x20_0000;
const WINDOW = 0x6000;
const CASES = 400;
const DF = 0x400;

const FORMS = [
  { name: "MOVSB", code: [0xf3, 0xa4], bytes: 1, moves: true },
  { name: "MOVSW", code: [0x66, 0xf3, 0xa5], bytes: 2, moves: true },
  { name: "MOVSD", code: [0xf3, 0xa5], bytes: 4, moves: true },
  { name: "MOVSQ", code: [0xf3, 0x48, 0xa5], bytes: 8, moves: true },
  { name: "STOSB", code: [0xf3, 0xaa], bytes: 1, moves: false },
  { name: "STOSW", code: [0x66, 0xf3, 0xab], bytes: 2, moves: false },
  { name: "STOSD", code: [0xf3, 0xab], bytes: 4, moves: false },
  { name: "STOSQ", code: [0xf3, 0x48, 0xab], bytes: 8, moves: false },
];

describe.each<TranslateMode>(["off", "always"])("repeated strings, engine %s", (mode) => {
  it.each(FORMS)(`REP $name (seed ${SEED})`, ({ code, bytes, moves }) => {
    const random = seededRandom(SEED);
    const below = (limit: number): number => random.below(limit);
    const m = createFlatMachine(64, 16 << 20, mode);
    m.ram.set([...code, 0xf4], CODE);
    for (let round = 0; round < CASES; round++) {
      const memory = Uint8Array.from({ length: WINDOW }, () => random.next());
      const isDown = below(8) === 0;
      // Near each other and near page ends more often than chance would have it
      const from = 0x2000 + (below(2) === 0 ? below(0x2000) : 0xfe0 + below(64));
      const to = below(2) === 0 ? from - 20 + below(40) : 0x2000 + below(0x2000);
      const count = below(3) === 0 ? below(600) : below(24);
      const repeated = BigInt(random.next() & 0xff) * 0x0101_0101_0101_0101n;
      const value = [0n, repeated][below(4)] ?? BigInt(below(2 ** 31)) * 0x1_2345_6789n;
      m.ram.set(memory, DATA);
      const step = isDown ? -bytes : bytes;
      for (let i = 0; i < count; i++) {
        for (let byte = 0; byte < bytes; byte++) {
          if (!moves) memory[to + i * step + byte] = Number((value >> BigInt(8 * byte)) & 255n);
        }
        if (moves) memory.set(memory.slice(from + i * step, from + i * step + bytes), to + i * step);
      }
      const { engine } = m;
      engine.set64(state.rip, BigInt(CODE));
      engine.set32(state.activity, 0);
      engine.setFlags(isDown ? DF | 2 : 2);
      engine.setReg(RSI, BigInt(DATA + from));
      engine.setReg(RDI, BigInt(DATA + to));
      engine.setReg(RCX, BigInt(count));
      engine.setReg(RAX, BigInt.asUintN(64, value));
      expect(engine.run(10_000)).toBe("halted");
      const wrong = memory.findIndex((byte, at) => byte !== m.ram[DATA + at]);
      expect(wrong, `first wrong byte of a run ${JSON.stringify({ from, to, count, isDown })}`).toBe(-1);
      expect(engine.reg(RDI)).toBe(BigInt(DATA + to + count * step));
      expect(engine.reg(RSI)).toBe(BigInt(DATA + from + (moves ? count * step : 0)));
      expect(engine.reg(RCX)).toBe(0n);
    }
  });

  it("counts and points with all 64 bits", () => {
    const m = createFlatMachine(64, 16 << 20, mode);
    const { engine } = m;
    m.ram.set([0xf3, 0xa4, 0xf4], CODE);
    // Linear 3 to 5 GiB are RAM, again and again, and so is the first GiB
    const directory = 16 * 2 ** 20 - 2 * 4096;
    const view = new DataView(m.ram.buffer, m.ram.byteOffset);
    for (const gib of [3, 4]) view.setBigUint64(directory + 8 * gib, BigInt(directory + 4096 + 7), true);
    for (let i = 0; i < 512; i++) view.setBigUint64(directory + 4096 + 8 * i, BigInt((i % 8) * 0x20_0000 + 0x87), true);
    engine.flushTlb(true);
    const end = 2n ** 32n;
    engine.set64(state.rip, BigInt(CODE));
    engine.setReg(RSI, end - 0x1000n);
    engine.setReg(RDI, end + BigInt(DATA) - 0x800n);
    engine.setReg(RCX, end + 0x800n);
    expect(engine.run(1)).toBe("budget");
    // Up to the end of the destination's page
    expect([RSI, RDI, RCX].map((register) => engine.reg(register))).toEqual([end - 0x800n, end + BigInt(DATA), end]);
    expect(engine.run(1)).toBe("budget");
    // And of the source's, by which the pointer passes 4 GiB and the count falls below
    expect([RSI, RDI, RCX].map((register) => engine.reg(register))).toEqual([end, end + BigInt(DATA) + 0x800n, end - 0x800n]);
  });

  it("counts what remains of a page as one instruction, and stops between pages", () => {
    const m = createFlatMachine(64, 16 << 20, mode);
    m.ram.set([0xf3, 0xaa, 0xf4], CODE);
    const start = (at: number, count: number): void => {
      m.engine.set64(state.rip, BigInt(CODE));
      m.engine.set32(state.activity, 0);
      m.engine.setReg(RDI, BigInt(DATA + at));
      m.engine.setReg(RCX, BigInt(count));
    };
    for (const at of [0, 0xf00]) {
      start(at, 0x100);
      const before = m.engine.retired();
      expect(m.engine.run(100)).toBe("halted");
      expect(m.engine.retired() - before).toBe(2);
    }
    start(0xf00, 0x200);
    expect(m.engine.run(1)).toBe("budget");
    expect([m.engine.reg(RDI), m.engine.reg(RCX), m.engine.get64(state.rip)]).toEqual([
      BigInt(DATA + 0x1000),
      0x100n,
      BigInt(CODE),
    ]);
  });
});
