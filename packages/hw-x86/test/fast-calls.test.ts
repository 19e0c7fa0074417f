/**
 * SYSENTER and SYSEXIT from every mode, on both vendors' processors (Intel SDM Vol. 2B, SYSENTER - Fast System Call; SYSEXIT - Fast Return
 * from Fast System Call; AMD64 APM Vol. 3, SYSENTER; SYSEXIT).
 */
import { describe, expect, it } from "vitest";
import {
  CS,
  DS,
  RCX,
  RDX,
  RSP,
  SEG_ACCESS,
  SEG_BASE,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  segmentOffset,
  state,
} from "../src/engine/cpu-state.ts";
import { Flag, Vector } from "../src/engine/system/bits.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  KERNEL_CODE,
  KERNEL_STACK,
  type SystemMachine,
  USER_CODE_32,
  USER_STACK,
} from "./system-machine.ts";

const SYSENTER = [0x0f, 0x34];
const SYSEXIT = [0x0f, 0x35];
const SYSEXIT_64 = [0x48, 0x0f, 0x35];
const NOP = 0x90;
const HLT = 0xf4;
const { DB, UD, GP } = Vector;
const { TF, IF } = Flag;
const IOPL_3 = 0x3000;
const VM = 0x2_0000;
const AC = 0x4_0000;
const FLAT_CODE_32 = 0xc09b;
const FLAT_CODE_64 = 0xa09b;
const FLAT_DATA = 0xc093;
const USER_RIGHTS = 0x60;
const UPPER = 0x7fff_0000_0000n;
const NOT_CANONICAL = 0x8000_0000_0000n;

type Vendor = "intel" | "amd";
const VENDORS: readonly Vendor[] = ["intel", "amd"];

interface Mode {
  readonly name: string;
  readonly machine: 16 | 32 | 64;
  /** Access rights of the code segment; undefined: as the machine has it. */
  readonly code?: number;
  readonly isUser?: true;
  readonly isVirtual?: true;
}
const MODES: readonly Mode[] = [
  { name: "64-bit user code", machine: 64, isUser: true },
  { name: "64-bit kernel code", machine: 64 },
  { name: "compatibility mode", machine: 64, code: 0xc0fb, isUser: true },
  { name: "16-bit compatibility mode", machine: 64, code: 0x00fb, isUser: true },
  { name: "32-bit user code", machine: 32, isUser: true },
  { name: "32-bit kernel code", machine: 32 },
  { name: "16-bit protected mode", machine: 32, code: 0x00fb, isUser: true },
  { name: "virtual-8086 mode", machine: 32, isVirtual: true },
];

const setSegment = (m: SystemMachine, segment: number, selector: number, base: number, limit: number, access: number): void => {
  const slot = segmentOffset(segment);
  m.engine.set32(slot + SEG_SELECTOR, selector);
  m.engine.set64(slot + SEG_BASE, BigInt(base));
  m.engine.set32(slot + SEG_LIMIT, limit);
  m.engine.set32(slot + SEG_ACCESS, access);
};
const access = (m: SystemMachine, segment: number): number => m.engine.get32(segmentOffset(segment) + SEG_ACCESS);

function machine(mode: Mode, vendor: Vendor, ...code: number[]): SystemMachine {
  const m = createSystemMachine(mode.machine, { vendor });
  m.engine.set64(state.sysenterCs, BigInt(KERNEL_CODE));
  m.engine.set64(state.sysenterEip, BigInt(DATA));
  m.engine.set64(state.sysenterEsp, BigInt(KERNEL_STACK));
  m.ram[DATA] = HLT;
  if (mode.isUser) m.enterUser();
  m.code(...code);
  if (mode.code !== undefined) setSegment(m, CS, USER_CODE_32, 0, 0xffff_ffff, mode.code);
  if (mode.isVirtual) {
    for (let segment = 0; segment < 6; segment++) setSegment(m, segment, CODE >>> 4, CODE, 0xffff, 0xf3);
    m.engine.set64(state.rip, 0n);
    m.engine.setFlags(VM | 2);
  }
  m.engine.updateSegments();
  return m;
}
/** The fault that one instruction ends with, as vector and error code; undefined when it ends well. */
function fault(m: SystemMachine): [number, number | undefined] | undefined {
  m.engine.run(1);
  const [first] = m.guest.exceptions;
  return first === undefined ? undefined : [first.vector, first.errorCode];
}

describe.each(VENDORS)("SYSENTER of %s", (vendor) => {
  const isUndefined = (mode: Mode): boolean => vendor === "amd" && mode.machine === 64;

  it.each(MODES)("from $name", (mode) => {
    const m = machine(mode, vendor, ...SYSENTER);
    const before = (mode.isVirtual ? VM : 0) | IF | IOPL_3 | AC | 0x8d5 | 2;
    m.engine.setFlags(before);
    m.engine.updateSegments();
    if (isUndefined(mode)) {
      expect(fault(m)).toEqual([UD, undefined]);
      return;
    }
    expect(fault(m)).toBeUndefined();
    const isLong = mode.machine === 64;
    expect([m.rip, m.rsp, m.cpl, m.engine.get32(state.codeSize)]).toEqual([DATA, KERNEL_STACK, 0, isLong ? 64 : 32]);
    expect([m.selector(CS), m.selector(SS)]).toEqual([KERNEL_CODE, KERNEL_CODE + 8]);
    expect([access(m, CS), access(m, SS)]).toEqual([isLong ? FLAT_CODE_64 : FLAT_CODE_32, FLAT_DATA]);
    // IF and VM alone are cleared
    expect(m.engine.readFlags()).toBe(before & ~(IF | VM));
  });

  it.each([0x0, 0x1, 0x2, 0x3, 0xffff_0000, 0x1_0003])("with a null SYSENTER_CS of %x is #GP(0)", (value) => {
    for (const mode of MODES) {
      const m = machine(mode, vendor, ...SYSENTER);
      m.engine.set64(state.sysenterCs, BigInt(value));
      expect(fault(m)).toEqual(isUndefined(mode) ? [UD, undefined] : [GP, 0]);
      expect([m.selector(CS), m.cpl]).not.toEqual([KERNEL_CODE, 3]);
    }
  });

  it("in real mode is #GP", () => {
    for (const code of [SYSENTER, SYSEXIT]) {
      const m = machine({ name: "real", machine: 16 }, vendor, ...code);
      m.engine.set64(segmentOffset(CS) + SEG_BASE, BigInt(CODE));
      m.engine.set64(state.rip, 0n);
      m.engine.updateSegments();
      expect(fault(m)?.[0]).toBe(GP);
    }
  });

  it("ignores the RPL and the upper half of SYSENTER_CS, and wraps the selector of SS", () => {
    const m = machine({ name: "", machine: 32 }, vendor, ...SYSENTER);
    m.engine.set64(state.sysenterCs, 0x1234_fffbn);
    expect(fault(m)).toBeUndefined();
    expect([m.selector(CS), m.selector(SS), m.cpl]).toEqual([0xfff8, 0, 0]);
  });

  it("outside long mode takes 32 bits of its registers", () => {
    const m = machine({ name: "", machine: 32, isUser: true }, vendor, ...SYSENTER);
    m.engine.set64(state.sysenterEip, UPPER | BigInt(DATA));
    m.engine.set64(state.sysenterEsp, UPPER | BigInt(KERNEL_STACK));
    m.engine.setReg(RSP, 0xffff_ffffn);
    expect(fault(m)).toBeUndefined();
    expect([m.engine.get64(state.rip), m.engine.reg(RSP)]).toEqual([BigInt(DATA), BigInt(KERNEL_STACK)]);
  });

  it("leaves data segments alone, those of virtual-8086 mode too", () => {
    const m = machine(MODES.find(({ isVirtual }) => isVirtual) as Mode, vendor, ...SYSENTER);
    expect(fault(m)).toBeUndefined();
    expect([m.selector(DS), access(m, DS), m.engine.get32(segmentOffset(DS) + SEG_LIMIT)]).toEqual([CODE >>> 4, 0xf3, 0xffff]);
  });

  it("with TF set traps before the kernel's first instruction, with TF still set there", () => {
    const mode = MODES.find(({ name }) => name === "32-bit user code") as Mode;
    const m = machine(mode, vendor, ...SYSENTER);
    m.engine.setFlags(TF | IF | 2);
    m.ram[DATA] = NOP;
    expect(m.runToHandler()).toBe(DB);
    expect([m.stacked(0), m.stacked(1)]).toEqual([BigInt(DATA), BigInt(KERNEL_CODE)]);
    expect(Number(m.stacked(2)) & (TF | IF)).toBe(TF);
    // No change of stacks: the trap is the kernel's own
    expect(m.rsp).toBe(KERNEL_STACK - 12);
  });
});

describe.each(VENDORS)("SYSEXIT of %s", (vendor) => {
  const kernel = (machineMode: 32 | 64, ...code: number[]): SystemMachine => {
    const m = machine({ name: "", machine: machineMode }, vendor, ...code);
    m.engine.setReg(RDX, BigInt(DATA));
    m.engine.setReg(RCX, BigInt(USER_STACK));
    return m;
  };

  it.each([
    ["to 32-bit code", 32, SYSEXIT, 16, FLAT_CODE_32],
    ["to compatibility mode", 64, SYSEXIT, 16, FLAT_CODE_32],
    ["to 64-bit code", 64, SYSEXIT_64, 32, FLAT_CODE_64],
  ] as const)("%s", (_name, machineMode, code, distance, rights) => {
    const m = kernel(machineMode, ...code);
    const isWide = code === SYSEXIT_64;
    m.engine.setReg(RDX, UPPER | BigInt(DATA));
    m.engine.setReg(RCX, UPPER | BigInt(USER_STACK));
    m.engine.set64(state.sysenterCs, 0x5555_000bn);
    m.engine.setFlags(IF | IOPL_3 | AC | 0x8d5 | 2);
    if (vendor === "amd" && machineMode === 64) {
      expect(fault(m)).toEqual([UD, undefined]);
      return;
    }
    expect(fault(m)).toBeUndefined();
    const upper = isWide ? UPPER : 0n;
    expect([m.engine.get64(state.rip), m.engine.reg(RSP)]).toEqual([upper | BigInt(DATA), upper | BigInt(USER_STACK)]);
    expect([m.selector(CS), m.selector(SS), m.cpl]).toEqual([(8 + distance) | 3, (16 + distance) | 3, 3]);
    expect([access(m, CS), access(m, SS)]).toEqual([rights | USER_RIGHTS, FLAT_DATA | USER_RIGHTS]);
    expect(m.engine.readFlags()).toBe(IF | IOPL_3 | AC | 0x8d5 | 2);
  });

  it("is the kernel's alone, and needs a SYSENTER_CS", () => {
    for (const mode of MODES) {
      const isUser = mode.isUser || mode.isVirtual;
      const isUndefined = vendor === "amd" && mode.machine === 64;
      const m = machine(mode, vendor, ...SYSEXIT);
      if (!isUser) m.engine.set64(state.sysenterCs, 0x1_0003n);
      expect(fault(m)).toEqual(isUndefined ? [UD, undefined] : [GP, 0]);
    }
  });

  it.each([
    ["RDX", RDX],
    ["RCX", RCX],
  ] as const)("to 64-bit code wants %s canonical, to other code its lower half alone", (_name, register) => {
    for (const value of [NOT_CANONICAL, 0xffff_7fff_ffff_ffffn]) {
      const wide = kernel(64, ...SYSEXIT_64);
      wide.engine.setReg(register, value);
      expect(fault(wide)).toEqual(vendor === "amd" ? [UD, undefined] : [GP, 0]);
      expect(wide.cpl).toBe(0);
      if (vendor === "amd") continue;
      const narrow = kernel(64, ...SYSEXIT);
      narrow.engine.setReg(register, value);
      expect(fault(narrow)).toBeUndefined();
      expect(narrow.cpl).toBe(3);
    }
  });

  it("with TF set traps at the user's first instruction", () => {
    const m = kernel(32, ...SYSEXIT);
    m.ram[DATA] = NOP;
    m.engine.setFlags(TF | 2);
    expect(m.runToHandler()).toBe(DB);
    expect([m.stacked(0), m.stacked(1), m.stacked(3)]).toEqual([
      BigInt(DATA),
      BigInt((KERNEL_CODE + 16) | 3),
      BigInt(USER_STACK),
    ]);
    expect(m.rsp).toBe(KERNEL_STACK - 20);
  });
});
