/** The engine around the instructions: exact budgets, precise faults, self-modifying code, shadows, single-stepping. */
import { describe, expect, it } from "vitest";
import { CPU_STATE, CPU_STATE_BYTES, RAX, RBX, RCX, RDI, RSI, state } from "../src/engine/cpu-state.ts";
import { engineMode } from "./engine-mode.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;

function machine(mode: 16 | 32 | 64, code: readonly number[], at = CODE, translate = engineMode()): FlatMachine {
  const made = createFlatMachine(mode, 4 << 20, translate);
  made.ram.set(code, at);
  made.engine.set64(state.rip, BigInt(at));
  made.engine.setReg(4, 0x8000n);
  // Exceptions end the run, so that tests see where they were raised.
  const record = made.guest.exception.bind(made.guest);
  made.guest.exception = (vector, type, errorCode, payload) => {
    record(vector, type, errorCode, payload);
    made.guest.exit();
  };
  return made;
}
const rip = ({ engine }: FlatMachine): number => Number(engine.get64(state.rip));

describe("budget", () => {
  // inc eax; add ebx, eax; dec ecx; jnz back to the start
  const loop = [0xff, 0xc0, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xf8];
  const lengths = [2, 2, 2, 2];

  it("runs exactly as many instructions as asked, wherever that ends in a block", () => {
    for (let instructions = 1; instructions < 40; instructions++) {
      const m = machine(64, loop);
      m.engine.setReg(RCX, 1000n);
      expect(m.engine.run(instructions)).toBe("budget");
      expect(m.engine.retired()).toBe(instructions);
      expect(rip(m)).toBe(CODE + lengths.slice(0, instructions % 4).reduce((sum, length) => sum + length, 0));
      expect(m.engine.reg(RAX)).toBe(BigInt(Math.ceil(instructions / 4)));
    }
  });

  it("gives the same state in one run and in many", () => {
    const whole = machine(64, loop);
    const parts = machine(64, loop);
    for (const m of [whole, parts]) m.engine.setReg(RCX, 100_000n);
    whole.engine.run(10_007);
    for (let left = 10_007, step = 1; left > 0; step = (step * 7) % 31) {
      const slice = Math.min(left, step);
      parts.engine.run(slice);
      left -= slice;
    }
    for (const register of [RAX, RBX, RCX]) expect(parts.engine.reg(register)).toBe(whole.engine.reg(register));
    expect(rip(parts)).toBe(rip(whole));
    expect(parts.engine.readFlags()).toBe(whole.engine.readFlags());
  });

  it("ends between two blocks where it need not be exact, and never without having run", () => {
    const m = machine(64, loop);
    const exact = machine(64, loop);
    for (const { engine } of [m, exact]) engine.setReg(RCX, 100_000n);
    for (const instructions of [10_006, 2, 7, 300]) {
      const before = m.engine.retired();
      expect(m.engine.run(instructions, false)).toBe("budget");
      const retired = m.engine.retired() - before;
      expect(retired).toBeGreaterThan(0);
      expect(retired).toBeLessThanOrEqual(instructions);
      // Too few for a block are run to the instruction
      if (instructions > 4) expect(rip(m) === CODE || instructions - retired === 0).toBe(true);
      exact.engine.run(retired);
      expect(rip(m)).toBe(rip(exact));
      expect(m.engine.reg(RBX)).toBe(exact.engine.reg(RBX));
    }
  });

  it("counts each round of a repeated instruction", () => {
    // rep lodsb; nop; jmp to itself
    const m = machine(64, [0xf3, 0xac, 0x90, 0xeb, 0xfe]);
    m.engine.setReg(RCX, 10n);
    m.engine.setReg(RSI, 0x2000n);
    expect(m.engine.run(4)).toBe("budget");
    expect(rip(m)).toBe(CODE);
    expect(m.engine.reg(RCX)).toBe(6n);
    expect(m.engine.retired()).toBe(4);
    m.engine.run(7);
    expect(m.engine.reg(RCX)).toBe(0n);
    expect(rip(m)).toBe(CODE + 3);
    expect(m.engine.retired()).toBe(11);
  });
});

describe("faults", () => {
  it("leave RIP, registers and the retired count at the instruction", () => {
    // inc eax; inc eax; div of 1 by 0; inc eax
    const m = machine(64, [0xff, 0xc0, 0xff, 0xc0, 0x31, 0xc9, 0x31, 0xd2, 0xf7, 0xf1, 0xff, 0xc0]);
    expect(m.engine.run(100)).toBe("exit");
    expect(m.guest.exceptions.map(({ vector }) => vector)).toEqual([0]);
    expect(rip(m)).toBe(CODE + 8);
    expect(m.engine.retired()).toBe(4);
    expect(m.engine.reg(RAX)).toBe(2n);
  });

  it("of memory name the linear address", () => {
    // inc eax; mov ebx, [0x40000000]
    const m = machine(64, [0xff, 0xc0, 0x8b, 0x1c, 0x25, 0, 0, 0, 0x40]);
    expect(m.engine.run(100)).toBe("exit");
    expect(m.guest.exceptions).toEqual([{ vector: 14, type: 3, errorCode: 0, payload: 0x4000_0000n }]);
    expect(rip(m)).toBe(CODE + 2);
    expect(m.engine.retired()).toBe(1);
  });

  it("of the fetch come when execution gets there, not before", () => {
    const far = machine(64, [0xb8, 0, 0, 0, 0x40, 0xff, 0xe0]);
    expect(far.engine.run(2)).toBe("budget");
    expect(rip(far)).toBe(0x4000_0000);
    expect(far.engine.run(1)).toBe("exit");
    expect(far.engine.retired()).toBe(2);
    expect(far.guest.exceptions).toEqual([{ vector: 14, type: 3, errorCode: 16, payload: 0x4000_0000n }]);
  });

  it("of bytes that are no instruction are #UD, named in the log once", () => {
    const m = machine(64, [0x90, 0x06]);
    expect(m.engine.run(5)).toBe("exit");
    expect(m.guest.exceptions.map(({ vector }) => vector)).toEqual([6]);
    expect(rip(m)).toBe(CODE + 1);
    m.engine.run(5);
    expect(m.log).toHaveLength(1);
    expect(m.log[0]).toContain("06 00");
  });

  it("of instructions longer than 15 bytes are #GP(0)", () => {
    const m = machine(64, [...new Array<number>(15).fill(0x66), 0x90]);
    expect(m.engine.run(5)).toBe("exit");
    expect(m.guest.exceptions).toEqual([{ vector: 13, type: 3, errorCode: 0, payload: 0n }]);
  });
});

describe("self-modifying code", () => {
  it("takes effect for the very next instruction", () => {
    // mov byte [rip+1], 0x05; mov al, 1 (its immediate becomes 5); hlt-free end: jmp self
    const m = machine(64, [0xc6, 0x05, 0x01, 0, 0, 0, 0x05, 0xb0, 0x01, 0xeb, 0xfe]);
    m.engine.run(3);
    expect(m.engine.reg(RAX)).toBe(5n);
    expect(m.engine.retired()).toBe(3);
  });

  it("takes effect in a loop that was already decoded and linked", () => {
    // L: add al, 1; inc byte [rip-7 -> immediate of the add]; dec ecx; jnz L; jmp self
    const m = machine(64, [0x04, 0x01, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xc9, 0x75, 0xf4, 0xeb, 0xfe]);
    m.engine.setReg(RCX, 5n);
    m.engine.run(4 * 5 + 3);
    expect(m.engine.reg(RAX)).toBe(1n + 2n + 3n + 4n + 5n);
    expect(m.engine.reg(RCX)).toBe(0n);
  });

  it("is seen when memory changed past the CPU, after the next flush", () => {
    const m = machine(64, [0xb0, 0x01, 0xeb, 0xfe]);
    m.engine.run(4);
    m.ram[CODE + 1] = 9;
    m.engine.flushTlb(false);
    m.engine.set64(state.rip, BigInt(CODE));
    m.engine.run(4);
    expect(m.engine.reg(RAX)).toBe(9n);
  });

  it("is seen in the second page of an instruction across two", () => {
    // mov eax, imm32 with the immediate in the next page; mov byte [rdi], 7; jmp back
    const at = 0x1ffe;
    const m = machine(64, [0x90, 0xb8, 1, 0, 0, 0, 0xc6, 0x07, 0x07, 0xeb, 0xf5], at);
    m.engine.setReg(RDI, 0x2000n);
    m.engine.run(2);
    expect(m.engine.reg(RAX)).toBe(1n);
    m.engine.run(4);
    expect(m.engine.reg(RAX)).toBe(7n);
    expect(m.engine.retired()).toBe(6);
  });
});

describe("between instructions", () => {
  it("TF traps after each instruction", () => {
    const m = machine(64, [0xff, 0xc0, 0xff, 0xc0]);
    m.engine.setFlags(0x102);
    expect(m.engine.run(10)).toBe("exit");
    expect(m.guest.exceptions).toEqual([{ vector: 1, type: 3, errorCode: undefined, payload: 0x4000n }]);
    expect(rip(m)).toBe(CODE + 2);
    expect(m.engine.retired()).toBe(1);
  });

  it("the shadow of STI lasts one instruction", () => {
    // sti; inc eax; inc eax; jmp self
    const m = machine(64, [0xfb, 0xff, 0xc0, 0xff, 0xc0, 0xeb, 0xfe]);
    m.guest.windowOpened = () => (m.engine.readFlags() & 0x200) !== 0 && (m.engine.get32(state.interruptibility) & 3) === 0;
    expect(m.engine.run(10)).toBe("stop");
    expect(m.engine.reg(RAX)).toBe(1n);
    expect(m.engine.retired()).toBe(2);
    expect(m.engine.get32(state.interruptibility)).toBe(0);
  });

  it("a stop asked for by a helper comes before the next instruction", () => {
    // nop; out 0x10, al; inc eax; jmp self
    const m = machine(64, [0x90, 0xe6, 0x10, 0xff, 0xc0, 0xeb, 0xfe]);
    m.guest.onOut = () => m.engine.requestStop();
    expect(m.engine.run(100)).toBe("stop");
    expect(m.engine.retired()).toBe(2);
    expect(rip(m)).toBe(CODE + 3);
    expect(m.engine.run(1)).toBe("budget");
    expect(m.engine.reg(RAX)).toBe(1n);
    // The block is whole again.
    m.engine.set64(state.rip, BigInt(CODE));
    m.guest.onOut = () => undefined;
    expect(m.engine.run(3)).toBe("budget");
    expect(m.engine.reg(RAX)).toBe(2n);
  });

  it("HLT halts after itself", () => {
    const m = machine(64, [0x90, 0xf4, 0x90]);
    expect(m.engine.run(100)).toBe("halted");
    expect(rip(m)).toBe(CODE + 2);
    expect(m.engine.retired()).toBe(2);
  });
});

describe("segments outside 64-bit mode", () => {
  it("real mode adds 16 times the selector", () => {
    // mov ax, 0x200; mov ds, ax; mov al, [0x10]; jmp self
    const m = machine(16, [0xb8, 0x00, 0x02, 0x8e, 0xd8, 0xa0, 0x10, 0x00, 0xeb, 0xfe]);
    m.ram[0x2010] = 0x5a;
    m.engine.run(3);
    expect(m.engine.reg(RAX)).toBe(0x25an);
  });

  it("an access above the limit faults, and flat blocks are not used for segments that are not flat", () => {
    // mov al, [0x10]; jmp self
    const m = machine(32, [0xa0, 0x10, 0, 0, 0, 0xeb, 0xfe]);
    m.ram[0x10] = 0x77;
    m.engine.run(1);
    expect(m.engine.reg(RAX)).toBe(0x77n);
    m.engine.set32(state.segments + 3 * 64 + 8, 0xf);
    m.engine.updateSegments();
    m.engine.set64(state.rip, BigInt(CODE));
    expect(m.engine.run(1)).toBe("exit");
    expect(m.guest.exceptions).toEqual([{ vector: 13, type: 3, errorCode: 0, payload: 0n }]);
  });
});

// A quarter of a million blocks, each a WebAssembly module of its own where everything is translated
it("survives an arena that fills up", { timeout: 300_000 }, () => {
  // A page of jumps to the next 16-byte slot, rewritten from outside so that blocks are made again and again.
  // To translate every one of them would take minutes and fill nothing more
  const m = machine(64, [], CODE, engineMode() === "always" ? "hot" : engineMode());
  const slots = 4096;
  for (let i = 0; i < slots; i++) m.ram.set([0xff, 0xc0, 0xe9, 9, 0, 0, 0], 0x10_0000 + i * 16);
  m.ram.set([0xeb, 0xfe], 0x10_0000 + slots * 16);
  for (let round = 0; round < 60; round++) {
    m.engine.flushTlb(false);
    for (let page = 0; page < (slots * 16) / 4096; page++) {
      // A byte that is jumped over: covered by decoded granules, so the page is decoded anew.
      m.ram[0x10_0000 + page * 4096 + 10] = round;
    }
    m.engine.set64(state.rip, 0x10_0000n);
    m.engine.setReg(RAX, 0n);
    expect(m.engine.run(slots * 2)).toBe("budget");
    expect(m.engine.reg(RAX)).toBe(BigInt(slots));
  }
});

it("reaches RIP-relative operands at the end of the displacement's range", () => {
  // mov al, [rip+0x7fffffff]: not mapped, so the fault tells the address
  const m = machine(64, [0x90, 0x8a, 0x05, 0xff, 0xff, 0xff, 0x7f]);
  expect(m.engine.run(2)).toBe("exit");
  expect(m.guest.exceptions[0]?.payload).toBe(BigInt(CODE + 7) + 0x7fff_ffffn);
});

it("tells helpers how many instructions retired before them", () => {
  // nop; nop; out 0x10, al; nop; jmp self
  const m = machine(64, [0x90, 0x90, 0xe6, 0x10, 0x90, 0xeb, 0xfe]);
  const seen: number[] = [];
  m.guest.onOut = () => seen.push(m.engine.retired());
  m.engine.run(50);
  expect(seen).toEqual([2]);
  expect(m.engine.retired()).toBe(50);
});

it("goes on with the state of another bank's engine", () => {
  const first = machine(64, [0xb8, 0x2a, 0, 0, 0, 0xeb, 0xfe]);
  const second = machine(64, [0xeb, 0xfe, 0, 0, 0, 0x01, 0xc0, 0xeb, 0xfe]);
  first.engine.run(1);
  second.engine.adoptState(first.engine.u8.slice(CPU_STATE, CPU_STATE + CPU_STATE_BYTES));
  second.engine.run(1);
  expect(second.engine.reg(RAX)).toBe(84n);
});
