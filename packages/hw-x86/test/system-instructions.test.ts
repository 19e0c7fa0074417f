import { describe, expect, it } from "vitest";
import {
  CS,
  DS,
  ES,
  FS,
  GS,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RSP,
  SEG_ACCESS,
  SS,
  segmentOffset,
  state,
} from "../src/engine/cpu-state.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  imm32,
  imm64,
  KERNEL_CODE,
  KERNEL_CODE_32,
  KERNEL_DATA,
  KERNEL_STACK,
  SPARE,
  type SystemMachine,
  USER_CODE_64,
  USER_DATA,
  USER_STACK,
} from "./system-machine.ts";

const IF = 0x200;

/** Vector and error code (undefined where the test does not push one) of the fault that it ended in; undefined for HLT in the code. */
function outcome(m: SystemMachine, ...code: number[]): [number, number] | undefined {
  m.code(...code, 0xf4);
  const vector = m.runToHandler();
  return vector < 0 ? undefined : [vector, Number(m.stacked(0))];
}
const GP = 13;

describe("SYSCALL and SYSRET", () => {
  function prepare(): SystemMachine {
    const m = createSystemMachine(64);
    // Kernel 08/10, user 1b/23/2b
    m.engine.set64(state.star, (0x1bn << 48n) | (0x08n << 32n));
    m.engine.set64(state.lstar, BigInt(DATA));
    m.engine.set64(state.fmask, BigInt(IF | 0x400));
    m.enterUser();
    m.engine.setFlags(IF | 0x41);
    return m;
  }

  it("enters the kernel with RCX, R11, masked flags and flat segments, and returns", () => {
    const m = prepare();
    // kernel: mov rbx, r11 ; sysretq
    m.ram.set([0x4c, 0x89, 0xdb, 0x48, 0x0f, 0x07], DATA);
    m.engine.setReg(RSP, 0x1234n);
    // user: syscall; hlt -> #GP, for which the TSS has the stack
    expect(outcome(m, 0x0f, 0x05)).toEqual([GP, 0]);
    expect(m.engine.reg(RCX)).toBe(BigInt(CODE + 2));
    expect(m.engine.reg(RBX)).toBe(BigInt(IF | 0x43));
    expect(m.stacked(1)).toBe(BigInt(CODE + 2));
    expect(m.stacked(2)).toBe(BigInt(USER_CODE_64));
    expect(m.stacked(3)).toBe(BigInt(0x1_0000 | IF | 0x43));
    expect(m.stacked(4)).toBe(0x1234n);
    expect(m.stacked(5)).toBe(BigInt(USER_DATA));
  });

  it("masks flags in the kernel and runs it at CPL 0 on SS from STAR", () => {
    const m = prepare();
    m.ram.set([0xf4], DATA);
    m.code(0x0f, 0x05);
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(DATA + 1);
    expect(m.engine.readFlags()).toBe(0x43);
    expect([m.selector(CS), m.selector(SS), m.cpl]).toEqual([KERNEL_CODE, KERNEL_DATA, 0]);
  });

  it("is undefined without EFER.SCE and in compatibility mode", () => {
    const off = prepare();
    off.engine.set64(state.efer, 0xd00n);
    off.code(0x0f, 0x05);
    expect(off.runToHandler()).toBe(6);
    const compatibility = prepare();
    compatibility.engine.set32(segmentOffset(CS) + SEG_ACCESS, 0xc0fb);
    compatibility.engine.updateSegments();
    compatibility.code(0x0f, 0x05);
    expect(compatibility.runToHandler()).toBe(6);
  });

  it("refuses SYSRET outside CPL 0 and to an address that is not canonical", () => {
    const user = prepare();
    expect(outcome(user, 0x48, 0x0f, 0x07)).toEqual([GP, 0]);
    const kernel = createSystemMachine(64);
    kernel.engine.setReg(RCX, 0x8000_0000_0000n);
    expect(outcome(kernel, 0x48, 0x0f, 0x07)).toEqual([GP, 0]);
    expect(kernel.cpl).toBe(0);
  });

  it("returns to compatibility mode without REX.W", () => {
    const m = createSystemMachine(64);
    m.engine.set64(state.star, (0x1bn << 48n) | (0x08n << 32n));
    m.engine.setReg(RCX, BigInt(DATA));
    m.engine.setReg(11, 2n);
    // In 32-bit code 48 is DEC EAX; then UD2.
    m.ram.set([0x48, 0x0f, 0x0b], DATA);
    m.engine.setReg(RAX, 5n);
    m.code(0x0f, 0x07);
    expect(m.runToHandler()).toBe(6);
    expect(m.engine.reg(RAX)).toBe(4n);
    expect(m.stacked(1)).toBe(0x1bn);
  });
});

describe("SYSENTER and SYSEXIT", () => {
  it("goes to the MSRs' CS:EIP and back", () => {
    const m = createSystemMachine(64);
    m.engine.set64(state.sysenterCs, BigInt(KERNEL_CODE));
    m.engine.set64(state.sysenterEip, BigInt(DATA));
    m.engine.set64(state.sysenterEsp, BigInt(KERNEL_STACK));
    // SYSEXIT's 64-bit selectors are CS + 32 and CS + 40.
    m.enterUser();
    m.engine.setFlags(IF);
    // kernel: mov rdx, CODE + 2; mov rcx, USER_STACK; sysexit.w
    m.ram.set([0x48, 0xc7, 0xc2, ...imm32(CODE + 2), 0x48, 0xc7, 0xc1, ...imm32(USER_STACK), 0x48, 0x0f, 0x35], DATA);
    expect(outcome(m, 0x0f, 0x34)).toEqual([GP, 0]);
    expect(m.stacked(2)).toBe(BigInt((KERNEL_CODE + 32) | 3));
    expect(m.stacked(4)).toBe(BigInt(USER_STACK));
    expect(Number(m.stacked(3)) & IF).toBe(0);
  });
});

describe("privilege", () => {
  it.each([
    ["CLI", [0xfa]],
    ["STI", [0xfb]],
    ["HLT", [0xf4]],
    ["MOV from CR0", [0x0f, 0x20, 0xc0]],
    ["MOV to CR3", [0x0f, 0x22, 0xd8]],
    ["MOV from DR7", [0x0f, 0x21, 0xf8]],
    ["LGDT", [0x0f, 0x01, 0x17]],
    ["LLDT", [0x0f, 0x00, 0xd0]],
    ["LTR", [0x0f, 0x00, 0xd8]],
    ["INVLPG", [0x0f, 0x01, 0x3f]],
    ["CLTS", [0x0f, 0x06]],
    ["LMSW", [0x0f, 0x01, 0xf0]],
    ["RDMSR", [0x0f, 0x32]],
    ["WRMSR", [0x0f, 0x30]],
    ["WBINVD", [0x0f, 0x09]],
    ["SWAPGS", [0x0f, 0x01, 0xf8]],
    ["IN", [0xe4, 0x60]],
    ["OUT", [0xee]],
    ["INSB", [0x6c]],
  ] as const)("%s raises #GP(0) at CPL 3", (_name, code) => {
    const m = createSystemMachine(64);
    m.enterUser();
    m.engine.setReg(RDI, BigInt(DATA));
    expect(outcome(m, ...code)).toEqual([GP, 0]);
    expect(m.stacked(1)).toBe(BigInt(CODE));
  });

  it("lets user code at IOPL 3 change IF and use ports", () => {
    const m = createSystemMachine(64);
    m.enterUser();
    m.engine.setFlags(0x3000);
    // sti; in al, 0x60; ud2
    m.code(0xfb, 0xe4, 0x60, 0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect(Number(m.stacked(2)) & IF).toBe(IF);
    expect(m.engine.reg(RAX) & 0xffn).toBe(0xffn);
  });

  it("asks the task's bit map for ports", () => {
    const m = createSystemMachine(64);
    m.enterUser();
    const task = segmentOffset(7);
    m.engine.set64(task + 8, BigInt(0x68 + 0x20));
    m.memory.setUint8(0x3000 + 0x68 + (0x60 >> 3), 0xfe);
    m.code(0xe4, 0x60, 0xe4, 0x61);
    expect(m.runToHandler()).toBe(GP);
    expect(m.stacked(1)).toBe(BigInt(CODE + 2));
  });

  it("changes IOPL and IF by POPF only where privilege allows", () => {
    const m = createSystemMachine(64);
    m.enterUser();
    m.engine.setFlags(IF);
    // push 0x3cd5; popf; ud2
    m.code(0x68, ...imm32(0x3cd5), 0x9d, 0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect(Number(m.stacked(2)) & 0xffff).toBe(0x0cd5 | IF | 2);
    const kernel = createSystemMachine(64);
    kernel.code(0x68, ...imm32(0x3cd5), 0x9d, 0xf4);
    expect(kernel.runToHandler()).toBe(-1);
    expect(kernel.engine.readFlags()).toBe(0x3cd7);
  });
});

describe("control registers and MSRs", () => {
  it.each([
    ["PG without PE", 0, 0x8000_0010n],
    ["NW without CD", 0, 0xa001_0033n],
    ["upper half of CR0", 0, 0x1_8001_0033n],
    ["CR4 without PAE in long mode", 4, 0x600n],
    ["CR4 bit that the CPU has not", 4, 0x8000_0620n],
    ["CR3 beyond the physical address width", 3, 1n << 60n],
  ] as const)("refuses %s", (_name, cr, value) => {
    const m = createSystemMachine(64);
    m.engine.setReg(RAX, value);
    expect(outcome(m, 0x0f, 0x22, 0xc0 | (cr << 3))).toEqual([GP, 0]);
  });

  it("raises #UD for control registers that do not exist", () => {
    const m = createSystemMachine(64);
    m.code(0x0f, 0x20, 0xc8);
    expect(m.runToHandler()).toBe(6);
  });

  it("reads and writes CR8 and the debug registers", () => {
    const m = createSystemMachine(64);
    m.engine.setReg(RAX, 9n);
    // mov cr8, rax; mov rbx, cr8; mov dr0, rax; mov rdx, dr0
    expect(outcome(m, 0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc3, 0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xc2)).toBeUndefined();
    expect([m.engine.reg(RBX), m.engine.reg(RDX)]).toEqual([9n, 9n]);
  });

  it("writes and reads MSRs, with #GP for unknown ones and bad values", () => {
    const m = createSystemMachine(64);
    m.engine.setReg(RCX, 0xc000_0082n);
    m.engine.setReg(RAX, 0x8000_1234n);
    m.engine.setReg(RDX, 0xffff_ffffn);
    expect(outcome(m, 0x0f, 0x30)).toBeUndefined();
    expect(m.engine.get64(state.lstar)).toBe(0xffff_ffff_8000_1234n);
    m.engine.setReg(RDX, 0x8000_0000n);
    expect(outcome(m, 0x0f, 0x30)).toEqual([GP, 0]);
    const unknown = createSystemMachine(64);
    unknown.engine.setReg(RCX, 0x1234_5678n);
    expect(outcome(unknown, 0x0f, 0x32)).toEqual([GP, 0]);
  });

  it("swaps GS bases and addresses through the new one", () => {
    const m = createSystemMachine(64);
    m.engine.set64(state.kernelGsBase, BigInt(DATA));
    m.memory.setBigUint64(DATA + 8, 0x77n, true);
    // swapgs; mov rax, gs:[8]
    expect(outcome(m, 0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(0x77n);
    expect(m.engine.get64(state.kernelGsBase)).toBe(0n);
  });

  it("blocks interrupts for one instruction after STI", () => {
    const m = createSystemMachine(64);
    m.code(0xfb, 0x90, 0xf4);
    m.engine.run(1);
    expect(m.engine.get32(state.interruptibility)).toBe(1);
    m.engine.run(1);
    expect(m.engine.get32(state.interruptibility)).toBe(0);
  });
});

describe("segments in 32-bit protected mode", () => {
  it("faults above the limit, below it for expand-down, and through a null selector", () => {
    const m = createSystemMachine(32);
    m.descriptor(SPARE, DATA, 0xfff, 0x4093);
    const load = (offset: number) => [0xb8, ...imm32(SPARE), 0x8e, 0xc0, 0x26, 0xa1, ...imm32(offset)];
    expect(outcome(m, ...load(0xffc))).toBeUndefined();
    expect(outcome(m, ...load(0xffd))).toEqual([GP, 0]);
    const down = createSystemMachine(32);
    down.descriptor(SPARE, DATA, 0xfff, 0x4097);
    expect(outcome(down, ...load(0x1000))).toBeUndefined();
    expect(outcome(down, ...load(0xfff))).toEqual([GP, 0]);
    const none = createSystemMachine(32);
    // xor eax, eax; mov es, ax; mov al, es:[0]
    expect(outcome(none, 0x31, 0xc0, 0x8e, 0xc0, 0x26, 0xa0, 0, 0, 0, 0)).toEqual([GP, 0]);
  });

  it("refuses writes to read-only data and to code", () => {
    for (const access of [0x4091, 0xc09b]) {
      const m = createSystemMachine(32);
      m.descriptor(SPARE, 0, 0xffff_ffff, access);
      expect(outcome(m, 0xb8, ...imm32(SPARE), 0x8e, 0xc0, 0x26, 0xa3, ...imm32(DATA))).toEqual([GP, 0]);
    }
  });

  it.each([
    ["absent data", SPARE, 0x4013, 0xc0, [11, SPARE]],
    ["execute-only code", SPARE, 0x4099, 0xc0, [GP, SPARE]],
    ["a system descriptor", SPARE, 0x0082, 0xc0, [GP, SPARE]],
    ["a selector past the table", 0x100, 0, 0xc0, [GP, 0x100]],
    ["null into SS", 0, 0, 0xd0, [GP, 0]],
    ["read-only data into SS", SPARE, 0x4091, 0xd0, [GP, SPARE]],
    ["absent data into SS", SPARE, 0x4013, 0xd0, [12, SPARE]],
    ["SS of another privilege", USER_DATA, 0xc0f3, 0xd0, [GP, USER_DATA & ~3]],
  ] as const)("refuses to load %s", (_name, selector, access, modrm, expected) => {
    const m = createSystemMachine(32);
    if (access !== 0) m.descriptor(selector, 0, 0xfff, access);
    expect(outcome(m, 0xb8, ...imm32(selector), 0x8e, modrm)).toEqual(expected);
  });

  it("sets the accessed bit of what it loads", () => {
    const m = createSystemMachine(32);
    m.descriptor(SPARE, 0, 0xfff, 0x4092);
    expect(outcome(m, 0xb8, ...imm32(SPARE), 0x8e, 0xc0)).toBeUndefined();
    expect(m.memory.getUint8(0x1000 + SPARE + 5)).toBe(0x93);
  });

  it("examines descriptors by LAR, LSL, VERR and VERW", () => {
    const m = createSystemMachine(32);
    m.descriptor(SPARE, 0, 0x1fff, 0x4091);
    // mov eax, SPARE; lar ebx, eax; lsl ecx, eax; verw ax; setz dl; verr ax; setz dh
    const code = [0xb8, ...imm32(SPARE), 0x0f, 0x02, 0xd8, 0x0f, 0x03, 0xc8, 0x0f, 0x00, 0xe8, 0x0f, 0x94, 0xc2];
    expect(outcome(m, ...code, 0x0f, 0x00, 0xe0, 0x0f, 0x94, 0xc6)).toBeUndefined();
    expect(m.engine.reg(RBX)).toBe(0x40_9100n);
    expect(m.engine.reg(RCX)).toBe(0x1fffn);
    expect(m.engine.reg(RDX) & 0xffffn).toBe(0x100n);
  });

  it("calls through a gate to inner privilege with parameters, and returns past them", () => {
    const m = createSystemMachine(32);
    const low = (KERNEL_CODE << 16) | (DATA & 0xffff);
    // Call gate, DPL 3, two parameters
    m.memory.setUint32(0x1000 + SPARE, low >>> 0, true);
    m.memory.setUint32(0x1000 + SPARE + 4, ((DATA & 0xffff_0000) | 0xec02) >>> 0, true);
    m.enterUser();
    // kernel: mov eax, [esp + 8]; retf 8
    m.ram.set([0x8b, 0x44, 0x24, 0x08, 0xca, 8, 0], DATA);
    // user: push 5; push 6; call far SPARE:0; ud2
    m.code(0x6a, 5, 0x6a, 6, 0x9a, ...imm32(0), SPARE | 3, 0, 0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect(m.engine.reg(RAX)).toBe(6n);
    expect(Number(m.stacked(3))).toBe(USER_STACK);
    expect(Number(m.stacked(1))).toBe(0x1b);
  });
});

describe("64-bit segments", () => {
  it("allows null in DS, ES and SS at CPL 0, with base 0", () => {
    const m = createSystemMachine(64);
    // xor eax, eax; mov ds, eax; mov es, eax; mov ss, eax; mov rbx, [DATA]; push rbx
    m.memory.setBigUint64(DATA, 3n, true);
    const code = [0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x48, 0x8b, 0x1c, 0x25, ...imm32(DATA), 0x53];
    expect(outcome(m, ...code)).toBeUndefined();
    expect(m.engine.reg(RBX)).toBe(3n);
    expect([m.selector(DS), m.selector(ES), m.selector(SS)]).toEqual([0, 0, 0]);
  });

  it("loads FS from a descriptor with a 32-bit base and clears the base with null", () => {
    const m = createSystemMachine(64);
    m.descriptor(SPARE, DATA, 0xfff, 0x4093);
    m.memory.setUint32(DATA + 4, 42, true);
    expect(outcome(m, 0xb8, ...imm32(SPARE), 0x8e, 0xe0, 0x64, 0x8b, 0x1c, 0x25, ...imm32(4))).toBeUndefined();
    expect(m.engine.reg(RBX)).toBe(42n);
    expect(outcome(m, 0x31, 0xc0, 0x8e, 0xe0)).toBeUndefined();
    expect(m.engine.get64(segmentOffset(FS))).toBe(0n);
    expect(m.selector(GS)).not.toBe(SPARE);
  });

  it("jumps far to compatibility mode and back", () => {
    const m = createSystemMachine(64);
    m.memory.setUint32(DATA, DATA + 0x100, true);
    m.memory.setUint16(DATA + 4, KERNEL_CODE_32, true);
    // 32-bit: mov eax, 9; jmp far KERNEL_CODE:DATA+0x200
    m.ram.set([0xb8, ...imm32(9), 0xea, ...imm32(DATA + 0x200), KERNEL_CODE, 0], DATA + 0x100);
    m.ram.set([0x48, 0xff, 0xc0, 0xf4], DATA + 0x200);
    m.code(0xff, 0x2c, 0x25, ...imm32(DATA));
    expect(m.runToHandler()).toBe(-1);
    expect(m.engine.reg(RAX)).toBe(10n);
    expect(m.rip).toBe(DATA + 0x204);
  });
});

it("goes from real mode through protected mode to long mode", () => {
  const m = createSystemMachine(16);
  const view = m.memory;
  // GDT at 0x600: null, 32-bit code, data, 64-bit code; tables at 0x10_0000: the first 2 MiB
  view.setBigUint64(0x608, 0x00cf_9a00_0000_ffffn, true);
  view.setBigUint64(0x610, 0x00cf_9200_0000_ffffn, true);
  view.setBigUint64(0x618, 0x00af_9a00_0000_ffffn, true);
  view.setUint16(0x500, 0x1f, true);
  view.setUint32(0x502, 0x600, true);
  view.setBigUint64(0x10_0000, 0x10_1003n, true);
  view.setBigUint64(0x10_1000, 0x10_2003n, true);
  view.setBigUint64(0x10_2000, 0x83n, true);
  // cli; lgdt [0x500]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 08:0x2000
  m.ram.set(
    [0xfa, 0x0f, 0x01, 0x16, 0x00, 0x05, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x20, 0x08, 0x00],
    0x1000,
  );
  m.ram.set(
    [
      ...[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xd0], // mov ax, 0x10; mov ds, ax; mov ss, ax
      ...[0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0], // CR4.PAE
      ...[0xb8, ...imm32(0x10_0000), 0x0f, 0x22, 0xd8], // CR3
      ...[0xb9, ...imm32(0xc000_0080), 0x0f, 0x32, 0x0d, ...imm32(0x100), 0x0f, 0x30], // EFER.LME
      ...[0x0f, 0x20, 0xc0, 0x0d, ...imm32(0x8000_0000), 0x0f, 0x22, 0xc0], // CR0.PG
      ...[0xea, ...imm32(0x3000), 0x18, 0x00], // jmp 18:0x3000
    ],
    0x2000,
  );
  // mov rax, imm64; hlt
  m.ram.set([0x48, 0xb8, ...imm64(0x1122_3344_5566_7788n), 0xf4], 0x3000);
  m.engine.set64(state.rip, 0x1000n);
  expect(m.engine.run(100)).toBe("halted");
  expect(m.engine.reg(RAX)).toBe(0x1122_3344_5566_7788n);
  expect(m.engine.get64(state.efer) & 0x500n).toBe(0x500n);
  expect(m.rip).toBe(0x300b);
  expect(m.engine.get32(state.codeSize)).toBe(64);
});
