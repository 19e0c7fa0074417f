import { describe, expect, it } from "vitest";
import { CS, RAX, RSP, SS, segmentOffset, state } from "../src/engine/cpu-state.ts";
import { accessOf, segmentLimit, writeSegment } from "../src/engine/system/descriptors.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  IST_STACK,
  imm32,
  imm64,
  KERNEL_CODE,
  KERNEL_DATA,
  KERNEL_STACK,
  USER_CODE_32,
  USER_CODE_64,
  USER_DATA,
  USER_STACK,
} from "./system-machine.ts";

const IF = 0x200;

describe("events in 64-bit mode", () => {
  it("delivers #UD to the same privilege with a frame of five words, aligned", () => {
    const m = createSystemMachine(64);
    m.engine.setReg(RSP, BigInt(KERNEL_STACK - 3));
    m.engine.setFlags(IF | 0x41);
    m.code(0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect(m.rsp).toBe(((KERNEL_STACK - 3) & ~15) - 40);
    expect([0, 1, 2, 3, 4].map(m.stacked)).toEqual([
      BigInt(CODE),
      BigInt(KERNEL_CODE),
      BigInt(0x1_0000 | IF | 0x43),
      BigInt(KERNEL_STACK - 3),
      BigInt(KERNEL_DATA),
    ]);
    expect(m.engine.readFlags() & (IF | 0x1_0000)).toBe(0);
    expect(m.selector(SS)).toBe(KERNEL_DATA);
  });

  it("switches stacks on the way in from user code, and IRETQ goes back", () => {
    const m = createSystemMachine(64);
    m.enterUser();
    m.engine.setFlags(IF);
    m.gate(0x80, 15, 3);
    m.ram.set([0x48, 0xcf], 0x8000 + 0x80 * 16);
    // int 0x80; mov eax, 7; int 0x81 (DPL 0: #GP)
    m.code(0xcd, 0x80, 0xb8, ...imm32(7), 0xcd, 0x81);
    expect(m.runToHandler()).toBe(13);
    expect(m.engine.reg(RAX)).toBe(7n);
    expect(m.stacked(0)).toBe(BigInt(0x81 * 8 + 2));
    expect(m.stacked(1)).toBe(BigInt(CODE + 7));
    expect(m.stacked(2)).toBe(BigInt(USER_CODE_64));
    expect(m.stacked(4)).toBe(BigInt(USER_STACK));
    expect(m.stacked(5)).toBe(BigInt(USER_DATA));
    expect(m.selector(SS)).toBe(0);
    expect(m.selector(CS)).toBe(KERNEL_CODE);
    expect(m.cpl).toBe(0);
    expect(m.rsp).toBe(KERNEL_STACK - 48);
  });

  it("uses the interrupt stack that the gate names, also without a change of privilege", () => {
    const m = createSystemMachine(64);
    m.gate(3, 14, 0, KERNEL_CODE, 1);
    m.code(0xcc);
    expect(m.runToHandler()).toBe(3);
    expect(m.rsp).toBe(IST_STACK - 40);
    expect(m.stacked(0)).toBe(BigInt(CODE + 1));
    expect(m.selector(SS)).toBe(KERNEL_DATA);
  });

  it("keeps IF for a trap gate", () => {
    const m = createSystemMachine(64);
    m.engine.setFlags(IF);
    m.gate(3, 15, 0);
    m.code(0xcc);
    expect(m.runToHandler()).toBe(3);
    expect(m.engine.readFlags() & IF).toBe(IF);
  });

  it("turns a fault while delivering #GP into a double fault with error code 0", () => {
    const m = createSystemMachine(64);
    // Gate 13 absent
    m.memory.setUint32(0x2000 + 13 * 16 + 4, 0, true);
    m.enterUser();
    m.code(0xf4);
    expect(m.runToHandler()).toBe(8);
    expect(m.stacked(0)).toBe(0n);
    expect(m.stacked(1)).toBe(BigInt(CODE));
  });

  it("delivers a fault met while delivering an external interrupt in its place, with EXT", () => {
    const m = createSystemMachine(64);
    m.memory.setUint32(0x2000 + 0x40 * 16 + 4, 0x0e00, true);
    m.code(0x90);
    m.engine.deliverEvent({ vector: 0x40, type: 0, errorCode: undefined, instructionLength: 0, payload: 0n, injected: true });
    expect(m.runToHandler()).toBe(11);
    expect(m.stacked(0)).toBe(BigInt(0x40 * 8 + 3));
  });

  it("shuts down on a triple fault", () => {
    const m = createSystemMachine(64);
    m.engine.set32(state.idtrLimit, 0);
    m.code(0x0f, 0x0b);
    expect(m.engine.run(10)).toBe("shutdown");
    expect(m.guest.tripleFaults).toBe(1);
    expect(m.guest.exceptions.map(({ vector }) => vector)).toEqual([6, 13, 8]);
  });

  it("loads CR2 with the address of a page fault and pushes its error code", () => {
    const m = createSystemMachine(64);
    // mov rax, [0x40_0000_0000]
    m.code(0x48, 0xa1, ...imm64(0x40_0000_0000n));
    expect(m.runToHandler()).toBe(14);
    expect(m.engine.get64(state.cr2)).toBe(0x40_0000_0000n);
    expect(m.stacked(0)).toBe(0n);
    expect(m.stacked(1)).toBe(BigInt(CODE));
  });

  it("raises #GP for an address that is not canonical, #SS when it is the stack's", () => {
    const general = createSystemMachine(64);
    general.code(0x48, 0xa1, ...imm64(0x8000_0000_0000n));
    expect(general.runToHandler()).toBe(13);
    const stack = createSystemMachine(64);
    stack.gate(12, 14, 0, KERNEL_CODE, 1);
    stack.engine.setReg(RSP, 0x8000_0000_1000n);
    stack.code(0x50);
    expect(stack.runToHandler()).toBe(12);
  });

  it("single-steps with TF and reports it in DR6", () => {
    const m = createSystemMachine(64);
    m.engine.setFlags(0x100);
    m.code(0x90, 0x90);
    expect(m.runToHandler()).toBe(1);
    expect(m.stacked(0)).toBe(BigInt(CODE + 1));
    expect(m.engine.get64(state.dr + 48) & 0x4000n).toBe(0x4000n);
  });

  it("returns to 32-bit user code and comes back with its 32-bit stack pointer", () => {
    const m = createSystemMachine(64);
    const frame = KERNEL_STACK - 40;
    [CODE + 16, USER_CODE_32, IF | 2, USER_STACK, USER_DATA].forEach((value, i) => {
      m.memory.setBigUint64(frame + i * 8, BigInt(value), true);
    });
    m.engine.setReg(RSP, BigInt(frame));
    m.code(0x48, 0xcf);
    // push eax (pops four bytes in compatibility mode); ud2
    m.ram.set([0x50, 0x0f, 0x0b], CODE + 16);
    expect(m.runToHandler()).toBe(6);
    expect(m.stacked(1)).toBe(BigInt(USER_CODE_32));
    expect(m.stacked(3)).toBe(BigInt(USER_STACK - 4));
    expect(m.stacked(0)).toBe(BigInt(CODE + 17));
    expect(m.engine.get32(state.codeSize)).toBe(64);
  });

  it.each([
    ["in one page", KERNEL_STACK - 64],
    ["across two", KERNEL_STACK - 0x1000 - 20],
    ["with a value across two", KERNEL_STACK - 0x1000 - 12],
  ])("pops a frame %s, all of RSP for 64-bit code and half of it for 32-bit code", (_name, frame) => {
    for (const [selector, rsp] of [
      [USER_CODE_64, 0x7654_0003_2100n],
      [USER_CODE_32, 0x3_2100n],
    ] as const) {
      const m = createSystemMachine(64);
      [CODE + 2, selector, 0x246, 0x7654_0003_2100, USER_DATA].forEach((value, i) => {
        m.memory.setBigUint64(frame + i * 8, BigInt(value), true);
      });
      m.engine.setReg(RSP, BigInt(frame));
      m.code(0x48, 0xcf, 0xf4);
      expect(m.runToHandler()).toBe(13);
      // HLT, which user code may not
      expect(m.stacked(1)).toBe(BigInt(CODE + 2));
      expect(m.stacked(2)).toBe(BigInt(selector));
      expect(m.stacked(3) & 0x246n).toBe(0x246n);
      expect(m.stacked(4)).toBe(rsp);
      expect(m.stacked(5)).toBe(BigInt(USER_DATA));
    }
  });

  it("refuses IRETQ to a selector of inner privilege and to a null selector", () => {
    for (const [selector, error] of [
      [0, 0],
      [KERNEL_DATA, KERNEL_DATA],
    ]) {
      const m = createSystemMachine(64);
      const frame = KERNEL_STACK - 40;
      [CODE, selector, 2, USER_STACK, USER_DATA].forEach((value, i) => {
        m.memory.setBigUint64(frame + i * 8, BigInt(value), true);
      });
      m.engine.setReg(RSP, BigInt(frame));
      m.code(0x48, 0xcf);
      expect(m.runToHandler()).toBe(13);
      expect(m.stacked(0)).toBe(BigInt(error));
      expect(m.stacked(4)).toBe(BigInt(frame));
    }
  });
});

describe("events in 32-bit protected mode", () => {
  it("switches stacks through a 32-bit interrupt gate and IRETD goes back", () => {
    const m = createSystemMachine(32);
    m.enterUser();
    m.engine.setFlags(IF);
    m.gate(0x80, 14, 3);
    m.ram.set([0xcf], 0x8000 + 0x80 * 16);
    m.code(0xcd, 0x80, 0x0f, 0x0b);
    expect(m.runToHandler()).toBe(6);
    expect([0, 1, 3, 4].map(m.stacked)).toEqual([CODE + 2, USER_CODE_32, USER_STACK, USER_DATA].map(BigInt));
    expect(m.rsp).toBe(KERNEL_STACK - 20);
  });

  it("pushes 16-bit words through a 16-bit gate", () => {
    const m = createSystemMachine(32);
    m.gate(3, 6, 0);
    m.ram.fill(0x11, KERNEL_STACK - 16, KERNEL_STACK);
    m.code(0xcc);
    m.engine.set64(state.rip, BigInt(CODE));
    // The offset of a 16-bit gate has 16 bits; the handlers lie below 64 KiB.
    expect(m.runToHandler()).toBe(3);
    expect(m.rsp).toBe(KERNEL_STACK - 6);
    expect(m.memory.getUint16(m.rsp, true)).toBe((CODE + 1) & 0xffff);
  });

  it("enters virtual-8086 mode by IRETD and leaves it by an interrupt", () => {
    const m = createSystemMachine(32);
    m.gate(0x80, 14, 3);
    const frame = KERNEL_STACK - 36;
    // EIP CS EFLAGS ESP SS ES DS FS GS
    [0x10, DATA >> 4, 0x2_3202, 0xff00, 0x1000, 1, 2, 3, 4].forEach((value, i) => {
      m.memory.setUint32(frame + i * 4, value, true);
    });
    m.engine.setReg(RSP, BigInt(frame));
    m.memory.setUint32(0x3000 + 4, 0x2_8000, true);
    m.code(0xcf);
    // mov ax, cs; int 0x80
    m.ram.set([0x8c, 0xc8, 0xcd, 0x80], DATA + 0x10);
    expect(m.runToHandler()).toBe(0x80);
    expect(m.engine.reg(RAX) & 0xffffn).toBe(BigInt(DATA >> 4));
    expect(Array.from({ length: 9 }, (_, i) => Number(m.stacked(i)))).toEqual([
      0x14,
      DATA >> 4,
      0x2_3202,
      0xff00,
      0x1000,
      1,
      2,
      3,
      4,
    ]);
    expect(m.rsp).toBe(0x2_8000 - 36);
    expect(m.cpl).toBe(0);
    expect(m.selector(3)).toBe(0);
  });

  it("raises #GP for INT n in virtual-8086 mode below IOPL 3", () => {
    const m = createSystemMachine(32);
    const frame = KERNEL_STACK - 36;
    [0x10, DATA >> 4, 0x2_0202, 0xff00, 0x1000, 1, 2, 3, 4].forEach((value, i) => {
      m.memory.setUint32(frame + i * 4, value, true);
    });
    m.engine.setReg(RSP, BigInt(frame));
    m.memory.setUint32(0x3000 + 4, 0x2_8000, true);
    m.code(0xcf);
    m.ram.set([0xcd, 0x80], DATA + 0x10);
    expect(m.runToHandler()).toBe(13);
    expect(m.stacked(0)).toBe(0n);
  });
});

describe("events in real mode", () => {
  it("goes through the vector table and IRET comes back", () => {
    const m = createSystemMachine(16);
    m.memory.setUint32(0x21 * 4, (0x200 << 16) | 0x10, true);
    // handler at 0200:0010: iret
    m.ram[0x2010] = 0xcf;
    m.engine.setReg(RSP, 0x7000n);
    m.engine.setFlags(IF);
    // int 0x21; mov al, 5; hlt
    m.ram.set([0xcd, 0x21, 0xb0, 0x05, 0xf4], 0x1000);
    m.engine.set64(state.rip, 0x1000n);
    expect(m.engine.run(100)).toBe("halted");
    expect(m.engine.reg(RAX) & 0xffn).toBe(5n);
    expect(m.rsp).toBe(0x7000);
    expect(m.engine.readFlags() & IF).toBe(IF);
    expect(m.engine.get32(segmentOffset(CS))).toBe(0);
  });

  it("keeps the limit of a code segment from protected mode, and the unit that it counts in", () => {
    const m = createSystemMachine(16);
    writeSegment(m.engine, CS, 0, 0, 0xffff_ffff, 0x809b);
    m.engine.updateSegments();
    m.memory.setUint32(0x21 * 4, 0x0200_0010, true);
    m.ram[0x2010] = 0xf4;
    m.engine.setReg(RSP, 0x7000n);
    // int 0x21
    m.ram.set([0xcd, 0x21], 0x1000);
    m.engine.set64(state.rip, 0x1000n);
    expect(m.engine.run(100)).toBe("halted");
    expect(m.selector(CS)).toBe(0x200);
    expect(accessOf(m.engine, CS)).toBe(0x809b);
    expect(segmentLimit(m.engine, CS)).toBe(0xffff_ffff);
  });

  it("raises #GP without an error code for an access across the limit", () => {
    const m = createSystemMachine(16);
    m.memory.setUint32(13 * 4, 0x0300_0000, true);
    m.ram[0x3000] = 0xf4;
    m.engine.setReg(RSP, 0x7000n);
    // mov ax, [0xffff]
    m.ram.set([0xa1, 0xff, 0xff], 0x1000);
    m.engine.set64(state.rip, 0x1000n);
    expect(m.engine.run(100)).toBe("halted");
    expect(m.rip).toBe(1);
    expect(m.rsp).toBe(0x7000 - 6);
  });
});
