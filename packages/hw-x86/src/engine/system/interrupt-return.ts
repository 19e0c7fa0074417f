/** IRET, IRETD and IRETQ in every mode (Intel SDM Vol. 2A, IRET/IRETD/IRETQ - Interrupt Return). */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, DS, ES, FS, GS, gprOffset, RSP, SS, state, TR } from "../cpu-state.ts";
import { FLAGS_DEFINED, FLAGS_FIXED, Flag, Vector } from "./bits.ts";
import { checkTarget, checkTargetHalves, loadCode } from "./code-segment.ts";
import { isLongCode, segmentBase64, segmentLimit, VIRTUAL_8086_ACCESS, writeSegment } from "./descriptors.ts";
import {
  dropInnerSegments,
  loadParagraphCode,
  loadReturnStack,
  outerPointer,
  returnCode,
  returnStack,
  type TransferBytes,
} from "./far-transfers.ts";
import {
  changeFlags,
  cplOf,
  hasParagraphSegments,
  ioplOf,
  is64Bit,
  isLongMode,
  isProtected,
  isVirtual8086,
  setCpl,
} from "./processor-mode.ts";
import { markAccessed, updateSegment, updateSegments } from "./segmentation.ts";
import { movedStackPointer, peek, peekAt, topOfStack } from "./stack-frame.ts";
import { switchTask } from "./task-switch.ts";
import { switchTags } from "./translation-caches.ts";
import { fromVirtualImage, hasAwaitedInterrupt, hasVirtualFlags } from "./virtual-8086-extensions.ts";

const RSP_LOW = gprOffset(RSP) >>> 2;

/**
 * RFLAGS after POPF or IRET of `popped` at privilege `cpl`: IOPL changes at CPL 0 only, IF where CPL <= IOPL; 16-bit forms
 * leave the upper half. VM and RF are the caller's, and so are VIF and VIP.
 */
export function mergedFlags(cpu: Cpu, popped: number, bytes: TransferBytes, cpl: number): number {
  let writable = FLAGS_DEFINED & ~(Flag.VM | Flag.RF | Flag.VIF | Flag.VIP | Flag.IOPL | Flag.IF);
  if (cpl === 0) writable |= Flag.IOPL;
  if (cpl <= ioplOf(cpu)) writable |= Flag.IF;
  if (bytes === 2) writable &= 0xffff;
  return (cpu.readFlags() & ~writable) | (popped & writable) | FLAGS_FIXED;
}

/** The same for IRET, which at CPL 0 loads VIF and VIP too, unless they are out of a 16-bit image's reach. */
function mergedReturn(cpu: Cpu, popped: number, bytes: TransferBytes, cpl: number): number {
  const flags = mergedFlags(cpu, popped, bytes, cpl);
  const loaded = cpl === 0 && bytes !== 2 ? Flag.VIF | Flag.VIP : 0;
  return (flags & ~loaded) | (popped & loaded);
}

/** IRET ends blocking by NMI, also when it faults; virtual NMIs are the vendor's. */
function unblockNmis(cpu: Cpu): void {
  cpu.set32(state.interruptibility, cpu.get32(state.interruptibility) & ~8);
  if (cpu.guest.windowOpened()) cpu.requestStop();
}

function returnToVirtual8086(cpu: Cpu, rip: bigint, selector: number, flags: number): void {
  const rsp = peek(cpu, 3, 4);
  const order = [SS, ES, DS, FS, GS];
  const selectors = order.map((_, i) => Number(peek(cpu, 4 + i, 4)) & 0xffff);
  if (rip > 0xffffn) cpu.raise(Vector.GP, 0);
  for (let i = 0; i < order.length; i++)
    writeSegment(cpu, order[i], selectors[i], selectors[i] << 4, 0xffff, VIRTUAL_8086_ACCESS);
  writeSegment(cpu, CS, selector, selector << 4, 0xffff, VIRTUAL_8086_ACCESS);
  cpu.setReg(RSP, rsp);
  cpu.set32(state.systemFlags, cpu.get32(state.systemFlags) | Flag.VM);
  cpu.setNextRip(rip);
  updateSegments(cpu);
  changeFlags(cpu, (flags & FLAGS_DEFINED) | FLAGS_FIXED | Flag.VM);
  // At the first instruction there, which does not run
  if (!hasAwaitedInterrupt(cpu)) return;
  unblockNmis(cpu);
  cpu.set64(state.rip, rip);
  cpu.raise(Vector.GP, 0);
}

function returnFromParagraph(cpu: Cpu, bytes: TransferBytes, rip: bigint, selector: number, popped: number): void {
  if (rip > BigInt(segmentLimit(cpu, CS))) cpu.raise(Vector.GP, 0);
  // In virtual-8086 mode IOPL keeps its value, though IF changes.
  let flags = hasVirtualFlags(cpu) ? fromVirtualImage(cpu, popped) : mergedReturn(cpu, popped, bytes, cplOf(cpu));
  if (bytes === 4) flags = (flags & ~Flag.RF) | (popped & Flag.RF);
  cpu.setReg(RSP, movedStackPointer(cpu, bytes * 3));
  loadParagraphCode(cpu, selector, rip);
  changeFlags(cpu, flags);
}

/** With NT set IRET returns to the task in the back link. */
function returnToTask(cpu: Cpu): void {
  if (isLongMode(cpu)) cpu.raise(Vector.GP, 0);
  const link = Number(cpu.readLinear(segmentBase64(cpu, TR) as Gva, 2, true));
  const old = { returnRip: cpu.nextRip(), flags: cpu.readFlags() };
  switchTask(cpu, link, { source: "iret", external: 0, errorCode: undefined, ...old });
  cpu.setNextRip(cpu.get64(state.rip));
  unblockNmis(cpu);
}

const half = (cpu: Cpu, at: number, bytes: TransferBytes): number =>
  bytes === 2 ? cpu.view.getUint16(at, true) : cpu.view.getUint32(at, true);
const upperHalf = (cpu: Cpu, at: number, bytes: TransferBytes): number => (bytes === 8 ? cpu.view.getUint32(at + 4, true) : 0);

/**
 * IRET of 64-bit code, which pops a stack pointer whatever it returns to. Kernels end every event with one, and serialise the processor
 * with thousands: addresses travel as halves.
 */
function returnFrom64Bit(cpu: Cpu, bytes: TransferBytes): void {
  const top = topOfStack(cpu, 5 * bytes);
  let at = top < 0 ? peekAt(cpu, 0, bytes) : top;
  const ripLow = half(cpu, at, bytes);
  const ripHigh = upperHalf(cpu, at, bytes);
  const selector = cpu.view.getUint16(top < 0 ? peekAt(cpu, bytes, bytes) : top + bytes, true);
  const popped = half(cpu, top < 0 ? peekAt(cpu, 2 * bytes, bytes) : top + 2 * bytes, bytes);
  const code = returnCode(cpu, selector);
  const cpl = selector & 3;
  const oldCpl = cplOf(cpu);
  let flags = mergedReturn(cpu, popped, bytes, oldCpl);
  if (bytes !== 2) flags = (flags & ~Flag.RF) | (popped & Flag.RF);
  at = top < 0 ? peekAt(cpu, 3 * bytes, bytes) : top + 3 * bytes;
  const rspLow = half(cpu, at, bytes);
  const rspHigh = upperHalf(cpu, at, bytes);
  const stackSelector = cpu.view.getUint16(top < 0 ? peekAt(cpu, 4 * bytes, bytes) : top + 4 * bytes, true);
  const toLong = isLongCode(code);
  const stack = returnStack(cpu, stackSelector, cpl, toLong);
  checkTargetHalves(cpu, code, ripLow, ripHigh);
  if (stack !== undefined) markAccessed(cpu, stackSelector, stack);
  loadCode(cpu, selector, code, cpl);
  loadReturnStack(cpu, stackSelector, stack, cpl);
  if (toLong) {
    cpu.u32[RSP_LOW] = rspLow;
    cpu.u32[RSP_LOW + 1] = rspHigh;
  } else cpu.setReg(RSP, outerPointer(cpu, BigInt(rspLow), stack, false));
  cpu.setNextRipHalves(ripLow, ripHigh);
  if (cpl > oldCpl) dropInnerSegments(cpu, cpl);
  if (!toLong) updateSegments(cpu);
  else if (cpl > oldCpl) {
    // Of what 64-bit code derives from segments, bases and the privilege can have changed
    updateSegment(cpu, FS);
    updateSegment(cpu, GS);
    setCpl(cpu, cpl);
    switchTags(cpu);
  }
  changeFlags(cpu, flags);
  unblockNmis(cpu);
}

export function interruptReturn(cpu: Cpu, bytes: TransferBytes): void {
  const inParagraphs = hasParagraphSegments(cpu);
  if (isProtected(cpu) && !isVirtual8086(cpu) && (cpu.readFlags() & Flag.NT) !== 0) {
    returnToTask(cpu);
    return;
  }
  if (isVirtual8086(cpu) && ioplOf(cpu) < 3 && (bytes !== 2 || !hasVirtualFlags(cpu))) cpu.raise(Vector.GP, 0);
  if (is64Bit(cpu)) {
    returnFrom64Bit(cpu, bytes);
    return;
  }
  const rip = peek(cpu, 0, bytes);
  const selector = Number(peek(cpu, 1, bytes)) & 0xffff;
  const popped = Number(peek(cpu, 2, bytes) & 0xffff_ffffn);
  if (inParagraphs) {
    returnFromParagraph(cpu, bytes, rip, selector, popped);
    unblockNmis(cpu);
    return;
  }
  const oldCpl = cplOf(cpu);
  if (!isLongMode(cpu) && oldCpl === 0 && bytes === 4 && (popped & Flag.VM) !== 0) {
    returnToVirtual8086(cpu, rip, selector, popped);
    unblockNmis(cpu);
    return;
  }
  const code = returnCode(cpu, selector);
  const cpl = selector & 3;
  let flags = mergedReturn(cpu, popped, bytes, oldCpl);
  if (bytes !== 2) flags = (flags & ~Flag.RF) | (popped & Flag.RF);
  if (cpl === oldCpl) {
    checkTarget(cpu, code, rip);
    loadCode(cpu, selector, code, cpl);
    cpu.setReg(RSP, movedStackPointer(cpu, bytes * 3));
  } else {
    const rsp = peek(cpu, 3, bytes);
    const stackSelector = Number(peek(cpu, 4, bytes)) & 0xffff;
    const toLong = isLongMode(cpu) && isLongCode(code);
    const stack = returnStack(cpu, stackSelector, cpl, toLong);
    checkTarget(cpu, code, rip);
    if (stack !== undefined) markAccessed(cpu, stackSelector, stack);
    loadCode(cpu, selector, code, cpl);
    loadReturnStack(cpu, stackSelector, stack, cpl);
    cpu.setReg(RSP, outerPointer(cpu, rsp, stack, toLong));
    dropInnerSegments(cpu, cpl);
  }
  cpu.setNextRip(rip);
  updateSegments(cpu);
  changeFlags(cpu, flags);
  unblockNmis(cpu);
}
