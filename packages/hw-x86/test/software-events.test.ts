/** Under icount an instruction's event takes its time once, also where its delivery exits first and the event is injected then. */
import { describe, expect, it } from "vitest";
import { Engine, type EngineOptions } from "../src/engine/engine.ts";
import { Control, ExitCode, Save } from "../src/svm/vmcb.ts";
import { ExitReason } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { GDT, GDT_LIMIT, HANDLER, IDT, IDT_LIMIT, writeGate } from "./guest-gates.ts";
import { CODE, SvmHarness } from "./svm-harness.ts";
import { VmxHarness } from "./vmx-harness.ts";

const HLT = [0xf4];
const engine = (options: EngineOptions) =>
  new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS });

interface Guest {
  readonly harness: VmxHarness | SvmHarness;
  /** Entry of the hypervisor's tables for the page of the IDT. */
  readonly entry: number;
  /** Runs to the next exit: what kind it is. */
  run(): number;
  readonly faults: number;
  readonly halts: number;
  /** What the exit says was being delivered is to be injected. */
  injectAgain(): void;
  injectInterrupt(vector: number): void;
}

function intel(): Guest {
  const h = new VmxHarness({ mode: "long", engine });
  h.write("GUEST_IDTR_BASE", IDT);
  h.write("GUEST_IDTR_LIMIT", IDT_LIMIT);
  h.write("GUEST_GDTR_BASE", GDT);
  h.write("GUEST_GDTR_LIMIT", GDT_LIMIT);
  h.write("GUEST_RFLAGS", 0x202);
  return {
    harness: h,
    entry: h.eptEntry(IDT),
    run: () => h.run().reason,
    faults: ExitReason.eptViolation,
    halts: ExitReason.hlt,
    injectAgain() {
      h.write("ENTRY_INTERRUPTION_INFO", h.read("VECTORING_INFO"));
      h.write("ENTRY_INSTRUCTION_LENGTH", h.read("EXIT_INSTRUCTION_LENGTH"));
    },
    injectInterrupt: (vector) => h.write("ENTRY_INTERRUPTION_INFO", (0x8000_0000 | vector) >>> 0),
  };
}

function amd(): Guest {
  const h = new SvmHarness({ mode: "long", engine });
  h.setSegment(Save.IDTR, 0, 0, IDT_LIMIT, IDT);
  h.setSegment(Save.GDTR, 0, 0, GDT_LIMIT, GDT);
  h.set64(Save.RFLAGS, 0x202);
  return {
    harness: h,
    entry: h.nptEntry(IDT),
    run: () => h.run().code,
    faults: ExitCode.nestedPageFault,
    halts: ExitCode.hlt,
    injectAgain() {
      const event = h.get32(Control.EXIT_INTERRUPT_INFO);
      h.set32(Control.EVENT_INJECTION, event);
      // An exception returns to where RIP says, a software interrupt to NRIP
      if (((event >>> 8) & 7) === 3) h.set64(Save.RIP, CODE + 1);
      else h.set64(Control.NEXT_RIP, CODE + 2);
    },
    injectInterrupt: (vector) => h.set32(Control.EVENT_INJECTION, 0x8000_0000 | vector),
  };
}

function load({ harness }: Guest, vector: number, code: readonly number[]): void {
  harness.load(code);
  harness.load(HLT, HANDLER);
  writeGate(harness, vector, HANDLER);
}
const time = ({ harness: { cpu } }: Guest): number[] => [cpu.retiredInstructions(), cpu.rdtsc()];
const returnsTo = ({ harness: { bank, guestMemory } }: Guest): number => bank.u32[(guestMemory + 0x7000 - 40) >>> 2];

describe.each([
  ["VMX", intel],
  ["SVM", amd],
] as const)("under %s", (_, make) => {
  it.each([
    ["INT3", 3, [0xcc]],
    ["INT n", 0x40, [0xcd, 0x40]],
  ] as const)("%s takes as long whether its delivery exits on the way or not", (_, vector, code) => {
    const [straight, injected] = [make(), make()];
    for (const guest of [straight, injected]) load(guest, vector, code);
    const { bank } = injected.harness;
    const mapped = bank.u32[injected.entry >>> 2];
    injected.harness.setEntry(injected.entry, 0);
    expect(injected.run()).toBe(injected.faults);
    expect(injected.harness.cpu.retiredInstructions()).toBe(0);
    injected.harness.setEntry(injected.entry, mapped);
    injected.injectAgain();
    for (const guest of [straight, injected]) expect(guest.run()).toBe(guest.halts);
    expect(returnsTo(injected)).toBe(CODE + code.length);
    expect(time(injected)).toEqual(time(straight));
    expect(straight.harness.cpu.retiredInstructions()).toBe(1);
  });

  it("an injected interrupt takes no time", () => {
    const guest = make();
    load(guest, 0x40, HLT);
    guest.injectInterrupt(0x40);
    expect(guest.run()).toBe(guest.halts);
    expect(returnsTo(guest)).toBe(CODE);
    expect(guest.harness.cpu.retiredInstructions()).toBe(0);
  });
});
