/** IN, OUT, INS and OUTS. Most I/O leaves the guest at `guest.io`; what is not intercepted meets an empty bus. */
import type { Cpu } from "../cpu.ts";
import { ES, RAX, RCX, RDI, RDX, RSI, state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Flag } from "./bits.ts";
import { addressMask, operandSegment } from "./helper-operands.ts";
import { checkPort } from "./port-access.ts";
import { linear } from "./segmentation.ts";

/** What an empty bus reads as: all ones. */
const floatingBus = (bytes: number): bigint => (1n << BigInt(bytes * 8)) - 1n;

function setAccumulator(cpu: Cpu, bytes: number, value: bigint): void {
  const old = cpu.reg(RAX);
  // 32-bit results clear the upper half, shorter ones leave the rest.
  cpu.setReg(RAX, bytes === 4 ? value : (old & ~floatingBus(bytes)) | value);
}

/** A register advanced within the address size: 32-bit ones clear the upper half. */
function advanced(value: bigint, by: bigint, mask: bigint): bigint {
  const next = (value + by) & mask;
  return mask === 0xffffn ? (value & ~mask) | next : next;
}

/** I/O that did not exit meets the breakpoints on its ports. */
function notePort(cpu: Cpu, port: number, bytes: number): void {
  const { breakpoints } = cpu;
  if (!breakpoints.hasIo) return;
  breakpoints.notePort(port, bytes);
  if (breakpoints.hits !== 0) cpu.trapAfterInstruction();
}

/** One iteration of INS or OUTS; 1 when more follow. */
function stringIo(cpu: Cpu, bytes: 1 | 2 | 4, isIn: boolean, rep: boolean): number {
  const mask = addressMask(cpu);
  const count = cpu.reg(RCX) & mask;
  if (rep && count === 0n) return 0;
  const port = Number(cpu.reg(RDX) & 0xffffn);
  checkPort(cpu, port, bytes);
  const pointer = isIn ? RDI : RSI;
  const segment = isIn ? ES : operandSegment(cpu);
  const address = linear(cpu, segment, cpu.reg(pointer) & mask, bytes, isIn);
  cpu.guest.io(port, bytes, isIn, false, { linear: address, rep });
  if (isIn) cpu.writeLinear(address, bytes, floatingBus(bytes));
  else cpu.readLinear(address, bytes);
  notePort(cpu, port, bytes);
  const isDown = (cpu.u32[state.systemFlags >>> 2] & Flag.DF) !== 0;
  cpu.setReg(pointer, advanced(cpu.reg(pointer), BigInt(isDown ? -bytes : bytes), mask));
  if (!rep) return 0;
  cpu.setReg(RCX, advanced(cpu.reg(RCX), -1n, mask));
  return count === 1n ? 0 : 1;
}

export const ioHelpers: HelperTable = {
  /** Port, bytes, and whether the form has the port as an immediate. */
  portIn(cpu, port, bytes, immediate) {
    checkPort(cpu, port, bytes);
    if (cpu.guest.io(port, bytes, true, immediate !== 0)) return;
    notePort(cpu, port, bytes);
    setAccumulator(cpu, bytes, floatingBus(bytes));
  },
  portOut(cpu, port, bytes, immediate) {
    checkPort(cpu, port, bytes);
    if (!cpu.guest.io(port, bytes, false, immediate !== 0)) notePort(cpu, port, bytes);
  },
  stringIn: (cpu, bytes, rep) => stringIo(cpu, bytes as 1 | 2 | 4, true, rep !== 0),
  stringOut: (cpu, bytes, rep) => stringIo(cpu, bytes as 1 | 2 | 4, false, rep !== 0),
};
