/** Virtual-8086 mode by IOPL, with CR4.VME, and CR4.PVI (Intel SDM Vol. 3B, 8086 Emulation). */
import { describe, expect, it } from "vitest";
import { SEG_LIMIT, segmentOffset, state, TR } from "../src/engine/cpu-state.ts";
import { CODE, createSystemMachine, DATA, KERNEL_STACK, type SystemMachine, TSS, USER_STACK } from "./system-machine.ts";

const IF = 0x200;
const TF = 0x100;
const IOPL_3 = 0x3000;
const VM = 0x2_0000;
const VIF = 0x8_0000;
const VIP = 0x10_0000;
const VME = 1n;
const PVI = 2n;
const GP = 13;
const PUSHF = 0x9c;
const POPF = 0x9d;
const CLI = 0xfa;
const STI = 0xfb;
const IRET = 0xcf;
const HLT = 0xf4;
const OPERAND_32 = 0x66;
const INT_21 = [0xcd, 0x21];
/** Where the 8086 program's own handler is. */
const HANDLER_IP = 0x10;
const SP = 0x100;
/** The task's I/O map, with the redirection map in front of it. */
const IO_MAP = 0x88;
const STACK_WORDS = (USER_STACK + SP) >>> 1;

interface Setup {
  flags?: number;
  cr4?: bigint;
  /** Words on the program's stack. */
  stack?: number[];
  /** INT 21h goes to the monitor. */
  toMonitor?: boolean;
}

/** Before an IRETD into virtual-8086 mode, where the code runs; HLT ends it with #GP as any privileged instruction does. */
function prepare(setup: Setup, ...code: number[]): SystemMachine {
  const m = createSystemMachine(32);
  m.engine.set64(state.cr4, setup.cr4 ?? 0n);
  m.memory.setUint16(TSS + 102, IO_MAP, true);
  m.ram.fill(0, TSS + IO_MAP - 32, TSS + IO_MAP);
  if (setup.toMonitor) m.ram[TSS + IO_MAP - 32 + (0x21 >> 3)] = 1 << (0x21 & 7);
  m.engine.set64(segmentOffset(TR) + SEG_LIMIT, BigInt(IO_MAP + 0x2000));
  m.memory.setUint16(0x21 * 4, HANDLER_IP, true);
  m.memory.setUint16(0x21 * 4 + 2, DATA >>> 4, true);
  m.gate(0x21, 14, 3);
  m.ram[DATA + HANDLER_IP] = HLT;
  m.code(...code, HLT);
  m.ram[DATA] = IRET;
  const frame = [0, CODE >>> 4, VM | (setup.flags ?? 0) | 2, SP, USER_STACK >>> 4, 1, 2, 3, 4];
  frame.forEach((word, index) => {
    m.memory.setUint32(KERNEL_STACK - 0x40 + index * 4, word, true);
  });
  (setup.stack ?? []).forEach((word, index) => {
    m.memory.setUint16(USER_STACK + SP + index * 2, word, true);
  });
  m.engine.setReg(4, BigInt(KERNEL_STACK - 0x40));
  m.engine.set64(state.rip, BigInt(DATA));
  return m;
}
function run(setup: Setup, ...code: number[]): { m: SystemMachine; vector: number } {
  const m = prepare(setup, ...code);
  return { m, vector: m.runToHandler() };
}
/** In virtual-8086 mode an event is injected, as by VM entry, behind an instruction of two bytes. */
function inject(
  setup: Setup,
  type: 0 | 4,
  spoil: (m: SystemMachine) => void = () => undefined,
): { m: SystemMachine; vector: number } {
  const m = prepare(setup);
  m.engine.run(1);
  spoil(m);
  const event = { errorCode: undefined, instructionLength: type === 4 ? 2 : 0, payload: 0n, injected: true };
  m.engine.deliverEvent({ vector: 0x21, type, ...event });
  return { m, vector: m.runToHandler() };
}
/** Error code, EIP, CS, EFLAGS, ESP and so on, as the monitor finds them. */
const EIP = 1;
const CS_WORD = 2;
const EFLAGS = 3;
const ESP = 4;
const found = (m: SystemMachine, index: number): number => Number(m.stacked(index));
/** Word `index` below where the program's stack began. */
const pushedWord = (m: SystemMachine, index: number): number => m.memory.getUint16((STACK_WORDS - index) * 2, true);

const sensitive: [string, number[]][] = [
  ["CLI", [CLI]],
  ["STI", [STI]],
  ["PUSHF", [PUSHF]],
  ["POPF", [POPF]],
  ["IRET", [IRET]],
  ["INT n", INT_21],
];

describe("virtual-8086 mode", () => {
  it("saves and drops its segments where an event leaves it, and IRETD brings them", () => {
    const { m, vector } = run({ flags: IOPL_3 });
    expect(vector).toBe(GP);
    expect([...Array(10).keys()].map((index) => found(m, index))).toEqual([
      ...[0, 0, CODE >>> 4, VM | IOPL_3 | 0x1_0002, SP, USER_STACK >>> 4],
      ...[1, 2, 3, 4],
    ]);
    expect([0, 3, 4, 5].map((segment) => m.selector(segment))).toEqual([0, 0, 0, 0]);
  });

  it.each(sensitive)("below IOPL 3 leaves %s to the monitor", (_name, code) => {
    const { m, vector } = run({}, 0x90, ...code);
    expect([vector, found(m, 0), found(m, EIP)]).toEqual([GP, 0, 1]);
  });

  it("at IOPL 3 has IF, but not IOPL, and INT n through the IDT", () => {
    const { m } = run({ flags: IOPL_3, stack: [IF] }, POPF, PUSHF, HLT);
    expect(found(m, EFLAGS) & (IF | IOPL_3 | VM)).toBe(IF | IOPL_3 | VM);
    expect(run({ flags: IOPL_3 }, ...INT_21).vector).toBe(0x21);
  });
});

describe("with CR4.VME, below IOPL 3", () => {
  it("CLI and STI change VIF, and PUSHF shows it as IF with IOPL 3", () => {
    const { m } = run({ cr4: VME, flags: IF | VIF }, CLI, PUSHF, STI, PUSHF);
    expect(pushedWord(m, 1)).toBe(IOPL_3 | 2);
    expect(pushedWord(m, 2)).toBe(IOPL_3 | IF | 2);
    expect(found(m, EFLAGS) & (IF | VIF | IOPL_3)).toBe(IF | VIF);
  });

  it("POPF and IRET take IF as VIF, and neither IF nor IOPL", () => {
    const popped = run({ cr4: VME, stack: [IF | IOPL_3 | 0x41] }, POPF);
    expect(found(popped.m, EFLAGS)).toBe(VM | VIF | 0x43 | 0x1_0000);
    const returned = run({ cr4: VME, flags: IF | VIF, stack: [0x20, CODE >>> 4, 0x41] }, IRET, ...Array(31).fill(0x90));
    expect(found(returned.m, EIP)).toBe(0x20);
    expect(found(returned.m, EFLAGS)).toBe(VM | IF | 0x43 | 0x1_0000);
    expect(found(returned.m, ESP)).toBe(SP + 6);
  });

  it.each([
    ["STI with an interrupt waiting", { flags: VIP }, [STI]],
    ["POPF of IF with an interrupt waiting", { flags: VIP, stack: [IF] }, [POPF]],
    ["POPF of TF", { stack: [TF] }, [POPF]],
    ["IRET of IF with an interrupt waiting", { flags: VIP, stack: [0, CODE >>> 4, IF] }, [IRET]],
    ["IRET of TF", { stack: [0, CODE >>> 4, TF] }, [IRET]],
    ["PUSHFD", {}, [OPERAND_32, PUSHF]],
    ["POPFD", {}, [OPERAND_32, POPF]],
    ["IRETD", {}, [OPERAND_32, IRET]],
  ] as [string, Setup, number[]][])("%s is the monitor's", (_name, setup, code) => {
    const { m, vector } = run({ cr4: VME, ...setup }, 0x90, ...code);
    expect([vector, found(m, 0), found(m, EIP), found(m, ESP)]).toEqual([GP, 0, 1, SP]);
  });

  it("INT n goes through the program's own table where the task's map says so", () => {
    const { m, vector } = run({ cr4: VME, flags: IF | VIF }, ...INT_21);
    expect([vector, found(m, EIP), found(m, CS_WORD), found(m, ESP)]).toEqual([GP, HANDLER_IP, DATA >>> 4, SP - 6]);
    expect([1, 2, 3].map((index) => pushedWord(m, index))).toEqual([IF | IOPL_3 | 2, CODE >>> 4, 2]);
    expect(found(m, EFLAGS) & (IF | VIF)).toBe(IF);
    const monitored = run({ cr4: VME, toMonitor: true }, ...INT_21);
    expect([monitored.vector, found(monitored.m, EIP)]).toEqual([GP, 0]);
  });

  it("INT n faults where the task has no map", () => {
    const m = createSystemMachine(32);
    const { m: other, vector } = run({ cr4: VME }, ...INT_21);
    expect(vector).toBe(GP);
    expect(found(other, EIP)).toBe(HANDLER_IP);
    m.engine.set64(state.cr4, VME);
    m.memory.setUint16(TSS + 102, 0x8000, true);
    m.code(...INT_21);
    m.engine.setFlags(VM | 2);
    m.engine.updateSegments();
    m.engine.set64(segmentOffset(1), BigInt(CODE));
    m.engine.set64(state.rip, 0n);
    m.engine.updateSegments();
    expect(m.runToHandler()).toBe(GP);
    expect(found(m, EIP)).toBe(0);
  });
});

describe("with CR4.VME, at IOPL 3", () => {
  it("INT n goes through the program's own table with IF as it is, or through the IDT", () => {
    const { m, vector } = run({ cr4: VME, flags: IOPL_3 | IF | VIF }, ...INT_21);
    expect([vector, found(m, EIP)]).toEqual([GP, HANDLER_IP]);
    expect(pushedWord(m, 1)).toBe(IF | IOPL_3 | 2);
    expect(found(m, EFLAGS) & (IF | VIF)).toBe(VIF);
    expect(run({ cr4: VME, flags: IOPL_3, toMonitor: true }, ...INT_21).vector).toBe(0x21);
  });
});

describe.each([32, 64] as const)("CR4.PVI in %i-bit user code", (mode) => {
  function user(cr4: bigint, flags: number, ...code: number[]): { m: SystemMachine; flags: number; at: number } {
    const m = createSystemMachine(mode);
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | cr4);
    m.enterUser();
    m.engine.setFlags(flags | 2);
    m.code(...code, HLT);
    expect(m.runToHandler()).toBe(GP);
    return { m, flags: found(m, 3), at: found(m, 1) - CODE };
  }
  it("has CLI and STI change VIF", () => {
    expect(user(PVI, IF | VIF, CLI)).toMatchObject({ at: 1, flags: 0x1_0002 | IF });
    expect(user(PVI, 0, STI)).toMatchObject({ at: 1, flags: 0x1_0002 | VIF });
    expect(user(PVI, IF, CLI, PUSHF, POPF)).toMatchObject({ at: 3, flags: 0x1_0002 | IF });
  });
  it("faults without it, and where an interrupt waits", () => {
    expect(user(0n, IF, CLI).at).toBe(0);
    expect(user(VME, IF, CLI).at).toBe(0);
    expect(user(PVI, VIP, STI).at).toBe(0);
  });
});

it("POPF leaves VIF and VIP alone at CPL 0, and IRETD loads them", () => {
  const m = createSystemMachine(32);
  // push 0; popf: 68 imm32 ; 9d
  m.engine.setFlags(VIF | VIP | 2);
  m.code(0x6a, 0, POPF, HLT);
  m.runToHandler();
  expect(m.engine.readFlags()).toBe(VIF | VIP | 2);
  m.code(
    0x6a,
    0,
    0x0e,
    0x68,
    ...[CODE & 0xff, (CODE >> 8) & 0xff, (CODE >> 16) & 0xff, 0].map((b, i) => (i === 0 ? b + 9 : b)),
    IRET,
    HLT,
  );
  m.runToHandler();
  expect(m.engine.readFlags()).toBe(2);
});

describe("an injected software interrupt", () => {
  it("goes through the program's own table where CR4.VME and the task's map say so", () => {
    const { m, vector } = inject({ cr4: VME, flags: IF | VIF }, 4);
    expect([vector, found(m, EIP), found(m, CS_WORD), found(m, ESP)]).toEqual([GP, HANDLER_IP, DATA >>> 4, SP - 6]);
    expect([1, 2, 3].map((index) => pushedWord(m, index))).toEqual([IF | IOPL_3 | 2, CODE >>> 4, 2]);
    expect(found(m, EFLAGS) & (IF | VIF | VM)).toBe(IF | VM);
    const privileged = inject({ cr4: VME, flags: IF | VIF | IOPL_3 }, 4);
    expect(found(privileged.m, EIP)).toBe(HANDLER_IP);
    expect(pushedWord(privileged.m, 1)).toBe(IF | IOPL_3 | 2);
    expect(found(privileged.m, EFLAGS) & (IF | VIF)).toBe(VIF);
  });

  it.each([
    ["without CR4.VME", {}],
    ["where the map says so", { cr4: VME, toMonitor: true }],
  ] as [string, Setup][])("goes to the monitor %s, whatever IOPL is", (_name, setup) => {
    for (const flags of [0, IOPL_3]) {
      const { m, vector } = inject({ ...setup, flags: flags | IF }, 4);
      // EIP, CS, EFLAGS: no error code
      expect([vector, found(m, 0), found(m, 1), found(m, 2)]).toEqual([0x21, 2, CODE >>> 4, VM | IF | flags | 2]);
    }
  });

  it("is refused by the privilege of the gate, and by a task without a map", () => {
    const gate = inject({}, 4, (m) => m.gate(0x21, 14, 0));
    expect([gate.vector, found(gate.m, 0), found(gate.m, EIP)]).toEqual([GP, 0x21 * 8 + 2, 0]);
    for (const spoil of [
      (m: SystemMachine) => m.memory.setUint16(TSS + 102, 0xfff0, true),
      (m: SystemMachine) => m.memory.setUint16(TSS + 102, 16, true),
      (m: SystemMachine) => m.engine.set64(segmentOffset(TR) + SEG_LIMIT, 102n),
    ]) {
      const { m, vector } = inject({ cr4: VME }, 4, spoil);
      expect([vector, found(m, 0), found(m, EIP)]).toEqual([GP, 0, 0]);
    }
  });

  it("is not what other events are", () => {
    const { m, vector } = inject({ cr4: VME, flags: IF }, 0);
    expect([vector, found(m, 0)]).toEqual([0x21, 0]);
  });
});
