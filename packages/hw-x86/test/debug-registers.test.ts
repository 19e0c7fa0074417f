/** Debug registers and debug exceptions as code meets them (Intel SDM Vol. 3B, Debug Registers; Debug Exceptions). */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, RDI, RSI, RSP, state } from "../src/engine/cpu-state.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  HANDLERS,
  IST_STACK,
  imm32,
  KERNEL_CODE,
  KERNEL_DATA,
  KERNEL_STACK,
  type SystemMachine,
} from "./system-machine.ts";

const TF = 0x100;
const RF = 0x1_0000;
const DB = 1;
const DR6_FIXED = 0xffff_0ff0;
const BS = 0x4000;
const BD = 0x2000;
const Kind = { fetch: 0, write: 1, io: 2, access: 3 } as const;

/** Enables of breakpoint `index`, with LEN 0 to 3 (1, 2, 8, 4 bytes). */
const arm = (index: number, kind: number, length = 0): number =>
  ((2 << (index * 2)) | (kind << (16 + index * 4)) | (length << (18 + index * 4))) >>> 0;

function setDr(m: SystemMachine, index: number, value: number): void {
  m.engine.set64(state.dr + index * 8, BigInt(value));
}
const dr = (m: SystemMachine, index: number): number => Number(m.engine.get64(state.dr + index * 8));
function reset(m: SystemMachine): void {
  setDr(m, 6, DR6_FIXED);
  setDr(m, 7, 0x400);
}
function machine(mode: 32 | 64 = 64): SystemMachine {
  const m = createSystemMachine(mode);
  reset(m);
  m.engine.setFlags(2);
  return m;
}

/** Handler of #DB that notes DR6 and the return address at [rsi], clears DR6, and returns with RF if EBX says so. */
function noteTraps(m: SystemMachine): void {
  const body = [
    ...[0x50], // push rax
    ...[0x0f, 0x21, 0xf0], // mov rax, dr6
    ...[0x89, 0x06], // mov [rsi], eax
    ...[0x48, 0x8b, 0x44, 0x24, 0x08], // mov rax, [rsp + 8]
    ...[0x89, 0x46, 0x04], // mov [rsi + 4], eax
    ...[0x48, 0x8b, 0x44, 0x24, 0x18], // mov rax, [rsp + 24]
    ...[0x89, 0x46, 0x08], // mov [rsi + 8], eax
    ...[0x09, 0x5c, 0x24, 0x18], // or [rsp + 24], ebx
    ...[0xb8, ...imm32(DR6_FIXED)], // mov eax, DR6_FIXED
    ...[0x0f, 0x23, 0xf0], // mov dr6, rax
    ...[0x48, 0x83, 0xc6, 0x10], // add rsi, 16
    ...[0x58], // pop rax
    ...[0x48, 0xcf], // iretq
  ];
  const at = 0xf000;
  m.ram.set(body, at);
  m.ram.set([0xe9, ...imm32(at - (HANDLERS + DB * 16) - 5)], HANDLERS + DB * 16);
  m.engine.setReg(RSI, BigInt(DATA + 0x1000));
}
/** INT 0x81, whose handler halts: with TF set a HLT would be stepped over. */
const END = [0xcd, 0x81] as const;
interface Trap {
  dr6: number;
  rip: number;
  flags: number;
}
function traps(m: SystemMachine): Trap[] {
  const found: Trap[] = [];
  for (let at = DATA + 0x1000; at < Number(m.engine.reg(RSI)); at += 16)
    found.push({
      dr6: (m.memory.getUint32(at, true) ^ DR6_FIXED) >>> 0,
      rip: m.memory.getUint32(at + 4, true) - CODE,
      flags: m.memory.getUint32(at + 8, true),
    });
  return found;
}
const places = (m: SystemMachine): [number, number][] => traps(m).map(({ dr6, rip }) => [dr6, rip]);

describe("single step", () => {
  it("traps after each instruction, not after what clears TF by an interrupt", () => {
    const m = machine();
    noteTraps(m);
    m.ram.set([0x48, 0xcf], HANDLERS + 0x80 * 16);
    m.engine.setFlags(2 | TF);
    // nop; inc eax; int 0x80; nop; end
    m.code(0x90, 0xff, 0xc0, 0xcd, 0x80, 0x90, ...END);
    m.gate(0x80, 14, 0);
    m.runToHandler(200);
    expect(places(m)).toEqual([
      [BS, 1],
      [BS, 3],
      // IRETQ brings TF back: the step begins with the instruction after
      [BS, 6],
    ]);
  });

  it("is held off by MOV SS for one instruction", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setFlags(2 | TF);
    m.engine.setReg(RAX, BigInt(KERNEL_DATA));
    // mov ss, eax; nop; nop; end
    m.code(0x8e, 0xd0, 0x90, 0x90, ...END);
    m.runToHandler(200);
    expect(places(m).slice(0, 2)).toEqual([
      [BS, 3],
      [BS, 4],
    ]);
  });

  it("stops at branches only with DEBUGCTL.BTF, which the exception clears", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setFlags(2 | TF);
    m.engine.set64(state.debugctl, 2n);
    // nop; xor ecx, ecx; jnz +0 (not taken); jmp +1; nop; nop; nop; end
    m.code(0x90, 0x31, 0xc9, 0x75, 0x01, 0xeb, 0x01, 0x90, 0x90, 0x90, ...END);
    m.runToHandler(300);
    expect(places(m)).toEqual([
      [BS, 8],
      [BS, 9],
      [BS, 10],
    ]);
    expect(m.engine.get64(state.debugctl)).toBe(0n);
  });
});

describe.each(["intel", "amd"] as const)("a branch to the very next instruction, on %s", (vendor) => {
  const JMP_POINTER = DATA + 0x800;
  const ZF = 0x40;
  /** Code, RCX and RFLAGS before it, and whether it branches. RAX is where it ends. */
  const branches: [string, number[], number, number, boolean][] = [
    ["JMP rel8", [0xeb, 0], 0, 0, true],
    ["JMP rel32", [0xe9, 0, 0, 0, 0], 0, 0, true],
    ["JMP r64", [0xff, 0xe0], 0, 0, true],
    ["a far JMP", [0xff, 0x2c, 0x25, ...imm32(JMP_POINTER)], 0, 0, true],
    ["CALL rel32", [0xe8, 0, 0, 0, 0], 0, 0, true],
    ["CALL r64", [0xff, 0xd0], 0, 0, true],
    ["RET", [0xc3], 0, 0, true],
    ["IRETQ", [0x48, 0xcf], 0, 0, true],
    ["JZ that is taken", [0x74, 0], 0, ZF, true],
    ["JZ that is not", [0x74, 0], 0, 0, false],
    ["JNZ rel32 that is taken", [0x0f, 0x85, 0, 0, 0, 0], 0, 0, true],
    ["JNZ rel32 that is not", [0x0f, 0x85, 0, 0, 0, 0], 0, ZF, false],
    ["JLE by SF and OF", [0x7e, 0], 0, 0x880, false],
    ["JLE by OF", [0x7e, 0], 0, 0x800, true],
    ["JA that is taken", [0x77, 0], 0, 0x80, true],
    ["JRCXZ that is taken", [0xe3, 0], 0, 0, true],
    ["JRCXZ that is not", [0xe3, 0], 1, 0, false],
    ["LOOP that is taken", [0xe2, 0], 2, 0, true],
    ["LOOP that is not", [0xe2, 0], 1, 0, false],
    ["LOOPE that is taken", [0xe1, 0], 2, ZF, true],
    ["LOOPE that is not", [0xe1, 0], 2, 0, false],
    ["LOOPNE that is taken", [0xe0, 0], 2, 0, true],
    ["LOOPNE that is not", [0xe0, 0], 2, ZF, false],
    ["no branch", [0x90], 0, 0, false],
    ["a repeated string instruction between its iterations", [0xf3, 0xa4], 3, 0, false],
  ];
  function start(code: number[], rcx: number, debugctl: bigint): SystemMachine {
    const m = createSystemMachine(64, { vendor });
    reset(m);
    const next = CODE + code.length;
    // A return address on the stack, and all of IRETQ's frame
    [next, KERNEL_CODE, 2, KERNEL_STACK, KERNEL_DATA].forEach((word, index) => {
      m.memory.setBigUint64(KERNEL_STACK - 0x100 + index * 8, BigInt(word), true);
    });
    m.memory.setUint32(JMP_POINTER, next, true);
    m.memory.setUint16(JMP_POINTER + 4, KERNEL_CODE, true);
    m.engine.setReg(RSP, BigInt(KERNEL_STACK - 0x100));
    m.engine.setReg(RAX, BigInt(next));
    m.engine.setReg(RCX, BigInt(rcx));
    m.engine.setReg(RDI, BigInt(DATA));
    m.engine.setReg(RSI, BigInt(DATA + 0x100));
    m.engine.set64(state.debugctl, debugctl);
    m.code(...code, 0x90, 0xf4);
    return m;
  }

  it.each(branches)("%s ends a step of branches if it is taken", (_name, code, rcx, flags, isTaken) => {
    const m = start(code, rcx, 2n);
    m.engine.setFlags(2 | TF | flags);
    expect(m.runToHandler()).toBe(isTaken ? DB : -1);
    expect(dr(m, 6)).toBe((DR6_FIXED | (isTaken ? BS : 0)) >>> 0);
    if (isTaken) expect(m.stacked(0)).toBe(BigInt(CODE + code.length));
  });

  it.each(branches)("%s is recorded if it is taken", (_name, code, rcx, flags, isTaken) => {
    const m = start(code, rcx, 1n);
    m.engine.set64(state.branchFrom, 1n);
    m.engine.setFlags(2 | flags);
    m.runToHandler();
    const records = [m.engine.get64(state.branchFrom), m.engine.get64(state.branchTo)];
    expect(records).toEqual(isTaken ? [BigInt(CODE), BigInt(CODE + code.length)] : [1n, 0n]);
  });
});

describe("instruction breakpoints", () => {
  it("fault before the instruction, and RF lets it pass once", () => {
    const m = machine();
    noteTraps(m);
    setDr(m, 0, CODE + 2);
    setDr(m, 7, 0x400 | arm(0, Kind.fetch));
    m.engine.setReg(RBX, BigInt(RF));
    m.engine.setReg(RCX, 3n);
    m.engine.setReg(RAX, 0n);
    // nop; nop; inc eax; dec ecx; jnz to the breakpoint; end
    m.code(0x90, 0x90, 0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfa, ...END);
    m.runToHandler(400);
    expect(places(m)).toEqual([
      [1, 2],
      [1, 2],
      [1, 2],
    ]);
    expect(traps(m).every(({ flags }) => (flags & RF) === 0)).toBe(true);
    expect(m.engine.reg(RAX)).toBe(3n);
    expect(m.engine.readFlags() & RF).toBe(0);
  });

  it.each([
    ["int3", [0xcc], 0],
    ["int 81h", [...END], 0],
    ["icebp", [0xf1], 0],
    ["int 81h that faults", [...END], RF],
  ])("leave RF to no handler of a software interrupt: %s", (_name, code, resume) => {
    const m = machine();
    if (resume !== 0) m.engine.set32(state.idtrLimit, 0x3ff);
    m.engine.setFlags(RF | 2);
    m.code(...code);
    m.runToHandler();
    // #GP has an error code
    expect(Number(m.stacked(resume !== 0 ? 3 : 2))).toBe(resume | 2);
  });

  it("come back at once without RF", () => {
    const m = machine();
    noteTraps(m);
    setDr(m, 0, CODE);
    setDr(m, 7, 0x400 | arm(0, Kind.fetch));
    m.code(...END);
    m.engine.run(200);
    expect(traps(m).length).toBeGreaterThan(4);
  });

  it("are not met in the middle of an instruction, nor behind MOV SS", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setReg(RAX, BigInt(KERNEL_DATA));
    setDr(m, 0, CODE + 1);
    setDr(m, 1, CODE + 2);
    setDr(m, 7, 0x400 | arm(0, Kind.fetch) | arm(1, Kind.fetch));
    // mov ss, eax; nop; end
    m.code(0x8e, 0xd0, 0x90, ...END);
    m.runToHandler(100);
    expect(traps(m)).toEqual([]);
  });

  it("let a repeated string instruction go on", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setReg(RBX, BigInt(RF));
    m.engine.setReg(RCX, 5n);
    m.engine.setReg(RDI, BigInt(DATA));
    setDr(m, 2, CODE);
    setDr(m, 7, 0x400 | arm(2, Kind.fetch));
    // repne scasb; end
    m.engine.setReg(RAX, 7n);
    m.code(0xf2, 0xae, ...END);
    m.runToHandler(100);
    expect(places(m)).toEqual([[4, 0]]);
    expect(m.engine.reg(RCX)).toBe(0n);
  });

  it("come before a fault of the instruction", () => {
    const m = machine();
    setDr(m, 3, CODE);
    setDr(m, 7, 0x400 | arm(3, Kind.fetch));
    m.code(0x0f, 0x0b);
    expect(m.runToHandler()).toBe(DB);
    expect(dr(m, 6)).toBe((DR6_FIXED | 8) >>> 0);
  });

  it("are armed by MOV to DR7 for the very next instruction, in code that is decoded already", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setReg(RBX, BigInt(RF));
    // four rounds: ecx counts; in the last DR7 is written
    // L: dec ecx; jnz M; mov dr7, rax; nop (breakpoint); end; M: nop*2; jmp L
    m.engine.setReg(RCX, 3000n);
    m.engine.setReg(RAX, BigInt(0x400 | arm(0, Kind.fetch)));
    setDr(m, 0, CODE + 7);
    m.code(0xff, 0xc9, 0x75, 0x05, 0x0f, 0x23, 0xf8, 0x90, 0xf4, 0x90, 0x90, 0xeb, 0xf3);
    m.runToHandler(100_000);
    expect(places(m)).toEqual([[1, 7]]);
  });
});

describe("data breakpoints", () => {
  it("trap after a write, whatever the size that overlaps", () => {
    const m = machine();
    noteTraps(m);
    setDr(m, 1, DATA + 4);
    setDr(m, 7, 0x400 | arm(1, Kind.write, 3));
    m.engine.setReg(RDI, BigInt(DATA));
    // mov [rdi], rax; mov [rdi], eax; mov eax, [rdi + 4]; mov byte [rdi + 7], 1; mov byte [rdi + 8], 1; end
    m.code(0x48, 0x89, 0x07, 0x89, 0x07, 0x8b, 0x47, 4, 0xc6, 0x47, 7, 1, 0xc6, 0x47, 8, 1, ...END);
    m.runToHandler(200);
    expect(places(m)).toEqual([
      [2, 3],
      [2, 12],
    ]);
  });

  it("trap after reads and writes where they say so, read-modify-write and pushes included", () => {
    const m = machine();
    noteTraps(m);
    setDr(m, 0, DATA);
    setDr(m, 1, DATA + 0x7f8);
    m.gate(0x81, 14, 0, KERNEL_CODE, 1);
    setDr(m, 7, 0x400 | arm(0, Kind.access) | arm(1, Kind.write, 2));
    m.gate(DB, 14, 0, KERNEL_CODE, 1);
    m.engine.setReg(RDI, BigInt(DATA));
    m.engine.setReg(RSP, BigInt(DATA + 0x800));
    // mov al, [rdi]; inc dword [rdi]; lock add [rdi], eax; cmp [rdi+1], al; push rax; pop rax; end
    m.code(0x8a, 0x07, 0xff, 0x07, 0xf0, 0x01, 0x07, 0x38, 0x47, 1, 0x50, 0x58, ...END);
    m.runToHandler(300);
    expect(places(m)).toEqual([
      [1, 2],
      [1, 4],
      [1, 7],
      [2, 11],
    ]);
  });

  it("are met in code that has become hot", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setReg(RDI, BigInt(DATA));
    m.engine.setReg(RCX, 6000n);
    // L: mov [rdi + rcx*4 - 4], ecx; dec ecx; jnz L; end
    setDr(m, 0, DATA + 8);
    setDr(m, 7, 0x400 | arm(0, Kind.write, 3));
    m.code(0x89, 0x4c, 0x8f, 0xfc, 0xff, 0xc9, 0x75, 0xf8, ...END);
    m.engine.setReg(RSI, BigInt(DATA + 0x1_0000));
    m.runToHandler(100_000);
    expect(Number(m.engine.reg(RSI))).toBe(DATA + 0x1_0010);
    expect(m.memory.getUint32(DATA + 0x1_0004, true)).toBe(CODE + 4);
  });

  it("stop string instructions between iterations", () => {
    const m = machine();
    noteTraps(m);
    m.engine.setReg(RDI, BigInt(DATA));
    m.engine.setReg(RCX, 8n);
    setDr(m, 0, DATA + 2);
    setDr(m, 7, 0x400 | arm(0, Kind.write, 1));
    // rep stosb; end
    m.code(0xf3, 0xaa, ...END);
    m.runToHandler(200);
    expect(places(m)).toEqual([
      [1, 0],
      [1, 0],
    ]);
    expect(m.engine.reg(RCX)).toBe(0n);
  });

  it("are held off by MOV SS, and single step joins them", () => {
    const m = machine();
    noteTraps(m);
    m.memory.setUint16(DATA, KERNEL_DATA, true);
    m.engine.setReg(RDI, BigInt(DATA));
    setDr(m, 3, DATA);
    setDr(m, 7, 0x400 | arm(3, Kind.access, 1));
    // mov ss, [rdi]; nop; nop; end
    m.code(0x8e, 0x17, 0x90, 0x90, ...END);
    m.runToHandler(200);
    expect(places(m)).toEqual([[8, 3]]);
  });

  it("are not met by an instruction that faults", () => {
    const m = machine();
    setDr(m, 0, DATA);
    setDr(m, 7, 0x400 | arm(0, Kind.access, 3));
    m.memory.setUint32(DATA, 0, true);
    m.engine.setReg(RDI, BigInt(DATA));
    // div dword [rdi]
    m.code(0xf7, 0x37);
    expect(m.runToHandler()).toBe(0);
    expect(dr(m, 6)).toBe(DR6_FIXED);
  });

  it("cover both sides of 4 GiB and of a page", () => {
    const m = machine();
    noteTraps(m);
    setDr(m, 0, DATA + 0x1000 - 1);
    setDr(m, 7, 0x400 | arm(0, Kind.write));
    m.engine.setReg(RDI, BigInt(DATA + 0x1000 - 2));
    m.engine.setReg(RSI, BigInt(DATA + 0x2000));
    m.code(0x89, 0x07, ...END);
    m.runToHandler(100);
    expect(Number(m.engine.reg(RSI))).toBe(DATA + 0x2010);
  });
});

describe("I/O breakpoints", () => {
  it("trap after IN and OUT with CR4.DE only", () => {
    for (const de of [false, true]) {
      const m = machine();
      noteTraps(m);
      if (de) m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 8n);
      setDr(m, 0, 0x80);
      setDr(m, 7, 0x400 | arm(0, Kind.io, 1));
      // out 0x80, al; in al, 0x81; out 0x82, al; hlt
      m.code(0xe6, 0x80, 0xe4, 0x81, 0xe6, 0x82, ...END);
      m.runToHandler(200);
      expect(places(m)).toEqual(
        de
          ? [
              [1, 2],
              [1, 4],
            ]
          : [],
      );
    }
  });
});

describe("the registers themselves", () => {
  const moveFrom = (number: number): number[] => [0x0f, 0x21, 0xc0 | (number << 3)];
  const moveTo = (number: number): number[] => [0x0f, 0x23, 0xc0 | (number << 3)];

  it("has fixed bits in DR6 and DR7, and faults on upper halves", () => {
    const m = machine();
    m.engine.setReg(RAX, 0xffff_ffffn & ~0x2000n & ~0xffn);
    // mov dr7, rax; mov rbx, dr7; mov dr6, rax; mov rcx, dr6; hlt
    m.code(...moveTo(7), 0x0f, 0x21, 0xfb, ...moveTo(6), 0x0f, 0x21, 0xf1, 0xf4);
    m.runToHandler();
    expect(m.engine.reg(RBX)).toBe(0xffff_0700n);
    expect(m.engine.reg(RCX)).toBe(0xffff_cff0n);
    for (const number of [6, 7]) {
      m.engine.setReg(RAX, 1n << 32n);
      m.code(...moveTo(number));
      expect(m.runToHandler()).toBe(13);
    }
  });

  it("takes DR4 and DR5 for DR6 and DR7 unless CR4.DE makes them undefined", () => {
    const m = machine();
    m.code(...moveFrom(4), 0xf4);
    m.runToHandler();
    expect(m.engine.reg(RAX)).toBe(BigInt(DR6_FIXED));
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 8n);
    m.code(...moveFrom(5));
    expect(m.runToHandler()).toBe(6);
  });

  it("faults on any access with DR7.GD, which the exception clears, and pushes RF", () => {
    const m = machine();
    setDr(m, 7, 0x2400);
    m.code(...moveFrom(0));
    expect(m.runToHandler()).toBe(DB);
    expect(dr(m, 6)).toBe((DR6_FIXED | BD) >>> 0);
    expect(dr(m, 7)).toBe(0x400);
    expect(m.stacked(0)).toBe(BigInt(CODE));
    expect(Number(m.stacked(2)) & RF).toBe(RF);
  });

  it("is the kernel's: #UD before #GP before general detect", () => {
    const m = machine();
    setDr(m, 7, 0x2400);
    m.enterUser();
    m.code(...moveFrom(0));
    expect(m.runToHandler()).toBe(13);
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 8n);
    m.enterUser();
    m.code(...moveFrom(4));
    expect(m.runToHandler()).toBe(6);
  });
});

describe("RF", () => {
  it("is pushed by faults, not by traps and interrupts, and ends with the instruction", () => {
    const m = machine();
    m.engine.setFlags(2 | RF);
    m.code(0x90, 0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect(Number(m.stacked(2)) & RF).toBe(RF);
    m.engine.setFlags(2 | RF);
    m.code(0x90, 0xcc);
    expect(m.runToHandler()).toBe(3);
    expect(Number(m.stacked(2)) & RF).toBe(0);
  });
});

it("does not go on for ever where the handler's own stack has a breakpoint", () => {
  const m = machine();
  m.gate(DB, 14, 0, KERNEL_CODE, 1);
  setDr(m, 0, IST_STACK - 8);
  setDr(m, 7, 0x400 | arm(0, Kind.write, 2));
  m.engine.setFlags(2 | TF);
  m.ram.set([0x90, 0xeb, 0xfd], HANDLERS + DB * 16);
  m.code(0x90, 0x90);
  expect(m.engine.run(1000)).toBe("budget");
});
