/** Loading CS: the checks that far transfers share, and entry at a privilege level. */
import type { Cpu } from "../cpu.ts";
import { CS, SEG_ACCESS, SEG_SELECTOR, SS, segmentOffset } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import {
  accessOf,
  type Descriptor,
  dplOf,
  isBig,
  isCode,
  isConforming,
  isLongCode,
  isPresent,
  limitOf,
  writeSegment,
} from "./descriptors.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { isLongMode } from "./processor-mode.ts";
import { loadDescriptor, updateSegments } from "./segmentation.ts";

/** #GP when it says both 64-bit and 32-bit, #NP when absent. */
export function checkCode(cpu: Cpu, descriptor: Descriptor, error: number): void {
  if (isLongMode(cpu) && isLongCode(descriptor) && isBig(descriptor)) cpu.raise(Vector.GP, error);
  if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
}

/** Direct far JMP and CALL, where privilege does not change. */
export function checkDirectCode(cpu: Cpu, descriptor: Descriptor, selector: number, cpl: number): void {
  const error = selector & 0xfffc;
  if (!isCode(descriptor)) cpu.raise(Vector.GP, error);
  const dpl = dplOf(descriptor);
  if (isConforming(descriptor) ? dpl > cpl : (selector & 3) > cpl || dpl !== cpl) cpu.raise(Vector.GP, error);
  checkCode(cpu, descriptor, error);
}

/** #GP(error) unless the instruction pointer is inside the segment, or canonical for 64-bit code. */
export function checkTarget(cpu: Cpu, descriptor: Descriptor, rip: bigint, error = 0): void {
  checkTargetHalves(cpu, descriptor, Number(BigInt.asUintN(32, rip)), Number(BigInt.asUintN(32, rip >> 32n)), error);
}
/** The same for an instruction pointer in halves, unsigned. */
export function checkTargetHalves(cpu: Cpu, descriptor: Descriptor, low: number, high: number, error = 0): void {
  if (isLongMode(cpu) && isLongCode(descriptor)) {
    if (!isCanonicalHigh(cpu, high)) cpu.raise(Vector.GP, error);
  } else if (high !== 0 || low > limitOf(descriptor)) cpu.raise(Vector.GP, error);
}

/** Loads CS with `cpl` as its RPL. SS's DPL must be, or become, `cpl` before `updateSegments`. */
export function loadCode(cpu: Cpu, selector: number, descriptor: Descriptor, cpl: number): void {
  loadDescriptor(cpu, CS, (selector & 0xfffc) | cpl, descriptor);
}

/** Rights of the flat segments that SYSCALL and its kin load without reading descriptors. */
export const FLAT_CODE_64 = 0xa09b;
export const FLAT_CODE_32 = 0xc09b;
export const FLAT_DATA = 0xc093;

/**
 * CS and SS as SYSCALL, SYSRET, SYSENTER and SYSEXIT load them: flat, privilege `cpl`. `keepsStack`: SS gets the selector alone, as with
 * SYSRET of AMD's processors (AMD64 APM Vol. 3, SYSRET).
 */
export function loadFlat(cpu: Cpu, code: number, stack: number, cpl: number, is64: boolean, keepsStack = false): void {
  const dpl = cpl << Access.dplShift;
  const stackSelector = (stack & 0xfffc) | cpl;
  writeSegment(cpu, CS, (code & 0xfffc) | cpl, 0, 0xffff_ffff, (is64 ? FLAT_CODE_64 : FLAT_CODE_32) | dpl);
  if (keepsStack) {
    const slot = segmentOffset(SS);
    cpu.set32(slot + SEG_SELECTOR, stackSelector);
    // Here the privilege level is that of SS
    cpu.set32(slot + SEG_ACCESS, (accessOf(cpu, SS) & ~(3 << Access.dplShift)) | dpl);
  } else writeSegment(cpu, SS, stackSelector, 0, 0xffff_ffff, FLAT_DATA | dpl);
  updateSegments(cpu);
}
