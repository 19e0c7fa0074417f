/** What software in root mode is told of VM entries, and what there is before the first one. */
import { describe, expect, it } from "vitest";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { createMachine } from "../src/machine.ts";
import { ExitReason } from "../src/vmx/controls.ts";
import { engineMode } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { VmxHarness } from "./vmx-harness.ts";

const engine = (options: ConstructorParameters<typeof Engine>[0]) => new Engine({ ...options, translate: engineMode() });

describe.each([
  ["VMX", () => new VmxHarness({ mode: "long", engine })],
  ["SVM", () => new SvmHarness({ mode: "long", engine })],
] as const)("atGuestEntry under %s", (_name, create) => {
  it("is called when a guest is entered, before its first instruction, as long as it is set", () => {
    const h = create();
    const NOP = 0x90;
    const cpuid = [0x0f, 0xa2];
    h.load([NOP, ...cpuid]);
    const retired: number[] = [];
    h.cpu.atGuestEntry = () => retired.push(h.cpu.retiredInstructions());
    h.run();
    h.run();
    expect(retired).toEqual([0, 1]);
    h.cpu.atGuestEntry = undefined;
    h.run();
    expect(retired).toHaveLength(2);
  });
});

it("atGuestEntry is not called for an entry that fails", () => {
  let entries = 0;
  const h = new VmxHarness({ mode: "long", engine });
  h.cpu.atGuestEntry = () => entries++;
  h.write("GUEST_RFLAGS", 0n);
  expect(h.run().reason & 0xffff).toBe(ExitReason.entryFailureGuestState);
  expect(entries).toBe(0);
});

const cpu = (machine: ReturnType<typeof createMachine>, id: number) => createLogicalCpu(machine, id, () => undefined);

describe.each(["intel", "amd"] as const)("the engine of a bank (%s)", (vendor) => {
  it("is there as soon as a bank of another CPU's is attached, and of a bank of its own when a guest needs it", () => {
    const machine = createMachine({ vendor, cpus: 2, clock: "icount" });
    const [first, second] = [cpu(machine, 0), cpu(machine, 1)];
    const bank = first.memory.createBank(70, 32 << 20);
    expect(first.engineStatistics(70)).toBeUndefined();
    second.memory.attachBank(70, bank.memory);
    expect(second.engineStatistics(70)).toMatchObject({ exits: [] });
    second.memory.releaseBank(70);
    expect(second.engineStatistics(70)).toBeUndefined();
  });

  it("leaves a bank alone in which another CPU's guest is", () => {
    const machine = createMachine({ vendor, cpus: 2, clock: "icount" });
    const bank = cpu(machine, 0).memory.createBank(70, 32 << 20);
    const other = cpu(machine, 1);
    other.memory.attachBank(70, bank.memory);
    other.memory.releaseBank(70);
    const before = bank.u8.slice();
    other.memory.attachBank(70, bank.memory);
    expect(Buffer.compare(bank.u8.slice(), before)).toBe(0);
  });
});
