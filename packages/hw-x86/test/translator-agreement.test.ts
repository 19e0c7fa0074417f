/** Random loops, translated at first sight, when hot, and not at all: after any number of instructions the state is the same. */
import { describe, expect, test } from "vitest";
import { gprOffset, RDI, RSI, RSP, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine, FLAT_MODEL, type FlatMachine } from "./flat-machine.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";
import { DATA_END, DATA_START, randomLoops } from "./random-loops.ts";

const PROGRAMS = Number(process.env.MKVM_LOOP_PROGRAMS ?? 12);
const SLICES = 30;
const CODE = 0x1000;
const RAM = 4 << 20;

function machine(
  bits: 32 | 64,
  translate: TranslateMode,
  code: Uint8Array,
  entry: number,
  random: Random,
  sweepBytes?: number,
): FlatMachine {
  const made = createFlatMachine(bits, RAM, translate, FLAT_MODEL, sweepBytes);
  const record = made.guest.exception.bind(made.guest);
  made.guest.exception = (vector, type, errorCode, payload) => {
    record(vector, type, errorCode, payload);
    made.guest.exit();
  };
  made.ram.set(code, CODE);
  for (let at = DATA_START; at < DATA_END; at++) made.ram[at] = random.below(256);
  for (let register = 0; register < 4; register++) made.engine.setReg(register, BigInt(random.next()));
  made.engine.setReg(RSI, BigInt(DATA_START));
  made.engine.setReg(RDI, BigInt(DATA_START + 0x3000));
  made.engine.setReg(RSP, 0x3ff0n);
  made.engine.set64(state.rip, BigInt(CODE + entry));
  return made;
}

function describeState({ engine, ram, guest }: FlatMachine): string {
  const registers = Array.from({ length: 16 }, (_, i) => engine.u64[gprOffset(i) >>> 3].toString(16));
  let hash = 0;
  const words = new Uint32Array(ram.buffer, ram.byteOffset + 0x3000, (DATA_END - 0x3000) >>> 2);
  for (const word of words) hash = (Math.imul(hash, 31) + word) | 0;
  const faults = guest.exceptions.map(({ vector }) => vector).join();
  return `rip ${engine.get64(state.rip).toString(16)} flags ${engine.readFlags().toString(16)} retired ${engine.retired()} faults ${faults} memory ${hash} registers ${registers.join(" ")}`;
}

describe.each([64, 32] as const)("random loops in %i-bit mode", (bits) => {
  const seed = chooseSeed();
  test.each([
    ["always", "translated at first sight", undefined],
    ["hot", "translated when hot", undefined],
    ["hot", "with room for hardly any decoded code", 256],
  ] as const)(`run %s, %s, as they are interpreted (seed ${seed})`, (mode, _how, sweepBytes) => {
    let cold = 0;
    for (let program = 0; program < PROGRAMS; program++) {
      const random = seededRandom(seed + program);
      const { code, entry } = randomLoops(random, bits);
      const data = random.next();
      const reference = machine(bits, "off", code, entry, seededRandom(data));
      const translated = machine(bits, mode, code, entry, seededRandom(data), sweepBytes);
      for (let slice = 0; slice < SLICES; slice++) {
        const instructions = random.oneIn(3) ? 1 + random.below(20) : random.below(mode === "hot" ? 20_000 : 2000);
        const reasons = [reference, translated].map(({ engine }) => engine.run(instructions));
        expect(reasons[1]).toBe(reasons[0]);
        const where = `program ${program} of seed ${seed}, slice ${slice}: ${Buffer.from(code).toString("hex")}, entry ${entry}`;
        expect(describeState(translated), where).toBe(describeState(reference));
        if (reasons[0] !== "budget") break;
      }
      cold += translated.engine.counts().blocks.cold;
    }
    expect(cold > 0).toBe(sweepBytes !== undefined);
  });
});
