/**
 * The x87 register stack and its exception summary, over the CPU state block. Register operands are stack-relative here; MMX
 * and FXSAVE see the same registers by physical number.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, SEG_SELECTOR, SEGMENT_STRIDE, state } from "../cpu-state.ts";
import { op } from "../operation.ts";
import { doesBehave, VendorBehaviour } from "../vendor-behaviour.ts";
import { DEFAULT_NAN, type FloatContext, IE, type Num, PRE_COMPUTATION, pack80, unpack80 } from "./float-format.ts";

/** Status word. */
export const SF = 0x40,
  ES = 0x80,
  C0 = 0x100,
  C1 = 0x200,
  C2 = 0x400,
  TOP_SHIFT = 11,
  C3 = 0x4000,
  BUSY = 0x8000;
const TOP_MASK = 7 << TOP_SHIFT;

/** Slots of `state.helper` (bank offsets): values travel in the first ones, the address of a memory operand in the last. */
export const VALUE = state.helper;
export const VALUE_HIGH = state.helper + 8;
export const OPERAND_ADDRESS = state.helper + 56;

export const control = (cpu: Pick<Cpu, "u16">): number => cpu.u16[state.fpuControl >> 1];
export const status = (cpu: Pick<Cpu, "u16">): number => cpu.u16[state.fpuStatus >> 1];
export function setStatus(cpu: Pick<Cpu, "u16">, value: number): void {
  cpu.u16[state.fpuStatus >> 1] = value;
}
export const top = (cpu: Cpu): number => (status(cpu) >> TOP_SHIFT) & 7;
export function setTop(cpu: Cpu, value: number): void {
  setStatus(cpu, (status(cpu) & ~TOP_MASK) | ((value & 7) << TOP_SHIFT));
}

/** Condition codes C0, C2, C3 as given, the rest of the status word as it is. */
export function setCodes(cpu: Cpu, codes: number): void {
  setStatus(cpu, (status(cpu) & ~(C0 | C2 | C3)) | codes);
}
export function setC1(cpu: Cpu, value: boolean): void {
  setStatus(cpu, value ? status(cpu) | C1 : status(cpu) & ~C1);
}

export const rounding = (cpu: Cpu): number => (control(cpu) >> 10) & 3;
export const precisionControl = (cpu: Cpu): number => (control(cpu) >> 8) & 3;
/** Unmasked exceptions as flag bits. */
export const unmasked = (cpu: Pick<Cpu, "u16">): number => ~control(cpu) & 0x3f;

const physical = (cpu: Cpu, index: number): number => (top(cpu) + index) & 7;

export function isEmpty(cpu: Cpu, index: number): boolean {
  return ((cpu.u16[state.fpuTags >> 1] >> (physical(cpu, index) * 2)) & 3) === 3;
}
/** Marks ST(index) empty, or used. */
export function setEmpty(cpu: Cpu, index: number, empty: boolean): void {
  const shift = physical(cpu, index) * 2;
  const tags = cpu.u16[state.fpuTags >> 1] & ~(3 << shift);
  cpu.u16[state.fpuTags >> 1] = empty ? tags | (3 << shift) : tags;
}

export function readRegister(cpu: Cpu, index: number): Num {
  const at = state.fpr + physical(cpu, index) * 16;
  return unpack80(cpu.u16[(at + 8) >> 1], cpu.u64[at >> 3]);
}
export function readRaw(cpu: Cpu, index: number): { signExponent: number; significand: bigint } {
  const at = state.fpr + physical(cpu, index) * 16;
  return { signExponent: cpu.u16[(at + 8) >> 1], significand: cpu.u64[at >> 3] };
}
/** Writes ST(index) and marks it used. */
export function writeRaw(cpu: Cpu, index: number, signExponent: number, significand: bigint): void {
  const at = state.fpr + physical(cpu, index) * 16;
  cpu.u64[at >> 3] = significand;
  cpu.u16[(at + 8) >> 1] = signExponent;
  setEmpty(cpu, index, false);
}
export function writeRegister(cpu: Cpu, index: number, value: Num): void {
  const { signExponent, significand } = pack80(value);
  writeRaw(cpu, index, signExponent, significand);
}

export function pop(cpu: Cpu): void {
  setEmpty(cpu, 0, true);
  setTop(cpu, top(cpu) + 1);
}

/** Adds exception flags to the status word, with the summary bits if one of them is unmasked. */
export function raiseFlags(cpu: Cpu, flags: number): void {
  let word = status(cpu) | flags;
  if ((word & unmasked(cpu)) !== 0) word |= ES | BUSY;
  setStatus(cpu, word);
}

/** Recomputes the summary bits after the control or status word was loaded. */
export function updateSummary(cpu: Pick<Cpu, "u16">): void {
  const word = status(cpu) & ~(ES | BUSY);
  setStatus(cpu, (word & unmasked(cpu)) !== 0 ? word | ES | BUSY : word);
}

/** Stack overflow or underflow. True when masked: the caller goes on with the indefinite. */
export function stackFault(cpu: Cpu, isOverflow: boolean): boolean {
  setC1(cpu, isOverflow);
  raiseFlags(cpu, IE | SF);
  return (unmasked(cpu) & IE) === 0;
}

/**
 * Takes over flags and C1 of a computation. True when its result may be stored in a register. An unmasked exception found
 * before computing hides what computing would have found.
 */
export function settle(cpu: Cpu, context: FloatContext): boolean {
  const isStopped = (context.flags & context.unmasked & PRE_COMPUTATION) !== 0;
  setC1(cpu, context.roundedUp && !isStopped);
  raiseFlags(cpu, isStopped ? context.flags & PRE_COMPUTATION : context.flags);
  return !isStopped;
}

/** Pushes `value`, or the indefinite on a masked overflow of the stack. Called after the flags of `value` were settled. */
export function push(cpu: Cpu, value: Num): void {
  if (!isEmpty(cpu, 7)) {
    if (stackFault(cpu, true)) pushOver(cpu, DEFAULT_NAN);
    return;
  }
  pushOver(cpu, value);
}

/** Push on a full or empty register alike. */
export function pushOver(cpu: Cpu, value: Num): void {
  setTop(cpu, top(cpu) - 1);
  writeRegister(cpu, 0, value);
}

/** Segment register number of the running operation's memory operand; 3 (DS) for the flat slot of 64-bit mode. */
export function operandSegment(cpu: Cpu): number {
  const slot = cpu.u16[(cpu.operation + op.segment) >> 1];
  const index = (slot - state.segments) / SEGMENT_STRIDE;
  return Number.isInteger(index) && index >= 0 && index < 6 ? index : 3;
}

/** Offset of the memory operand, which the row left in OPERAND_ADDRESS. */
export const operandOffset = (cpu: Cpu): bigint => cpu.get64(OPERAND_ADDRESS);

/** Where the memory operand is, faulting as a write of all of it would. */
export function probeOperand(cpu: Cpu, bytes: number): Gva {
  const address = cpu.linear(operandSegment(cpu), operandOffset(cpu), bytes, true);
  cpu.probeWrite(address, bytes);
  return address;
}
/** At the start of a store: the same where the operand faults even if a numeric exception keeps the store from it. */
export function checkStore(cpu: Cpu, bytes: number): void {
  if (!doesBehave(cpu, VendorBehaviour.x87StoreChecksNumberFirst)) probeOperand(cpu, bytes);
}

/** FPU instruction pointer, opcode aside; every x87 instruction but the control ones sets it. */
export function noteInstruction(cpu: Cpu): void {
  cpu.u32[state.fpuIp >> 2] = cpu.u32[state.rip >> 2];
  cpu.u32[(state.fpuIp >> 2) + 1] = cpu.u32[(state.rip >> 2) + 1];
  cpu.u16[state.fpuCs >> 1] = cpu.u16[(state.segments + CS * SEGMENT_STRIDE + SEG_SELECTOR) >> 1];
}

/** FPU data pointer, for x87 instructions with a memory operand. */
export function noteOperand(cpu: Cpu): void {
  cpu.u32[state.fpuDp >> 2] = cpu.u32[OPERAND_ADDRESS >> 2];
  cpu.u32[(state.fpuDp >> 2) + 1] = cpu.u32[(OPERAND_ADDRESS >> 2) + 1];
  cpu.u16[state.fpuDs >> 1] = cpu.u16[(state.segments + operandSegment(cpu) * SEGMENT_STRIDE + SEG_SELECTOR) >> 1];
}
