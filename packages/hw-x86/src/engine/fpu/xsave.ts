/**
 * XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS, XGETBV and XSETBV (Intel SDM Vol. 1, Managing State Using the XSAVE Feature Set).
 * The init optimization is used wherever an instruction may use it; the modified optimization is not, since nothing tracks it.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { RAX, RCX, RDX, state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { keyRightsChanged } from "../system/translation-caches.ts";
import { loadX87, MXCSR_INITIAL, saveMxcsr, saveX87, XMM_AT } from "./fxsave.ts";
import { operandOffset, operandSegment } from "./x87-state.ts";
import {
  areaBytes,
  COMPACTED,
  COMPONENTS,
  type Component,
  compactedOffset,
  EXTENDED_REGION,
  XSAVE_HEADER,
  XSAVE_HEADER_BYTES,
  Xstate,
} from "./xsave-layout.ts";
import { checkedMxcsr, clearX87, componentsInUse, isMxcsrInitial } from "./xsave-state.ts";

const UD = 6;
const NM = 7;
const GP = 13;
const CR0_TS = 8;
const CR4_OSXSAVE = 0x4_0000;

/** Which instruction a row hands over. */
export const XsaveKind = { xsave: 0, xsaveopt: 1, xsavec: 2, xsaves: 3, xrstor: 4, xrstors: 5 } as const;
type XsaveKind = (typeof XsaveKind)[keyof typeof XsaveKind];

const low = (cpu: Cpu, register: number): number => cpu.u32[(state.gpr >>> 2) + 2 * register];
const is64Bit = (cpu: Cpu): boolean => cpu.u32[state.codeSize >>> 2] === 64;
/** Registers of a component that code of this mode sees: half of them outside 64-bit mode. */
const visibleBytes = (cpu: Cpu, component: Component): number =>
  component.bit === Xstate.avx && !is64Bit(cpu) ? 128 : component.bytes;
const xmmBytes = (cpu: Cpu): number => (is64Bit(cpu) ? 256 : 128);

function requireXsave(cpu: Cpu): void {
  if ((cpu.u32[state.cr4 >>> 2] & CR4_OSXSAVE) === 0) cpu.raise(UD);
}

/** Components that the instruction is about (RFBM), and where its area is; checks it all but the memory. */
function begin(cpu: Cpu, kind: XsaveKind): { components: number; area: Gva } {
  requireXsave(cpu);
  const isSupervisor = kind === XsaveKind.xsaves || kind === XsaveKind.xrstors;
  if (isSupervisor) cpu.guest.requireEnabled("XSAVES");
  if ((cpu.u32[state.cr0 >>> 2] & CR0_TS) !== 0) cpu.raise(NM);
  let enabled = cpu.u32[state.xcr0 >>> 2];
  if (isSupervisor) {
    if (cpu.u32[state.cpl >>> 2] !== 0) cpu.raise(GP, 0);
    enabled |= cpu.u32[state.xss >>> 2];
    const requested = (BigInt(low(cpu, RDX)) << 32n) | BigInt(low(cpu, RAX));
    cpu.guest.xsaves(kind === XsaveKind.xrstors, requested & BigInt(enabled));
  }
  const components = (enabled & low(cpu, RAX)) >>> 0;
  const isCompacted = kind === XsaveKind.xsavec || kind === XsaveKind.xsaves;
  const isWrite = kind < XsaveKind.xrstor;
  // What the format of a restored area is, its header tells: the header must be inside, and the rest is checked with it
  const bytes = isWrite ? areaBytes(components, isCompacted) : EXTENDED_REGION;
  const area = cpu.linear(operandSegment(cpu), operandOffset(cpu), bytes, isWrite);
  if ((area & 63n) !== 0n) cpu.raise(GP, 0);
  return { components, area };
}

const at = (area: Gva, offset: number): Gva => BigInt.asUintN(64, area + BigInt(offset)) as Gva;

const buffer = new Uint8Array(4096);
const bufferView = new DataView(buffer.buffer);

/** Parts of the buffer that an instruction writes: start and length in turns. */
type Parts = number[];

function save(cpu: Cpu, kind: XsaveKind, wide: boolean): void {
  const { components, area } = begin(cpu, kind);
  const isCompacted = kind === XsaveKind.xsavec || kind === XsaveKind.xsaves;
  let inUse = componentsInUse(cpu, components);
  if (isCompacted && (components & Xstate.sse) !== 0 && !isMxcsrInitial(cpu)) inUse |= Xstate.sse;
  const written = kind === XsaveKind.xsave ? components : inUse;
  const parts: Parts = [];
  if ((written & Xstate.x87) !== 0) {
    saveX87(cpu, bufferView, wide);
    parts.push(0, 24, 32, 128);
  }
  const savesMxcsr = isCompacted ? written & Xstate.sse : components & (Xstate.sse | Xstate.avx);
  if (savesMxcsr !== 0) {
    saveMxcsr(cpu, bufferView);
    parts.push(24, 8);
  }
  if ((written & Xstate.sse) !== 0) {
    buffer.set(cpu.u8.subarray(state.xmm, state.xmm + xmmBytes(cpu)), XMM_AT);
    parts.push(XMM_AT, xmmBytes(cpu));
  }
  for (const component of COMPONENTS) {
    if ((written & component.bit) === 0) continue;
    const to = isCompacted ? compactedOffset(components, component) : component.offset;
    const bytes = visibleBytes(cpu, component);
    buffer.set(cpu.u8.subarray(component.registers, component.registers + bytes), to);
    parts.push(to, bytes);
  }
  if (isCompacted) {
    bufferView.setUint32(XSAVE_HEADER, inUse, true);
    bufferView.setUint32(XSAVE_HEADER + 4, 0, true);
    bufferView.setUint32(XSAVE_HEADER + 8, components, true);
    bufferView.setUint32(XSAVE_HEADER + 12, COMPACTED, true);
    parts.push(XSAVE_HEADER, 16);
  } else {
    const before = cpu.readLinear(at(area, XSAVE_HEADER), 8);
    const kept = before & ~BigInt(components);
    bufferView.setBigUint64(XSAVE_HEADER, kept | BigInt(inUse), true);
    parts.push(XSAVE_HEADER, 8);
  }
  for (let i = 0; i < parts.length; i += 2) cpu.probeWrite(at(area, parts[i]), parts[i + 1]);
  for (let i = 0; i < parts.length; i += 2) {
    cpu.writeLinearBytes(at(area, parts[i]), buffer.subarray(parts[i], parts[i] + parts[i + 1]));
  }
}

/** Reads and checks the header; XCOMP_BV without bit 63, undefined for the standard format. Leaves XSTATE_BV in the buffer. */
function readHeader(cpu: Cpu, area: Gva, kind: XsaveKind): number | undefined {
  const header = buffer.subarray(XSAVE_HEADER, XSAVE_HEADER + XSAVE_HEADER_BYTES);
  cpu.readLinearBytes(at(area, XSAVE_HEADER), header);
  const enabled = BigInt(cpu.u32[state.xcr0 >>> 2] | (kind === XsaveKind.xrstors ? cpu.u32[state.xss >>> 2] : 0));
  const present = bufferView.getBigUint64(XSAVE_HEADER, true);
  const layout = bufferView.getBigUint64(XSAVE_HEADER + 8, true);
  const isCompacted = layout >> 63n !== 0n;
  const saved = BigInt.asUintN(63, layout);
  let isBad: boolean;
  if (isCompacted)
    isBad = (saved & ~enabled) !== 0n || (present & ~saved) !== 0n || header.subarray(16).some((byte) => byte !== 0);
  else isBad = kind === XsaveKind.xrstors || (present & ~enabled) !== 0n || header.subarray(8, 24).some((byte) => byte !== 0);
  if (isBad) cpu.raise(GP, 0);
  return isCompacted ? Number(saved) : undefined;
}

function restore(cpu: Cpu, kind: XsaveKind, wide: boolean): void {
  const { components, area } = begin(cpu, kind);
  const layout = readHeader(cpu, area, kind);
  const present = bufferView.getUint32(XSAVE_HEADER, true) & components;
  cpu.linear(operandSegment(cpu), operandOffset(cpu), areaBytes(layout ?? components, layout !== undefined), false);
  // All of it is read before anything changes
  const read = (start: number, bytes: number): void => {
    cpu.readLinearBytes(at(area, start), buffer.subarray(start, start + bytes));
  };
  if ((present & Xstate.x87) !== 0) read(0, 160);
  const loadsMxcsr = layout !== undefined ? present & Xstate.sse : components & (Xstate.sse | Xstate.avx);
  let mxcsr = MXCSR_INITIAL;
  if (loadsMxcsr !== 0) {
    read(24, 8);
    mxcsr = checkedMxcsr(cpu, bufferView);
  }
  if ((present & Xstate.sse) !== 0) read(XMM_AT, xmmBytes(cpu));
  const whereIs = (component: Component): number =>
    layout !== undefined ? compactedOffset(layout, component) : component.offset;
  for (const component of COMPONENTS) {
    if ((present & component.bit) !== 0) read(whereIs(component), visibleBytes(cpu, component));
  }

  if ((present & Xstate.x87) !== 0) loadX87(cpu, bufferView, wide);
  else if ((components & Xstate.x87) !== 0) clearX87(cpu);
  if (loadsMxcsr !== 0 || (components & Xstate.sse) !== 0) cpu.u32[state.mxcsr >> 2] = mxcsr;
  if ((components & Xstate.sse) !== 0) load(cpu, state.xmm, xmmBytes(cpu), (present & Xstate.sse) !== 0 ? XMM_AT : -1);
  for (const component of COMPONENTS) {
    if ((components & component.bit) === 0) continue;
    const from = (present & component.bit) !== 0 ? whereIs(component) : -1;
    load(cpu, component.registers, visibleBytes(cpu, component), from);
    if (component.bit === Xstate.pkru) keyRightsChanged(cpu);
  }
}

/** Registers from the buffer, or their initial zeros (-1). */
function load(cpu: Cpu, registers: number, bytes: number, from: number): void {
  if (from < 0) cpu.u8.fill(0, registers, registers + bytes);
  else cpu.u8.set(buffer.subarray(from, from + bytes), registers);
}

/** Whether XCR0 may have this value: x87 always, AVX with SSE, and only what the model has. */
export function isXcr0(cpu: Cpu, value: bigint): boolean {
  return (value & ~cpu.model.xcr0Allowed) === 0n && (value & 1n) !== 0n && (value & 6n) !== 4n;
}

export const xsaveHelpers: HelperTable = {
  /** XsaveKind and operand size. */
  xsave(cpu, kind, size) {
    save(cpu, kind as XsaveKind, size === 64);
  },
  xrstor(cpu, kind, size) {
    restore(cpu, kind as XsaveKind, size === 64);
  },
  xgetbv(cpu) {
    requireXsave(cpu);
    const index = low(cpu, RCX);
    if (index > 1) cpu.raise(GP, 0);
    const xcr0 = cpu.u32[state.xcr0 >>> 2];
    cpu.setReg(RAX, BigInt(index === 0 ? xcr0 : componentsInUse(cpu, xcr0)));
    cpu.setReg(RDX, 0n);
  },
  xsetbv(cpu) {
    requireXsave(cpu);
    if (cpu.u32[state.cpl >>> 2] !== 0) cpu.raise(GP, 0);
    if (cpu.guest.xsetbv()) return;
    const value = (BigInt(low(cpu, RDX)) << 32n) | BigInt(low(cpu, RAX));
    if (low(cpu, RCX) !== 0 || !isXcr0(cpu, value)) cpu.raise(GP, 0);
    cpu.set64(state.xcr0, value);
  },
};
