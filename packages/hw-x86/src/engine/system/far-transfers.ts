/** Far JMP, CALL and RET, call gates included (Intel SDM Vol. 2A, JMP and CALL; Vol. 2B, RET). */
import type { Cpu } from "../cpu.ts";
import { CS, DS, ES, FS, GS, RSP, SEG_SELECTOR, SS, segmentOffset, state } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import { checkCode, checkDirectCode, checkTarget, loadCode } from "./code-segment.ts";
import {
  accessOf,
  type Descriptor,
  dplOf,
  gateOffset,
  gateSelector,
  isApplication,
  isBig,
  isCode,
  isConforming,
  isLongCode,
  isNull,
  isPresent,
  isWritableOrReadable,
  readDescriptor,
  readSystemDescriptor,
  SystemType,
  segmentLimit,
  selectorOf,
  typeOf,
  writeRealCodeSegment,
  writeSegment,
} from "./descriptors.ts";
import { cplOf, hasParagraphSegments, isLongMode, isVirtual8086 } from "./processor-mode.ts";
import { loadDescriptor, loadNull, markAccessed, updateSegments } from "./segmentation.ts";
import { checkRoom, movedStackPointer, peek, placeLong, pushed, pushLegacy, stackOf } from "./stack-frame.ts";
import { innerRspAt, innerStack } from "./task-state.ts";
import { switchTask } from "./task-switch.ts";

export type TransferBytes = 2 | 4 | 8;

/** CS:RIP in real and virtual-8086 mode. */
export function loadParagraphCode(cpu: Cpu, selector: number, rip: bigint): void {
  if (isVirtual8086(cpu)) writeSegment(cpu, CS, selector, selector << 4, 0xffff, 0xf3);
  else writeRealCodeSegment(cpu, selector);
  cpu.setNextRip(rip);
  updateSegments(cpu);
}

function jumpOrCallParagraph(cpu: Cpu, selector: number, rip: bigint, bytes: TransferBytes, isCall: boolean): void {
  if (rip > BigInt(segmentLimit(cpu, CS))) cpu.raise(Vector.GP, 0);
  if (isCall) {
    const rsp = pushed(cpu, bytes, [BigInt(selectorOf(cpu, CS)), cpu.nextRip()]);
    cpu.setReg(RSP, rsp);
  }
  loadParagraphCode(cpu, selector, rip);
}

/** The code segment that a call gate leads to. */
function gateTarget(cpu: Cpu, gate: Descriptor, isCall: boolean): Descriptor {
  const selector = gateSelector(gate);
  const error = selector & 0xfffc;
  if (isNull(selector)) cpu.raise(Vector.GP, 0);
  const code = readDescriptor(cpu, selector);
  const cpl = cplOf(cpu);
  if (code === undefined || !isCode(code) || dplOf(code) > cpl) cpu.raise(Vector.GP, error);
  if (!isCall && !isConforming(code) && dplOf(code) !== cpl) cpu.raise(Vector.GP, error);
  if (isLongMode(cpu) && (!isLongCode(code) || isBig(code))) cpu.raise(Vector.GP, error);
  if (!isPresent(code)) cpu.raise(Vector.NP, error);
  return code;
}

function enterThroughGate(cpu: Cpu, code: Descriptor, selector: number, cpl: number, rip: bigint): void {
  loadCode(cpu, selector, code, cpl);
  cpu.setNextRip(rip);
  updateSegments(cpu);
}

/** CALL to an inner privilege level through a gate: a new stack, with parameters copied outside long mode. */
function callInner(cpu: Cpu, gate: Descriptor, code: Descriptor, rip: bigint): void {
  const level = dplOf(code);
  const oldSs = selectorOf(cpu, SS);
  const oldRsp = cpu.reg(RSP);
  const oldCs = selectorOf(cpu, CS);
  if (isLongMode(cpu)) {
    const stack = cpu.view.getBigUint64(innerRspAt(cpu, level, 0), true);
    const frame = placeLong(cpu, stack, [BigInt(oldSs), oldRsp, BigInt(oldCs), cpu.nextRip()], 0);
    checkTarget(cpu, code, rip);
    frame.push(cpu, true);
    markAccessed(cpu, gateSelector(gate), code);
    loadNull(cpu, SS, level, level);
    frame.takeStack(cpu);
    enterThroughGate(cpu, code, gateSelector(gate), level, rip);
    return;
  }
  const bytes = typeOf(gate) === SystemType.callGate ? 4 : 2;
  const inner = innerStack(cpu, level, 0);
  const stack = stackOf(inner.descriptor, inner.selector & 0xfffc);
  const parameters = gate.high & 31;
  checkRoom(cpu, stack, inner.pointer, bytes, parameters + 4);
  checkTarget(cpu, code, rip);
  const frame = [oldSs, Number(BigInt.asUintN(32, oldRsp))];
  for (let i = parameters - 1; i >= 0; i--) frame.push(Number(peek(cpu, i, bytes)));
  frame.push(oldCs, Number(BigInt.asUintN(32, cpu.nextRip())));
  const pointer = pushLegacy(cpu, stack, inner.pointer, bytes, frame, true);
  markAccessed(cpu, inner.selector, inner.descriptor);
  markAccessed(cpu, gateSelector(gate), code);
  loadDescriptor(cpu, SS, inner.selector, inner.descriptor);
  cpu.setReg(RSP, BigInt(pointer));
  enterThroughGate(cpu, code, gateSelector(gate), level, rip);
}

function throughGate(cpu: Cpu, gate: Descriptor, isCall: boolean): void {
  const code = gateTarget(cpu, gate, isCall);
  let rip = BigInt(gateOffset(gate));
  if (isLongMode(cpu)) rip |= BigInt(gate.upper) << 32n;
  else if (typeOf(gate) === SystemType.callGate16) rip &= 0xffffn;
  if (isCall && !isConforming(code) && dplOf(code) < cplOf(cpu)) {
    callInner(cpu, gate, code, rip);
    return;
  }
  const cpl = cplOf(cpu);
  const link = [BigInt(selectorOf(cpu, CS)), cpu.nextRip()];
  if (isLongMode(cpu)) {
    // The gate leads to 64-bit code, and what it pushes is 64-bit code's, wherever the call is from
    const frame = isCall ? placeLong(cpu, cpu.reg(RSP), link, 0) : undefined;
    checkTarget(cpu, code, rip);
    frame?.push(cpu, cpl < 3);
    markAccessed(cpu, gateSelector(gate), code);
    frame?.takeStack(cpu);
  } else {
    checkTarget(cpu, code, rip);
    const rsp = isCall ? pushed(cpu, typeOf(gate) === SystemType.callGate16 ? 2 : 4, link) : cpu.reg(RSP);
    markAccessed(cpu, gateSelector(gate), code);
    cpu.setReg(RSP, rsp);
  }
  enterThroughGate(cpu, code, gateSelector(gate), cpl, rip);
}

/** System descriptors as targets: call gates, task gates and TSSs. */
function throughSystem(cpu: Cpu, selector: number, isCall: boolean): void {
  const error = selector & 0xfffc;
  const gate = readSystemDescriptor(cpu, selector);
  if (gate === undefined || isApplication(gate)) cpu.raise(Vector.GP, error);
  const type = typeOf(gate);
  const isGate = type === SystemType.callGate || (!isLongMode(cpu) && type === SystemType.callGate16);
  const isTask =
    !isLongMode(cpu) &&
    (type === SystemType.taskGate || type === SystemType.availableTss || type === SystemType.availableTss16);
  if (!isGate && !isTask) cpu.raise(Vector.GP, error);
  if (dplOf(gate) < cplOf(cpu) || dplOf(gate) < (selector & 3)) cpu.raise(Vector.GP, error);
  if (!isPresent(gate)) cpu.raise(Vector.NP, error);
  if (isGate) {
    throughGate(cpu, gate, isCall);
    return;
  }
  const target = type === SystemType.taskGate ? gateSelector(gate) : selector;
  const old = { returnRip: cpu.nextRip(), flags: cpu.readFlags() };
  switchTask(cpu, target, { source: isCall ? "call" : "jmp", external: 0, errorCode: undefined, ...old });
  cpu.setNextRip(cpu.get64(state.rip));
}

/** Far JMP or CALL to selector:rip with an operand size of `bytes`. */
export function jumpOrCallFar(cpu: Cpu, selector: number, rip: bigint, bytes: TransferBytes, isCall: boolean): void {
  if (hasParagraphSegments(cpu)) {
    jumpOrCallParagraph(cpu, selector, rip, bytes, isCall);
    return;
  }
  if (isNull(selector)) cpu.raise(Vector.GP, 0);
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined) cpu.raise(Vector.GP, selector & 0xfffc);
  if (!isApplication(descriptor)) {
    throughSystem(cpu, selector, isCall);
    return;
  }
  const cpl = cplOf(cpu);
  checkDirectCode(cpu, descriptor, selector, cpl);
  checkTarget(cpu, descriptor, rip);
  const rsp = isCall ? pushed(cpu, bytes, [BigInt(selectorOf(cpu, CS)), cpu.nextRip()]) : cpu.reg(RSP);
  markAccessed(cpu, selector, descriptor);
  cpu.setReg(RSP, rsp);
  enterThroughGate(cpu, descriptor, selector, cpl, rip);
}

/** The code segment that RET or IRET returns to, checked against the RPL that becomes the CPL. */
export function returnCode(cpu: Cpu, selector: number): Descriptor {
  const error = selector & 0xfffc;
  if (isNull(selector)) cpu.raise(Vector.GP, 0);
  const code = readDescriptor(cpu, selector);
  const rpl = selector & 3;
  if (code === undefined || !isCode(code) || rpl < cplOf(cpu)) cpu.raise(Vector.GP, error);
  if (isConforming(code) ? dplOf(code) > rpl : dplOf(code) !== rpl) cpu.raise(Vector.GP, error);
  checkCode(cpu, code, error);
  return code;
}

/** The stack segment that a return to privilege `cpl` loads; undefined for the null selector that 64-bit code may have. */
export function returnStack(cpu: Cpu, selector: number, cpl: number, toLongCode: boolean): Descriptor | undefined {
  const error = selector & 0xfffc;
  if (isNull(selector)) {
    if (!toLongCode || cpl === 3 || (selector & 3) !== cpl) cpu.raise(Vector.GP, 0);
    return undefined;
  }
  const stack = readDescriptor(cpu, selector);
  if (
    stack === undefined ||
    !isApplication(stack) ||
    isCode(stack) ||
    !isWritableOrReadable(stack) ||
    (selector & 3) !== cpl ||
    dplOf(stack) !== cpl
  ) {
    cpu.raise(Vector.GP, error);
  }
  if (!isPresent(stack)) cpu.raise(Vector.SS, error);
  return stack;
}

const DATA_SEGMENTS = [ES, DS, FS, GS] as const;
/** After a return to an outer level: data segments that it may not use become null, and null ones lose their RPL. */
export function dropInnerSegments(cpu: Cpu, cpl: number): void {
  for (const segment of DATA_SEGMENTS) {
    const access = accessOf(cpu, segment);
    if (isNull(selectorOf(cpu, segment))) cpu.set32(segmentOffset(segment) + SEG_SELECTOR, 0);
    if ((access & Access.unusable) !== 0) continue;
    const isConformingCode = (access & (Access.code | Access.conforming)) === (Access.code | Access.conforming);
    if (!isConformingCode && ((access >>> Access.dplShift) & 3) < cpl) loadNull(cpu, segment, 0, 0);
  }
}

export function loadReturnStack(cpu: Cpu, selector: number, stack: Descriptor | undefined, cpl: number): void {
  if (stack === undefined) loadNull(cpu, SS, selector, cpl);
  else loadDescriptor(cpu, SS, selector, stack);
}

/** Stack pointer of an outer level as popped, for 64-bit code or not: into a 16-bit stack go 16 bits, and the rest stays as it was. */
export function outerPointer(cpu: Cpu, value: bigint, stack: Descriptor | undefined, toLong: boolean): bigint {
  if (toLong || stack === undefined) return value;
  if (isBig(stack)) return BigInt.asUintN(32, value);
  return (cpu.reg(RSP) & ~0xffffn) | (value & 0xffffn);
}

/** Far RET with `release` bytes of parameters. */
export function returnFar(cpu: Cpu, bytes: TransferBytes, release: number): void {
  const rip = peek(cpu, 0, bytes);
  const selector = Number(peek(cpu, 1, bytes)) & 0xffff;
  if (hasParagraphSegments(cpu)) {
    if (rip > BigInt(segmentLimit(cpu, CS))) cpu.raise(Vector.GP, 0);
    cpu.setReg(RSP, movedStackPointer(cpu, bytes * 2 + release));
    loadParagraphCode(cpu, selector, rip);
    return;
  }
  const code = returnCode(cpu, selector);
  const cpl = selector & 3;
  if (cpl === cplOf(cpu)) {
    checkTarget(cpu, code, rip);
    loadCode(cpu, selector, code, cpl);
    cpu.setReg(RSP, movedStackPointer(cpu, bytes * 2 + release));
  } else {
    const outerRsp = peek(cpu, 2, bytes, release);
    const outerSs = Number(peek(cpu, 3, bytes, release)) & 0xffff;
    const isLong = isLongMode(cpu) && isLongCode(code);
    const stack = returnStack(cpu, outerSs, cpl, isLong);
    checkTarget(cpu, code, rip);
    if (stack !== undefined) markAccessed(cpu, outerSs, stack);
    loadCode(cpu, selector, code, cpl);
    loadReturnStack(cpu, outerSs, stack, cpl);
    const mask = isLong ? 0xffff_ffff_ffff_ffffn : stack !== undefined && isBig(stack) ? 0xffff_ffffn : 0xffffn;
    const pointer = outerPointer(cpu, outerRsp, stack, isLong);
    cpu.setReg(RSP, (pointer & ~mask) | ((pointer + BigInt(release)) & mask));
    dropInnerSegments(cpu, cpl);
  }
  cpu.setNextRip(rip);
  updateSegments(cpu);
}
