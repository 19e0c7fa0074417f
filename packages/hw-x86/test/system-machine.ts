/**
 * A flat machine with descriptor tables, a task-state segment and a handler for each vector, for tests that run a few bytes of
 * code and look at what became of the CPU. Every handler is a HLT at HANDLERS + vector * 16.
 */
import type { CpuModel } from "../src/engine/cpu.ts";
import {
  BANK_FIRST_FREE,
  CS,
  GS,
  RSP,
  SEG_ACCESS,
  SEG_BASE,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  segmentOffset,
  state,
  TR,
} from "../src/engine/cpu-state.ts";
import { createFlatMachine, FLAT_MODEL, type FlatMachine } from "./flat-machine.ts";

export const GDT = 0x1000;
export const IDT = 0x2000;
export const TSS = 0x3000;
export const HANDLERS = 0x8000;
export const CODE = 0x1_0000;
export const KERNEL_STACK = 0x2_0000;
export const USER_STACK = 0x3_0000;
export const IST_STACK = 0x4_0000;
/** Free for tests. */
export const DATA = 0x5_0000;

/** Selectors. */
export const KERNEL_CODE = 0x08;
export const KERNEL_DATA = 0x10;
export const USER_CODE_32 = 0x1b;
export const USER_DATA = 0x23;
export const USER_CODE_64 = 0x2b;
export const TASK = 0x30;
/** 32-bit kernel code beside a 64-bit kernel. */
export const KERNEL_CODE_32 = 0x40;
/** A data segment for tests to define. */
export const SPARE = 0x48;

const HLT = 0xf4;

export interface SystemMachine extends FlatMachine {
  readonly memory: DataView;
  descriptor(selector: number, base: number, limit: number, access: number): void;
  gate(vector: number, type: number, dpl: number, selector?: number, ist?: number): void;
  /** Bytes at CODE, RIP there. */
  code(...bytes: number[]): void;
  /** Runs until HLT or `instructions` are done; the vector of the handler that it halted in, -1 when it halted elsewhere. */
  runToHandler(instructions?: number): number;
  /** To user privilege, at CODE with the stack at USER_STACK. */
  enterUser(): void;
  readonly rip: number;
  readonly rsp: number;
  readonly cpl: number;
  selector(segment: number): number;
  /** 64-bit (32-bit in a 32-bit machine) word `index` of the stack. */
  stacked(index: number): bigint;
}

/** Access bytes and flags in the VMX format: `limit` in bytes, with G where it does not fit 20 bits. */
export function encodeDescriptor(base: number, limit: number, access: number): bigint {
  const isPaged = limit > 0xf_ffff;
  const units = isPaged ? limit >>> 12 : limit;
  const rights = (access & ~0x8000) | (isPaged ? 0x8000 : 0);
  const low = ((base & 0xffff) * 0x1_0000 + (units & 0xffff)) >>> 0;
  const high =
    ((base & 0xff00_0000) | ((rights & 0xf000) << 8) | (units & 0xf_0000) | ((rights & 0xff) << 8) | ((base >>> 16) & 0xff)) >>>
    0;
  return (BigInt(high) << 32n) | BigInt(low);
}

export function createSystemMachine(mode: 16 | 32 | 64, model: Partial<CpuModel> = {}): SystemMachine {
  const flat = createFlatMachine(mode, undefined, undefined, { ...FLAT_MODEL, ...model });
  const { engine, ram } = flat;
  const memory = new DataView(ram.buffer, ram.byteOffset, ram.byteLength);
  const isLong = mode === 64;
  const machine: SystemMachine = {
    ...flat,
    memory,
    descriptor(selector, base, limit, access) {
      memory.setBigUint64(GDT + (selector & 0xfff8), encodeDescriptor(base, limit, access), true);
    },
    gate(vector, type, dpl, selector = KERNEL_CODE, ist = 0) {
      const target = HANDLERS + vector * 16;
      const at = IDT + vector * (isLong ? 16 : 8);
      memory.setUint32(at, ((selector << 16) | (target & 0xffff)) >>> 0, true);
      memory.setUint32(at + 4, ((target & 0xffff_0000) | 0x8000 | (dpl << 13) | (type << 8) | ist) >>> 0, true);
      if (isLong) memory.setBigUint64(at + 8, 0n, true);
    },
    code(...bytes) {
      ram.set(bytes, CODE);
      if (bytes.length > 0 && engine.holdsCode(BANK_FIRST_FREE + CODE))
        engine.codeWritten(BANK_FIRST_FREE + CODE, bytes.length);
      engine.set64(state.rip, BigInt(CODE));
      engine.set32(state.activity, 0);
    },
    runToHandler(instructions = 100) {
      const reason = engine.run(instructions);
      if (reason !== "halted")
        throw new Error(`run ended with "${reason}" at ${machine.rip.toString(16)}; log: ${flat.log.join("; ")}`);
      // RIP is behind the HLT.
      const vector = (machine.rip - 1 - HANDLERS) / 16;
      return Number.isInteger(vector) && vector >= 0 && vector < 256 ? vector : -1;
    },
    enterUser() {
      const code = segmentOffset(CS);
      engine.set32(code + SEG_ACCESS, isLong ? 0xa0fb : 0xc0fb);
      engine.set32(code + SEG_SELECTOR, isLong ? USER_CODE_64 : USER_CODE_32);
      for (let segment = 0; segment <= GS; segment++) {
        if (segment === CS) continue;
        engine.set32(segmentOffset(segment) + SEG_ACCESS, 0xc0f3);
        engine.set32(segmentOffset(segment) + SEG_SELECTOR, USER_DATA);
      }
      engine.setReg(RSP, BigInt(USER_STACK));
      engine.updateSegments();
    },
    get rip() {
      return Number(engine.get64(state.rip));
    },
    get rsp() {
      return Number(engine.reg(RSP));
    },
    get cpl() {
      return engine.get32(state.cpl);
    },
    selector: (segment) => engine.get32(segmentOffset(segment) + SEG_SELECTOR),
    stacked: (index) =>
      isLong ? memory.getBigUint64(machine.rsp + index * 8, true) : BigInt(memory.getUint32(machine.rsp + index * 4, true)),
  };

  engine.setReg(RSP, BigInt(KERNEL_STACK));
  if (mode === 16) return machine;
  machine.descriptor(KERNEL_CODE, 0, 0xffff_ffff, isLong ? 0xa09b : 0xc09b);
  machine.descriptor(KERNEL_DATA, 0, 0xffff_ffff, 0xc093);
  machine.descriptor(USER_CODE_32, 0, 0xffff_ffff, 0xc0fb);
  machine.descriptor(USER_DATA, 0, 0xffff_ffff, 0xc0f3);
  machine.descriptor(USER_CODE_64, 0, 0xffff_ffff, 0xa0fb);
  machine.descriptor(TASK, TSS, 0x67, 0x8b);
  machine.descriptor(KERNEL_CODE_32, 0, 0xffff_ffff, 0xc09b);
  if (isLong) {
    memory.setBigUint64(TSS + 4, BigInt(KERNEL_STACK), true);
    memory.setBigUint64(TSS + 36, BigInt(IST_STACK), true);
  } else {
    memory.setUint32(TSS + 4, KERNEL_STACK, true);
    memory.setUint32(TSS + 8, KERNEL_DATA, true);
  }
  memory.setUint16(TSS + 102, 0x68, true);
  for (let vector = 0; vector < 256; vector++) {
    ram[HANDLERS + vector * 16] = HLT;
    machine.gate(vector, 14, 0);
  }
  engine.set64(state.gdtrBase, BigInt(GDT));
  engine.set32(state.gdtrLimit, 0xff);
  engine.set64(state.idtrBase, BigInt(IDT));
  engine.set32(state.idtrLimit, 0xfff);
  const task = segmentOffset(TR);
  engine.set64(task + SEG_BASE, BigInt(TSS));
  engine.set64(task + SEG_LIMIT, 0x67n);
  engine.set32(task + SEG_ACCESS, 0x8b);
  engine.set32(task + SEG_SELECTOR, TASK);
  engine.set32(segmentOffset(CS) + SEG_SELECTOR, KERNEL_CODE);
  engine.set32(segmentOffset(SS) + SEG_SELECTOR, KERNEL_DATA);
  engine.updateSegments();
  return machine;
}

/** 8 or 4 little-endian bytes of a number, for immediates in code. */
export const imm32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
export const imm64 = (value: bigint): number[] => [
  ...imm32(Number(BigInt.asUintN(32, value))),
  ...imm32(Number(BigInt.asUintN(64, value) >> 32n)),
];
