/** Processor event-based sampling: what is recorded, where, and when software is told. */
import { describe, expect, it } from "vitest";
import { LocalApicRegister } from "../src/local-apic.ts";
import { ExitReason } from "../src/vmx/controls.ts";
import { DATA, guest, HLT, NOP, TICKS } from "./halting-guest.ts";
import { CODE, type VmxHarness } from "./vmx-harness.ts";

const Msr = {
  PERFEVTSEL0: 0x186,
  PERF_GLOBAL_STATUS: 0x38e,
  PERF_GLOBAL_OVF_CTRL: 0x390,
  PEBS_ENABLE: 0x3f1,
  A_PMC0: 0x4c1,
  DS_AREA: 0x600,
} as const;
const INSTRUCTIONS = 0xc0n | (3n << 16n) | (1n << 22n);
const MODULUS = 1n << 48n;
const VECTOR = 0x40;
const BUFFER = DATA + 0x1000;
const RECORD = 0xc8;
/** mov ecx, 3000; inc rax; dec ecx; jnz */
const LOOP = [0xb9, 0xb8, 0x0b, 0, 0, 0x48, 0xff, 0xc0, 0xff, 0xc9, 0x75, 0xf9];
const HEAD = CODE + 5;

interface Sampling {
  period: number;
  records?: number;
  threshold?: number;
  buffer?: number;
}

function sampled(
  code: readonly number[],
  { period, records = 8, threshold = records + 1, buffer = BUFFER }: Sampling,
): VmxHarness {
  const h = guest(code);
  const area = (offset: number, value: bigint) => h.bank.view.setBigUint64(h.guestMemory + DATA + offset, value, true);
  area(0x20, BigInt(buffer));
  area(0x28, BigInt(buffer));
  area(0x30, BigInt(buffer + records * RECORD));
  area(0x38, BigInt(buffer + threshold * RECORD));
  area(0x40, MODULUS - BigInt(period));
  for (const [index, value] of [
    [Msr.DS_AREA, BigInt(DATA)],
    [Msr.A_PMC0, MODULUS - BigInt(period)],
    [Msr.PEBS_ENABLE, 1n],
    [Msr.PERFEVTSEL0, INSTRUCTIONS],
  ] as const)
    expect(h.cpu.wrmsr(index, value)).toBe(true);
  h.cpu.writeApic(LocalApicRegister.lvtPerformance, VECTOR);
  return h;
}
const word = (h: VmxHarness, at: number): bigint => h.bank.view.getBigUint64(h.guestMemory + at, true);
const index = (h: VmxHarness): number => Number(word(h, DATA + 0x28));

describe("PEBS", () => {
  it("records registers, both instruction pointers and the time at each overflow, and reloads the counter", () => {
    const h = sampled([...LOOP, HLT], { period: 100 });
    for (let i = 0; i < 16; i++) if (i !== 4) h.cpu.setGpr(i, BigInt(0x1000 + i));
    h.cpu.setGpr(0, 0n);
    expect(h.run().reason).toBe(ExitReason.hlt);
    // 9001 instructions: 90 records, of which there is room for 8
    expect(index(h)).toBe(BUFFER + 8 * RECORD);
    for (let record = 0; record < 8; record++) {
      const at = BUFFER + record * RECORD;
      const retired = 100 * (record + 1);
      const inLoop = retired - 1;
      const rounds = Math.floor(inLoop / 3);
      const where = [HEAD, HEAD + 3, HEAD + 5][inLoop % 3];
      const before = [HEAD, HEAD + 3, HEAD + 5][(inLoop - 1) % 3];
      expect(Number(word(h, at + 8))).toBe(where);
      expect(Number(word(h, at + 0x10))).toBe(rounds + (inLoop % 3 > 0 ? 1 : 0));
      expect(Number(word(h, at + 0x20))).toBe(3000 - rounds - (inLoop % 3 > 1 ? 1 : 0));
      expect([0x18, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x88].map((offset) => Number(word(h, at + offset)))).toEqual([
        0x1003, 0x1002, 0x1006, 0x1007, 0x1005, 0x7000, 0x1008, 0x100f,
      ]);
      expect(word(h, at) & 2n).toBe(2n);
      expect(word(h, at + 0x90) & 1n).toBe(1n);
      expect(Number(word(h, at + 0xb0))).toBe(before);
      expect(Number(word(h, at + 0xc0))).toBe(retired * TICKS);
      for (const offset of [0x98, 0xa0, 0xa8, 0xb8]) expect(word(h, at + offset)).toBe(0n);
    }
    expect(word(h, BUFFER + 8 * RECORD)).toBe(0n);
  });

  it("interrupts at the threshold, and not again before its status is cleared", () => {
    const h = sampled([...LOOP, HLT], { period: 100, threshold: 3 });
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect([h.cpu.retiredInstructions(), index(h)]).toEqual([300, BUFFER + 3 * RECORD]);
    expect(h.cpu.rdmsr(Msr.PERF_GLOBAL_STATUS)).toBe(1n << 62n);
    expect(h.cpu.takeInterrupt()).toBe(VECTOR);
    h.cpu.writeApic(LocalApicRegister.lvtPerformance, VECTOR);
    h.bank.view.setBigUint64(h.guestMemory + DATA + 0x28, BigInt(BUFFER), true);
    h.cpu.wrmsr(Msr.PERF_GLOBAL_OVF_CTRL, 1n << 62n);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect([h.cpu.retiredInstructions(), index(h)]).toEqual([600, BUFFER + 3 * RECORD]);
    h.cpu.takeInterrupt();
    h.cpu.writeApic(LocalApicRegister.lvtPerformance, VECTOR);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });

  it("leaves out what the guest does not map, and says so", () => {
    const h = sampled([...LOOP, HLT], { period: 5000, buffer: 0x7fff_0000 });
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.log.join("\n")).toContain("PEBS: no record, since the guest does not map the DS area at 300000 or its buffer");
    expect(index(h)).toBe(0x7fff_0000);
  });

  it("leaves the exit alone that comes with the instruction, where its memory is not there", () => {
    // A single step that exits, at the instruction whose record the second-level tables have no page for
    const h = sampled([NOP, NOP, HLT], { period: 1 });
    h.setEntry(h.eptEntry(BUFFER), 0);
    h.write("GUEST_RFLAGS", 0x102);
    h.write("EXCEPTION_BITMAP", 1 << 1);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 0x4000, rip: CODE + 1 });
    expect(h.log.join("\n")).toContain("PEBS: no record");
  });

  it("records nothing for events that are not precise", () => {
    const h = sampled([NOP, NOP, NOP, HLT], { period: 2 * TICKS });
    h.cpu.wrmsr(Msr.PERFEVTSEL0, 0x3cn | (3n << 16n) | (1n << 22n));
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([index(h), h.cpu.rdmsr(Msr.PERF_GLOBAL_STATUS)]).toEqual([BUFFER, 1n]);
  });
});
