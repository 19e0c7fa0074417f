/** Segment registers and the instructions that examine descriptors. */
import type { Cpu } from "../cpu.ts";
import { CS, LDTR, SS, state, TR } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Vector } from "./bits.ts";
import {
  type Descriptor,
  dplOf,
  isApplication,
  isCode,
  isConforming,
  isNull,
  isWritableOrReadable,
  limitOf,
  readDescriptor,
  SystemType,
  selectorOf,
  typeOf,
} from "./descriptors.ts";
import { setResult } from "./helper-operands.ts";
import { checkUserMode } from "./helpers-registers.ts";
import { isCanonicalTop } from "./linear-address.ts";
import { cplOf, hasParagraphSegments, isLongMode } from "./processor-mode.ts";
import { loadLdt, loadSegment, loadTaskRegister } from "./segmentation.ts";

function requireProtected(cpu: Cpu): void {
  if (hasParagraphSegments(cpu)) cpu.raise(Vector.UD);
}

/** The descriptor that LAR, LSL, VERR and VERW look at; undefined where they clear ZF. */
function examined(cpu: Cpu, selector: number): Descriptor | undefined {
  if (isNull(selector)) return undefined;
  const descriptor = readDescriptor(cpu, selector & 0xffff);
  if (descriptor === undefined) return undefined;
  const isFree = isCode(descriptor) && isConforming(descriptor);
  const level = Math.max(cplOf(cpu), selector & 3);
  return isFree || dplOf(descriptor) >= level ? descriptor : undefined;
}

const LIMIT_TYPES_LONG: readonly number[] = [SystemType.ldt, SystemType.availableTss, SystemType.busyTss];
const LIMIT_TYPES: readonly number[] = [...LIMIT_TYPES_LONG, SystemType.availableTss16, SystemType.busyTss16];
const RIGHTS_TYPES_LONG: readonly number[] = [...LIMIT_TYPES_LONG, SystemType.callGate];
const RIGHTS_TYPES: readonly number[] = [...LIMIT_TYPES, SystemType.callGate16, SystemType.taskGate, SystemType.callGate];

function hasType(cpu: Cpu, descriptor: Descriptor, types: readonly number[], longTypes: readonly number[]): boolean {
  return isApplication(descriptor) || (isLongMode(cpu) ? longTypes : types).includes(typeOf(descriptor));
}

export const segmentHelpers: HelperTable = {
  /** MOV to, POP of and LxS. MOV SS and POP SS hold off events for an instruction. */
  loadSegment(cpu, segment, selector, blocks) {
    if (segment === CS || segment > 5) cpu.raise(Vector.UD);
    loadSegment(cpu, segment, selector);
    if (segment === SS && blocks !== 0) cpu.set32(state.interruptibility, cpu.get32(state.interruptibility) | 2);
  },
  /** Selector of ES to GS; #UD for numbers that name no register. */
  readSegment(cpu, segment) {
    if (segment > 5) cpu.raise(Vector.UD);
    return selectorOf(cpu, segment);
  },
  loadLdt(cpu, selector) {
    requireProtected(cpu);
    if (cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
    loadLdt(cpu, selector & 0xffff);
  },
  loadTaskRegister(cpu, selector) {
    requireProtected(cpu);
    if (cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
    loadTaskRegister(cpu, selector & 0xffff);
  },
  /** Before an operand in memory is touched: the exit on descriptor-table access. 0 SLDT, 1 STR, 2 LLDT, 3 LTR. */
  descriptorTableAccess(cpu, which) {
    requireProtected(cpu);
    if (which >= 2 && cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
    if (which < 2) checkUserMode(cpu);
    cpu.guest.descriptorTable(["SLDT", "STR", "LLDT", "LTR"][which]);
  },
  storeLdt: (cpu) => selectorOf(cpu, LDTR),
  storeTaskRegister: (cpu) => selectorOf(cpu, TR),
  /** LAR: 1 and the rights in result 0, or 0. */
  loadAccessRights(cpu, selector) {
    requireProtected(cpu);
    const descriptor = examined(cpu, selector);
    if (descriptor === undefined || !hasType(cpu, descriptor, RIGHTS_TYPES, RIGHTS_TYPES_LONG)) return 0;
    setResult(cpu, BigInt((descriptor.high & 0x00f0_ff00) >>> 0));
    return 1;
  },
  /** LSL: 1 and the limit in bytes in result 0, or 0. */
  loadSegmentLimit(cpu, selector) {
    requireProtected(cpu);
    const descriptor = examined(cpu, selector);
    if (descriptor === undefined || !hasType(cpu, descriptor, LIMIT_TYPES, LIMIT_TYPES_LONG)) return 0;
    setResult(cpu, BigInt(limitOf(descriptor)));
    return 1;
  },
  /** VERR (0) and VERW (1): whether the segment can be read or written from here. */
  verifySegment(cpu, selector, isWrite) {
    requireProtected(cpu);
    const descriptor = examined(cpu, selector);
    if (descriptor === undefined || !isApplication(descriptor)) return 0;
    if (isWrite !== 0) return !isCode(descriptor) && isWritableOrReadable(descriptor) ? 1 : 0;
    return !isCode(descriptor) || isWritableOrReadable(descriptor) ? 1 : 0;
  },
  /** WRFSBASE and WRGSBASE of a base that takes more than 48 bits, by its upper half. */
  checkWideBase(cpu, high) {
    if (!isCanonicalTop(high, cpu.model.linearAddressBits)) cpu.raise(Vector.GP, 0);
  },
  requireProtectedMode: (cpu) => requireProtected(cpu),
};
