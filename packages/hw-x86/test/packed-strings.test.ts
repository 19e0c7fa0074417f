/** PCMPESTRI and its kin with every immediate: what regions compute in place is what the interpreter's helper finds. */
import { expect, test } from "vitest";
import { gprOffset, RAX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";

const CODE = 0x1000;
const ROUNDS = 12;
const OPCODES = [
  ["PCMPESTRM", 0x60],
  ["PCMPESTRI", 0x61],
  ["PCMPISTRM", 0x62],
  ["PCMPISTRI", 0x63],
] as const;

/** Few different bytes, so that elements meet; zeros now and then, so that strings end. */
function fill(random: Random, at: Uint8Array): void {
  const kinds = random.pick([2, 4, 16]);
  for (let i = 0; i < at.length; i++) at[i] = random.oneIn(12) ? 0 : random.below(kinds) * (random.oneIn(9) ? 0x43 : 1) + 1;
}

function run({ engine, guest }: FlatMachine, opcode: number, control: number, seed: number): string {
  const random = seededRandom(seed);
  const vectors = engine.u8.subarray(state.xmm, state.xmm + 48);
  fill(random, vectors);
  for (const register of [RAX, RDX])
    engine.set64(gprOffset(register), random.pick([3n, 8n, 15n, 16n, 200n, ~0n, 0n]) & (2n ** 64n - 1n));
  engine.set64(gprOffset(RCX), ~0n & (2n ** 64n - 1n));
  engine.set64(state.rip, BigInt(CODE));
  engine.setFlags(random.pick([2, 0x8d7]));
  guest.hlt = () => guest.exit();
  engine.run(100);
  const registers = Buffer.from(vectors).toString("hex");
  return `${opcode.toString(16)} ${control}: ${engine.get64(gprOffset(RCX)).toString(16)} ${engine.readFlags().toString(16)} ${registers}`;
}

const seed = chooseSeed();
test.each(OPCODES)(`%s is the same in place and by the helper (seed ${seed})`, (_name, opcode) => {
  const machines = (["off", "always"] as const).map((mode) => createFlatMachine(64, 16 << 20, mode));
  for (let control = 0; control < 256; control++) {
    const at = CODE;
    // xmm1 with xmm2; hlt
    for (const machine of machines) {
      const code = Uint8Array.of(0x66, 0x0f, 0x3a, opcode, 0xca, control, 0xf4);
      machine.ram.set(code, at);
      machine.engine.codeWritten(machine.ram.byteOffset + at, code.length);
    }
    for (let round = 0; round < ROUNDS; round++) {
      const [helper, inPlace] = machines.map((machine) => run(machine, opcode, control, seed + control * ROUNDS + round));
      expect(inPlace, `immediate ${control}, round ${round}`).toBe(helper);
    }
  }
  expect(machines[1]!.engine.counts().translator.regionsMade).toBeGreaterThanOrEqual(256);
});
