/** The core performance counters of AMD's processors. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { LocalApicRegister } from "../src/local-apic.ts";
import { Control, ExitCode, Intercept3 } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { TICKS } from "./halting-guest.ts";
import { CODE, SvmHarness } from "./svm-harness.ts";

const CTL = 0xc001_0200;
const CTR = 0xc001_0201;
const LEGACY_CTL = 0xc001_0000;
const LEGACY_CTR = 0xc001_0004;
const ENABLE = (3n << 16n) | (1n << 22n);
const INSTRUCTIONS = 0xc0n | ENABLE;
const CYCLES = 0x76n | ENABLE;
const INTERRUPT = 1n << 20n;
const GUEST_ONLY = 1n << 40n;
const HOST_ONLY = 1n << 41n;
const MODULUS = 1n << 48n;
const VECTOR = 0x40;
const ROUNDS = 3000;
const LOOP = [0xb9, ROUNDS & 0xff, ROUNDS >>> 8, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4];
const LOOP_INSTRUCTIONS = 1 + 2 * ROUNDS;

function guest(code: readonly number[]): SvmHarness {
  const h = new SvmHarness({
    mode: "long",
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  return h;
}

describe("core performance counters", () => {
  it("are six, of which four are at the old addresses as well", () => {
    const h = guest(LOOP);
    expect((h.cpu.cpuid(0x8000_0001, 0).ecx >>> 23) & 1).toBe(1);
    for (let i = 0; i < 6; i++) expect(h.cpu.wrmsr(CTR + 2 * i, BigInt(i + 1))).toBe(true);
    expect([0, 1, 2, 3, 4, 5].map((i) => h.cpu.rdpmc(i))).toEqual([1n, 2n, 3n, 4n, 5n, 6n]);
    expect([0, 1, 2, 3].map((i) => h.cpu.rdmsr(LEGACY_CTR + i))).toEqual([1n, 2n, 3n, 4n]);
    expect(h.cpu.wrmsr(LEGACY_CTL + 2, INSTRUCTIONS)).toBe(true);
    expect(h.cpu.rdmsr(CTL + 4)).toBe(INSTRUCTIONS);
    expect([h.cpu.rdpmc(6), h.cpu.rdmsr(CTL + 12), h.cpu.rdmsr(0xc001_0008)]).toEqual([undefined, undefined, undefined]);
    for (const reserved of [1n << 19n, 1n << 21n, 1n << 36n, 1n << 42n]) expect(h.cpu.wrmsr(CTL, reserved)).toBe(false);
  });

  it("count instructions and cycles of guest mode, root mode or both", () => {
    const h = guest(LOOP);
    const events = [
      INSTRUCTIONS,
      CYCLES,
      INSTRUCTIONS | GUEST_ONLY,
      INSTRUCTIONS | HOST_ONLY,
      0xc2n | ENABLE,
      CYCLES | GUEST_ONLY | HOST_ONLY,
    ];
    for (const [i, event] of events.entries()) expect(h.cpu.wrmsr(CTL + 2 * i, event)).toBe(true);
    expect(h.run().code).toBe(ExitCode.hlt);
    const ticks = LOOP_INSTRUCTIONS * TICKS;
    expect(events.map((_event, i) => Number(h.cpu.rdpmc(i)))).toEqual([
      LOOP_INSTRUCTIONS,
      ticks,
      LOOP_INSTRUCTIONS,
      0,
      0,
      ticks,
    ]);
  });

  it("tell guest mode from root mode with SVM on only", () => {
    const h = guest(LOOP);
    const efer = h.cpu.rdmsr(0xc000_0080) ?? 0n;
    h.cpu.wrmsr(CTL, CYCLES | GUEST_ONLY);
    h.cpu.wrmsr(0xc000_0080, efer & ~0x1000n);
    // No time passes in root mode under icount but by halting, which is not counted: what is seen is that the counter is on
    expect(h.cpu.counters.isCounting).toBe(true);
    h.cpu.wrmsr(0xc000_0080, efer);
    expect(h.cpu.counters.isCounting).toBe(false);
  });

  it("interrupt at the instruction that makes them overflow", () => {
    const h = guest(LOOP);
    h.cpu.writeApic(LocalApicRegister.lvtPerformance, VECTOR);
    h.cpu.wrmsr(CTR, MODULUS - 1000n);
    h.cpu.wrmsr(CTL, INSTRUCTIONS | INTERRUPT | GUEST_ONLY);
    expect(h.run()).toMatchObject({ code: ExitCode.intr, rip: CODE + 7 });
    expect([h.cpu.retiredInstructions(), h.cpu.rdpmc(0), h.cpu.readApic(LocalApicRegister.lvtPerformance)]).toEqual([
      1000,
      0n,
      VECTOR,
    ]);
    expect(h.cpu.takeInterrupt()).toBe(VECTOR);
    expect(h.run().code).toBe(ExitCode.hlt);
    expect(h.cpu.rdpmc(0)).toBe(BigInt(LOOP_INSTRUCTIONS - 1000));
  });

  it("are the guest's own where nothing is intercepted", () => {
    // xor ecx, ecx; rdpmc; hlt
    const h = guest([0x31, 0xc9, 0x0f, 0x33, 0xf4]);
    h.clearBits(Control.INTERCEPT_3, Intercept3.msr);
    h.cpu.wrmsr(CTL, INSTRUCTIONS);
    h.run();
    expect([h.get64(0x5f8), h.cpu.rdpmc(0)]).toEqual([1n, 2n]);
  });
});
