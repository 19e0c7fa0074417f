/** Software in root mode changes guest code between two VM entries, as debuggers and hypercall patching do: the guest runs what is there. */
import { describe, expect, it } from "vitest";
import { RAX, RCX } from "../src/engine/cpu-state.ts";
import { Engine } from "../src/engine/engine.ts";
import { Save } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { CODE, VmxHarness } from "./vmx-harness.ts";

const INC_RAX = [0x48, 0xff, 0xc0];
const DEC_RAX = [0x48, 0xff, 0xc8];
const HLT = [0xf4];
/** dec rcx; jnz to the start of what is before it. */
const loop = (before: readonly number[]): number[] => [0x48, 0xff, 0xc9, 0x75, 0x100 - before.length - 5];
const ROUNDS = 20_000n;

interface Guest {
  load(code: readonly number[], gpa?: number): void;
  /** From `rip` to the next exit; RAX then. */
  run(rip: number): bigint;
  rcx: bigint;
}

const options = {
  mode: "long",
  engine: (given: ConstructorParameters<typeof Engine>[0]) =>
    new Engine({ ...given, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
} as const;

function vmx(): Guest {
  const h = new VmxHarness(options);
  return {
    load: (code, gpa) => h.load(code, gpa),
    run(rip) {
      h.write("GUEST_RIP", rip);
      h.run();
      return h.cpu.gpr(RAX);
    },
    set rcx(value: bigint) {
      h.cpu.setGpr(RCX, value);
    },
  };
}
function svm(): Guest {
  const h = new SvmHarness(options);
  return {
    load: (code, gpa) => h.load(code, gpa),
    run(rip) {
      h.set64(Save.RIP, rip);
      h.run();
      return h.get64(Save.RAX);
    },
    set rcx(value: bigint) {
      h.cpu.setGpr(RCX, value);
    },
  };
}

describe.each([
  ["VMX", vmx],
  ["SVM", svm],
] as const)("%s", (_name, create) => {
  it("runs what was stored where it enters", () => {
    const guest = create();
    guest.load([...INC_RAX, ...HLT]);
    for (let round = 0; round < 3; round++) expect(guest.run(CODE)).toBe(BigInt(round + 1));
    guest.load(DEC_RAX);
    expect(guest.run(CODE)).toBe(2n);
    guest.load(INC_RAX);
    expect(guest.run(CODE)).toBe(3n);
  });

  it("runs what was stored further on in the block that it enters", () => {
    const guest = create();
    guest.load([...INC_RAX, ...INC_RAX, ...INC_RAX, ...HLT]);
    expect(guest.run(CODE)).toBe(3n);
    guest.load(DEC_RAX, CODE + 6);
    expect(guest.run(CODE)).toBe(4n);
  });

  it("runs what was stored into a block that comes later", () => {
    const guest = create();
    // jmp over a HLT
    guest.load([0xeb, 1, ...HLT, ...INC_RAX, ...HLT]);
    expect(guest.run(CODE)).toBe(1n);
    guest.load(DEC_RAX, CODE + 3);
    expect(guest.run(CODE)).toBe(0n);
  });

  it("runs what was stored into another page", () => {
    const guest = create();
    // jmp to the next page
    guest.load([0xe9, 0xfb, 0x0f, 0, 0]);
    guest.load([...INC_RAX, ...HLT], CODE + 0x1000);
    expect(guest.run(CODE)).toBe(1n);
    guest.load(DEC_RAX, CODE + 0x1000);
    expect(guest.run(CODE)).toBe(0n);
  });

  it("runs what was stored into a loop that was translated", () => {
    const guest = create();
    guest.load([...INC_RAX, ...loop(INC_RAX), ...HLT]);
    guest.rcx = ROUNDS;
    expect(guest.run(CODE)).toBe(ROUNDS);
    guest.load(DEC_RAX);
    guest.rcx = ROUNDS;
    expect(guest.run(CODE)).toBe(0n);
  });
});
