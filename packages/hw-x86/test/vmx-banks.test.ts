/** Two guests in two banks take turns on one CPU: registers follow the CPU, translations and time do not mix. */
import { describe, expect, it } from "vitest";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { createMachine } from "../src/machine.ts";
import { ExitReason } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { VmxHarness } from "./vmx-harness.ts";

// add rax, rcx; rol rax, 7; xor [0x300000], rax; jmp back
const MIX = [0x48, 0x01, 0xc8, 0x48, 0xc1, 0xc0, 7, 0x48, 0x31, 0x04, 0x25, 0, 0, 0x30, 0, 0xeb, 0xef];

function mixer(): VmxHarness {
  const h = new VmxHarness({
    mode: "long",
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(MIX);
  h.cpu.setGpr(1, 0x9e37_79b9_7f4a_7c15n);
  return h;
}

/** Runs until `instructions` are retired, with an exit at each of the steps on the way. */
function runTo(h: VmxHarness, instructions: number, step: number): void {
  for (let at = step; ; at += step) {
    h.cpu.setTimerDeadline(20 * Math.min(at, instructions));
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    if (at >= instructions) return;
  }
}

describe("icount", () => {
  it("gives the same state whatever exits there were on the way", () => {
    const states = [10_007, 1000, 37, 1].map((step) => {
      const h = mixer();
      runTo(h, 10_007, step);
      return [
        h.cpu.gpr(0),
        h.read("GUEST_RIP"),
        h.guestU32(0x30_0000),
        h.guestU32(0x30_0004),
        h.cpu.retiredInstructions(),
        h.cpu.rdtsc(),
      ];
    });
    for (const state of states) expect(state).toEqual(states[0]);
    expect(states[0]?.[4]).toBe(10_007);
  });
});

describe("banks", () => {
  it("never has one tag for translations of two of them, since the CPU's cache of second-level walks has all banks'", () => {
    const { cpu, bank } = mixer();
    const other = cpu.memory.createBank(9, 0x200_0000);
    const tags = [bank, other, bank, other].map((each, index) => cpu.turnTo(each).tags.tagFor(1 + (index >> 1), 0));
    expect(new Set(tags).size).toBe(4);
    expect(cpu.turnTo(bank).tags.tagFor(1, 0)).toBe(tags[0]);
  });

  it("carries registers from bank to bank and counts instructions over all", () => {
    const h = mixer();
    runTo(h, 1000, 1000);
    const rax = h.cpu.gpr(0);
    const { cpu } = h;
    const other = cpu.memory.createBank(9, 0x200_0000);
    cpu.turnTo(other);
    expect(cpu.gpr(0)).toBe(rax);
    expect(cpu.retiredInstructions()).toBe(1000);
    cpu.vmx.vmclear(h.vmcs);
    cpu.memory.releaseBank(9);
    expect(cpu.gpr(0)).toBe(rax);
    expect(cpu.retiredInstructions()).toBe(1000);
  });
});

describe("a bank that is left for another CPU", () => {
  const stateOf = (h: VmxHarness) => [h.cpu.gpr(0), h.read("GUEST_RIP"), h.cpu.retiredInstructions(), h.cpu.rdtsc()];

  it("has nothing of this one, which loses nothing when the other one wipes it", () => {
    const [h, like] = [mixer(), mixer()];
    for (const each of [h, like]) runTo(each, 1000, 1000);
    h.cpu.memory.leaveBank(h.bank.id);
    h.cpu.memory.takeOverBank(h.bank.id);
    expect(stateOf(h)).toEqual(stateOf(like));
    h.cpu.vmx.vmclear(h.vmcs);
    h.cpu.memory.releaseBank(h.bank.id);
    expect(h.cpu.gpr(0)).toBe(like.cpu.gpr(0));
    expect(h.cpu.retiredInstructions()).toBe(1000);
  });

  it("is gone on in, when the other one has not touched it, as if it had not been left", () => {
    const [h, like] = [mixer(), mixer()];
    for (const each of [h, like]) {
      for (const at of [1000, 5000, 9000]) {
        each.cpu.setTimerDeadline(20 * at);
        expect(each.run().reason).toBe(ExitReason.externalInterrupt);
        if (each === h) h.cpu.memory.leaveBank(h.bank.id);
      }
    }
    expect(stateOf(h)).toEqual(stateOf(like));
  });
});

describe("a machine", () => {
  it("has 1 to 64 Intel CPUs", () => {
    expect(() => createMachine({ cpus: 0 })).toThrow(RangeError);
    expect(() => createMachine({ cpus: 65 })).toThrow(RangeError);
    expect(() => createMachine({ vendor: "cyrix" as "amd" })).toThrow("cyrix");
    const machine = createMachine({ cpus: 2, clock: "icount" });
    expect(() => createLogicalCpu(machine, 2, () => undefined)).toThrow("no CPU 2");
    const first = createLogicalCpu(machine, 0, () => undefined);
    const second = createLogicalCpu(machine, 1, () => undefined);
    first.sendIpi(1);
    expect([first.interruptPending(), second.interruptPending()]).toEqual([false, true]);
    second.acknowledgeInterrupt();
    expect(second.interruptPending()).toBe(false);
    expect(first.vendor).toBe("intel");
  });
});
