/** The memory side of INS and OUTS. Source: Intel SDM Vol. 2A, INS/INSB/INSW/INSD; Vol. 2B, OUTS/OUTSB/OUTSW/OUTSD. */
import { Gpr, Rflags, SegmentRegister } from "./arch/registers.ts";
import type { EmulatedCpu, GuestFault } from "./instruction-emulator/emulated-cpu.ts";

const PAGE = 4096;

/** INS or OUTS as its VM exit describes it. */
export interface StringIo {
  readonly isIn: boolean;
  readonly rep: boolean;
  /** Bytes of one item: 1, 2, 4. */
  readonly size: number;
  /** Bytes of RSI, RDI, RCX that count: 2, 4, 8. */
  readonly addressSize: number;
  /** Segment of OUTS' source (encoding order); INS always uses ES. */
  readonly segment: number;
}

const maskOf = (addressSize: number) => (1n << BigInt(addressSize * 8)) - 1n;
const registerOf = (io: StringIo) => (io.isIn ? Gpr.RDI : Gpr.RSI);

/** Value of a register after its counted part became `value`: 32-bit results clear the upper half. */
function put(cpu: EmulatedCpu, register: number, value: bigint, addressSize: number): void {
  const mask = maskOf(addressSize);
  const kept = addressSize === 2 ? cpu.gpr(register) & ~mask : 0n;
  cpu.setGpr(register, BigInt.asUintN(64, kept) | (value & mask));
}

function linearOf(cpu: EmulatedCpu, io: StringIo): bigint {
  const offset = cpu.gpr(registerOf(io)) & maskOf(io.addressSize);
  const base = cpu.segmentBase(io.isIn ? SegmentRegister.ES : io.segment);
  return cpu.codeBits === 64 ? BigInt.asUintN(64, base + offset) : (base + offset) & 0xffff_ffffn;
}

/** Items that the next exit moves: within one page, at most `limitBytes` worth, 0 when RCX is 0. Downwards (DF): one. */
export function stringIoCount(cpu: EmulatedCpu, io: StringIo, limitBytes: number): number {
  const left = io.rep ? cpu.gpr(Gpr.RCX) & maskOf(io.addressSize) : 1n;
  if (left === 0n) return 0;
  if (cpu.rflags & Rflags.DF) return 1;
  const inPage = PAGE - Number(linearOf(cpu, io) & 0xfffn);
  const most = Math.max(1, Math.floor(Math.min(inPage, limitBytes) / io.size)); // an item over the page's end goes alone
  return left < BigInt(most) ? Number(left) : most;
}

function advance(cpu: EmulatedCpu, io: StringIo, count: number): void {
  const step = BigInt(count * io.size) * (cpu.rflags & Rflags.DF ? -1n : 1n);
  put(cpu, registerOf(io), cpu.gpr(registerOf(io)) + step, io.addressSize);
  if (io.rep) put(cpu, Gpr.RCX, cpu.gpr(Gpr.RCX) - BigInt(count), io.addressSize);
}

interface Piece {
  readonly gpa: number;
  readonly from: number;
  readonly length: number;
}
/** The physical pieces of a linear range, all translated before any is touched. */
function piecesOf(cpu: EmulatedCpu, linear: bigint, length: number, access: "read" | "write"): Piece[] | GuestFault {
  const pieces: Piece[] = [];
  for (let from = 0; from < length; ) {
    const at = linear + BigInt(from);
    const gpa = cpu.translate(cpu.codeBits === 64 ? BigInt.asUintN(64, at) : at & 0xffff_ffffn, access);
    if (typeof gpa !== "number") return gpa;
    const size = Math.min(length - from, PAGE - (gpa % PAGE));
    pieces.push({ gpa, from, length: size });
    from += size;
  }
  return pieces;
}

/** OUTS: reads `count` items from the guest and moves RSI and RCX on. Where there is no memory it reads ones, as an empty bus does. */
export function stringIoOut(cpu: EmulatedCpu, io: StringIo, count: number): Uint8Array | GuestFault {
  const items = new Uint8Array(count * io.size).fill(0xff);
  const pieces = piecesOf(cpu, linearOf(cpu, io), items.length, "read");
  if (!Array.isArray(pieces)) return pieces;
  for (const { gpa, from, length } of pieces) {
    const bytes = cpu.readRam(gpa, length) ?? (length <= 8 ? cpu.readDevice(gpa, length) : undefined);
    if (bytes) items.set(bytes, from);
  }
  advance(cpu, io, count);
  return items;
}

/** INS: writes items to the guest and moves RDI and RCX on. Where there is no memory they are lost. */
export function stringIoIn(cpu: EmulatedCpu, io: StringIo, items: Uint8Array): GuestFault | undefined {
  const pieces = piecesOf(cpu, linearOf(cpu, io), items.length, "write");
  if (!Array.isArray(pieces)) return pieces;
  for (const { gpa, from, length } of pieces) {
    const bytes = items.subarray(from, from + length);
    if (!cpu.writeRam(gpa, bytes) && length <= 8) cpu.writeDevice(gpa, bytes);
  }
  advance(cpu, io, items.length / io.size);
  return undefined;
}

/** True when all is moved, and RIP is to move past the instruction. */
export function stringIoFinished(cpu: EmulatedCpu, io: StringIo): boolean {
  return !io.rep || (cpu.gpr(Gpr.RCX) & maskOf(io.addressSize)) === 0n;
}
