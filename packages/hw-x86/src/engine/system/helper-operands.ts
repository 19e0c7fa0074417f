/** How helpers reach what a row handed over: memory operands, 64-bit values, register results. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { FS, SEGMENT_STRIDE, segmentOffset, state } from "../cpu-state.ts";
import { op } from "../operation.ts";
import { is64Bit } from "./processor-mode.ts";
import { linear } from "./segmentation.ts";

/** 64-bit argument or result `index` of a helper. */
export const argument = (cpu: Cpu, index = 0): bigint => cpu.get64(state.helper + index * 8);
export function setResult(cpu: Cpu, value: bigint, index = 0): void {
  cpu.set64(state.helper + index * 8, BigInt.asUintN(64, value));
}

/** Number of the segment of the running operation's memory operand. */
export function operandSegment(cpu: Cpu): number {
  return (cpu.u16[(cpu.operation + op.segment) >>> 1] - state.segments) / SEGMENT_STRIDE;
}

/** Linear address of the memory operand whose effective address is argument 0, `displacement` bytes on, checked for `bytes`. */
export function operandAddress(cpu: Cpu, displacement: number, bytes: number, isWrite: boolean): Gva {
  return linear(cpu, operandSegment(cpu), argument(cpu) + BigInt(displacement), bytes, isWrite);
}

/** Linear address of the memory operand whose effective address is argument 0, whatever is there. */
export function uncheckedOperandAddress(cpu: Cpu): Gva {
  const offset = argument(cpu);
  const segment = operandSegment(cpu);
  const base = cpu.get64(segmentOffset(segment));
  if (!is64Bit(cpu)) return BigInt.asUintN(32, offset + base) as Gva;
  return BigInt.asUintN(64, offset + (segment >= FS ? base : 0n)) as Gva;
}

/** Mask of the running operation's address size. */
export function addressMask(cpu: Cpu): bigint {
  const size = cpu.u8[cpu.operation + op.addressSize];
  return size === 16 ? 0xffffn : size === 32 ? 0xffff_ffffn : 0xffff_ffff_ffff_ffffn;
}

/** Number of the general register whose bank offset is in a field (op.a, op.b) of the running operation. */
export function registerNumber(cpu: Cpu, field: number): number {
  return (cpu.u16[(cpu.operation + field) >>> 1] - state.gpr) / 8;
}
