/**
 * How wide linear addresses are (Intel SDM Vol. 1, Canonical Addressing). There are two widths: that of the paging mode (57 bits with
 * CR4.LA57, else 48), by which accesses and instruction pointers are checked; and that of the processor, by which it checks what it
 * is given to keep: bases, addresses of tables, MSRs, and the operands of instructions that invalidate translations.
 */
import type { Cpu, CpuModel } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { Cr4 } from "./bits.ts";

const WIDE = 57;
const NARROW = 48;

/** All bits of the upper half from the top one of an address of `bits` on are equal. */
export const isCanonicalTop = (high: number, bits: number): boolean => ((((high | 0) >> (bits - 33)) + 1) | 1) === 1;

/** Whether the processor can keep the address. */
export const isLinearAddress = ({ linearAddressBits }: Pick<CpuModel, "linearAddressBits">, address: bigint): boolean =>
  isCanonicalTop(Number(BigInt.asIntN(32, address >> 32n)), linearAddressBits);

/** Whether the address with this upper half is canonical in the paging mode. */
export const isCanonicalHigh = (cpu: Cpu, high: number): boolean =>
  isCanonicalTop(high, (cpu.u32[state.cr4 >>> 2] & Cr4.LA57) !== 0 ? WIDE : NARROW);
export const isCanonical = (cpu: Cpu, address: bigint): boolean =>
  isCanonicalHigh(cpu, Number(BigInt.asIntN(32, address >> 32n)));
