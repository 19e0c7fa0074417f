/**
 * What one emulated instruction has read and is to write. Nothing reaches the vCPU before `commit`, so that an instruction whose
 * read must go to user space, or that faults, has changed nothing.
 */

import { maskOf } from "./arithmetic.ts";
import type { EmulatedCpu } from "./emulated-cpu.ts";
import { FaultSignal, MmioReadSignal } from "./signals.ts";

const PAGE = 4096;
const MAX_FRAGMENT_BYTES = 8;

/** A part of an access that one device sees: within a page, at most 8 bytes. */
export interface Fragment {
  readonly gpa: number;
  readonly length: number;
  data: Uint8Array;
}

export interface InstructionState {
  rflags: bigint;
  register(index: number): bigint;
  /** Writes `bytes` of a register: 4 clear the upper half, 1 and 2 leave the rest. High byte registers without REX: 4 to 7. */
  setRegister(index: number, bytes: number, value: bigint, hasRex: boolean): void;
  registerOperand(index: number, bytes: number, hasRex: boolean): bigint;
  linear(segment: number, offset: bigint): bigint;
  read(linear: bigint, bytes: number): bigint;
  write(linear: bigint, bytes: number, value: bigint): void;
  /** Registers, flags and memory of the instruction. Returns what user space has to write. */
  commit(): Fragment[];
}

/** `replay`: reads of an earlier start of this instruction, from devices and user space, in order. New ones are added. */
export function createInstructionState(cpu: EmulatedCpu, replay: Fragment[]): InstructionState {
  const registers = new Map<number, bigint>();
  const writes: { gpa: number; data: Uint8Array }[] = [];
  let replayed = 0;

  function pieces(linear: bigint, bytes: number, access: "read" | "write"): { gpa: number; from: number; length: number }[] {
    const out: { gpa: number; from: number; length: number }[] = [];
    for (let from = 0; from < bytes; ) {
      const at = linear + BigInt(from);
      const gpa = cpu.translate(cpu.codeBits === 64 ? BigInt.asUintN(64, at) : at & 0xffff_ffffn, access);
      if (typeof gpa !== "number") throw new FaultSignal(gpa);
      const length = Math.min(bytes - from, PAGE - (gpa % PAGE), MAX_FRAGMENT_BYTES);
      out.push({ gpa, from, length });
      from += length;
    }
    return out;
  }
  function readPiece(gpa: number, length: number): Uint8Array {
    const ram = cpu.readRam(gpa, length);
    if (ram) return ram;
    const known = replay[replayed];
    if (known?.gpa === gpa && known.length === length) {
      replayed++;
      return known.data;
    }
    const data = cpu.readDevice(gpa, length);
    if (!data) throw new MmioReadSignal(gpa, length);
    // A device's read may have an effect: it must not be made again when the instruction restarts
    replay.push({ gpa, length, data: data.slice() });
    replayed++;
    return data;
  }

  const state: InstructionState = {
    rflags: cpu.rflags,
    register: (index) => registers.get(index) ?? cpu.gpr(index),
    registerOperand(index, bytes, hasRex) {
      if (bytes === 1 && !hasRex && index >= 4 && index < 8) return (state.register(index - 4) >> 8n) & 0xffn;
      return state.register(index) & maskOf(bytes);
    },
    setRegister(index, bytes, value, hasRex) {
      if (bytes === 1 && !hasRex && index >= 4 && index < 8) {
        registers.set(index - 4, (state.register(index - 4) & ~0xff00n) | ((value & 0xffn) << 8n));
        return;
      }
      const kept = bytes >= 4 ? 0n : state.register(index) & ~maskOf(bytes);
      registers.set(index, kept | (value & maskOf(bytes)));
    },
    linear(segment, offset) {
      const linear = cpu.segmentBase(segment) + offset;
      return cpu.codeBits === 64 ? BigInt.asUintN(64, linear) : linear & 0xffff_ffffn;
    },
    read(linear, bytes) {
      let value = 0n;
      for (const { gpa, from, length } of pieces(linear, bytes, "read")) {
        const data = readPiece(gpa, length);
        for (let i = 0; i < length; i++) value |= BigInt(data[i]) << BigInt(8 * (from + i));
      }
      return value;
    },
    write(linear, bytes, value) {
      for (const { gpa, from, length } of pieces(linear, bytes, "write")) {
        const data = new Uint8Array(length);
        for (let i = 0; i < length; i++) data[i] = Number((value >> BigInt(8 * (from + i))) & 0xffn);
        writes.push({ gpa, data });
      }
    },
    commit() {
      for (const [index, value] of registers) cpu.setGpr(index, value);
      cpu.rflags = state.rflags;
      const toUser: Fragment[] = [];
      for (const { gpa, data } of writes)
        if (!cpu.writeRam(gpa, data) && !cpu.writeDevice(gpa, data)) toUser.push({ gpa, length: data.length, data });
      return toUser;
    },
  };
  return state;
}
