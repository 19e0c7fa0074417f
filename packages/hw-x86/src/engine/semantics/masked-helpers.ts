/**
 * Masked moves and gathers. Only elements whose mask has its top bit set are accessed, so that others may lie where nothing is. Registers
 * are found through the operation's record: its fields hold those of the operand column, in order.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { operandOffset, operandSegment } from "../fpu/x87-state.ts";
import type { HelperTable } from "../helpers.ts";
import { op } from "../operation.ts";
import { doesBehave, VendorBehaviour } from "../vendor-behaviour.ts";

const UD = 6;

/** Bank offset of byte `at` of a register of 256 bits. */
const registerByte = (register: number, at: number): number =>
  at < 16 ? register + at : register + state.ymmHigh - state.xmm + at - 16;
const field = (cpu: Cpu, offset: number): number => cpu.u16[(cpu.operation + offset) >> 1] as number;

const isChosen = (cpu: Cpu, mask: number, element: number, bytes: number): boolean =>
  ((cpu.u8[registerByte(mask, (element + 1) * bytes - 1)] as number) & 0x80) !== 0;

function clearFrom(cpu: Cpu, register: number, from: number): void {
  for (let at = from; at < 32; at++) cpu.u8[registerByte(register, at)] = 0;
}
function setElement(cpu: Cpu, register: number, at: number, bytes: 4 | 8, value: bigint): void {
  const to = registerByte(register, at);
  if (bytes === 4) cpu.view.setUint32(to, Number(value), true);
  else cpu.view.setBigUint64(to, value, true);
}

/** Calls `access` with the linear address of each element chosen, in order: what comes first faults first. */
function forChosen(
  cpu: Cpu,
  mask: number,
  bytes: number,
  total: number,
  isWrite: boolean,
  access: (address: Gva, at: number) => void,
): void {
  const segment = operandSegment(cpu);
  // The address size wraps where the operand begins, not within it
  const first = operandOffset(cpu);
  for (let at = 0; at < total; at += bytes) {
    if (!isChosen(cpu, mask, at / bytes, bytes)) continue;
    access(cpu.linear(segment, BigInt.asUintN(64, first + BigInt(at)), bytes, isWrite), at);
  }
}

export const maskedHelpers: HelperTable = {
  /** a bytes of an element, b of all. Fields: destination, mask. */
  maskedLoad(cpu, bytes, total) {
    const [target, mask] = [field(cpu, op.a), field(cpu, op.b)];
    const values = new Array<bigint>(total / bytes).fill(0n);
    forChosen(cpu, mask, bytes, total, false, (address, at) => {
      values[at / bytes] = cpu.readLinear(address, bytes as 4 | 8);
    });
    values.forEach((value, i) => {
      setElement(cpu, target, i * bytes, bytes as 4 | 8, value);
    });
    clearFrom(cpu, target, total);
  },

  /** The same; fields: mask, source. */
  maskedStore(cpu, bytes, total) {
    const [mask, source] = [field(cpu, op.a), field(cpu, op.b)];
    forChosen(cpu, mask, bytes, total, true, (address) => cpu.probeWrite(address, bytes));
    forChosen(cpu, mask, bytes, total, true, (address, at) => {
      const from = registerByte(source, at);
      const value = bytes === 4 ? BigInt(cpu.view.getUint32(from, true)) : cpu.view.getBigUint64(from, true);
      cpu.writeLinear(address, bytes as 4 | 8, value);
    });
  },

  /**
   * a bytes of an element, b of an index, c elements. Fields: destination, mask. Elements are loaded in order, and the mask of each is
   * cleared with it: a fault leaves what came before, and the instruction run again goes on from there.
   */
  gather(cpu, bytes, indexBytes, count) {
    const [target, mask] = [field(cpu, op.a), field(cpu, op.b)];
    const indices = field(cpu, op.index);
    if (target === mask || target === indices || mask === indices) cpu.raise(UD);
    const width = cpu.u8[cpu.operation + op.addressSize] as number;
    const scale = BigInt(cpu.u8[cpu.operation + op.scale] as number);
    const base = cpu.get64(field(cpu, op.base)) + BigInt(cpu.view.getInt32(cpu.operation + op.displacement, true));
    const segment = operandSegment(cpu);
    const ones = (1n << BigInt(bytes * 8)) - 1n;
    const widens = doesBehave(cpu, VendorBehaviour.gatherWidensMask);
    for (let i = 0; i < count && widens; i++) {
      setElement(cpu, mask, i * bytes, bytes as 4 | 8, isChosen(cpu, mask, i, bytes) ? ones : 0n);
    }
    for (let i = 0; i < count; i++) {
      if (isChosen(cpu, mask, i, bytes)) {
        const at = registerByte(indices, i * indexBytes);
        const index = indexBytes === 4 ? BigInt(cpu.view.getInt32(at, true)) : cpu.view.getBigInt64(at, true);
        const offset = BigInt.asUintN(width, base + (index << scale));
        const value = cpu.readLinear(cpu.linear(segment, offset, bytes, false), bytes as 4 | 8);
        setElement(cpu, target, i * bytes, bytes as 4 | 8, value);
      }
      setElement(cpu, mask, i * bytes, bytes as 4 | 8, 0n);
    }
    clearFrom(cpu, target, count * bytes);
    clearFrom(cpu, mask, 0);
  },
};
