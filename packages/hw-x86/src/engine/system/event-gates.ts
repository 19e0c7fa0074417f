/** The three ways through the interrupt table: real-mode vectors, protected-mode gates and long-mode gates. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, DS, ES, FS, GS, gprOffset, RSP, SS, state } from "../cpu-state.ts";
import type { GuestEvent } from "../system-interface.ts";
import { Flag, Vector } from "./bits.ts";
import { Dr6 } from "./breakpoints.ts";
import { checkTarget, loadCode } from "./code-segment.ts";
import {
  type Descriptor,
  descriptorAt,
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
  readBehind,
  readDescriptor,
  SystemType,
  selectorOf,
  typeOf,
  writeRealCodeSegment,
} from "./descriptors.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { cplOf, is64Bit, isLongMode, isVirtual8086, setCpl } from "./processor-mode.ts";
import { loadDescriptor, loadNull, markAccessed, updateSegments } from "./segmentation.ts";
import { checkRoom, currentStack, LongFrame, pushed, pushLegacy, stackOf } from "./stack-frame.ts";
import { innerRspAt, innerStack, interruptRspAt } from "./task-state.ts";
import { switchTask } from "./task-switch.ts";
import { switchTags } from "./translation-caches.ts";

/** EXT bit of error codes of faults met in delivery: the event did not come from INT n, INT3 or INTO. */
const externalBit = (event: GuestEvent): 0 | 1 => (event.type === 4 || event.type === 6 ? 0 : 1);

const isSoftware = ({ type }: GuestEvent): boolean => type === 4 || type === 5 || type === 6;

/** Where execution goes on after the handler: behind the instruction for software events. */
export function returnRip(cpu: Cpu, event: GuestEvent): bigint {
  const rip = cpu.get64(state.rip);
  if (!isSoftware(event)) return rip;
  const next = rip + BigInt(event.instructionLength);
  if (is64Bit(cpu)) return BigInt.asUintN(64, next);
  return BigInt.asUintN(cpu.u32[state.codeSize >>> 2] === 16 ? 16 : 32, next);
}

/**
 * RFLAGS as pushed: RF is set for faults, so that an instruction breakpoint does not hit again on return. The debug exceptions that
 * are faults are general detect, and instruction breakpoints, which leave RF to whoever handles them.
 */
function savedFlags(cpu: Cpu, event: GuestEvent): number {
  const flags = cpu.readFlags();
  const isFault = event.type === 3 && (event.vector !== Vector.DB || (Number(event.payload & 0xffffn) & Dr6.BD) !== 0);
  return isFault ? flags | Flag.RF : flags;
}

const RSP_AT = gprOffset(RSP);
const CLEARED = Flag.TF | Flag.NT | Flag.RF | Flag.VM;

export function deliverReal(cpu: Cpu, event: GuestEvent): void {
  const entry = event.vector * 4;
  if (entry + 3 > cpu.u32[state.idtrLimit >>> 2]) cpu.raise(Vector.GP, event.vector * 8 + 2 + externalBit(event));
  const target = Number(cpu.readLinear((cpu.get64(state.idtrBase) + BigInt(entry)) as Gva, 4, true));
  const flags = cpu.readFlags();
  const rsp = pushed(cpu, 2, [BigInt(flags), BigInt(selectorOf(cpu, CS)), returnRip(cpu, event)]);
  const selector = target >>> 16;
  cpu.setReg(RSP, rsp);
  cpu.set64(state.rip, BigInt(target & 0xffff));
  writeRealCodeSegment(cpu, selector);
  updateSegments(cpu);
  cpu.setFlags(flags & ~(Flag.IF | Flag.TF | Flag.RF | Flag.AC));
}

/** The gate for the event, checked; `bytes` is the size of an IDT entry. */
function readGate(cpu: Cpu, event: GuestEvent, bytes: 8 | 16): Descriptor {
  const external = externalBit(event);
  const error = event.vector * 8 + 2 + external;
  if (event.vector * bytes + bytes - 1 > cpu.u32[state.idtrLimit >>> 2]) cpu.raise(Vector.GP, error);
  // All of the entry that means anything is read before it is looked at
  const at = readBehind(cpu, state.idtrBase, event.vector * bytes, bytes === 16 ? 12 : 8);
  const gate = descriptorAt(cpu, at);
  if (bytes === 16) gate.upper = cpu.view.getUint32(at + 8, true);
  const type = typeOf(gate);
  const isGate = type === SystemType.interruptGate || type === SystemType.trapGate;
  const isLegacy = type === SystemType.interruptGate16 || type === SystemType.trapGate16 || type === SystemType.taskGate;
  if (isApplication(gate) || !(isGate || (bytes === 8 && isLegacy))) cpu.raise(Vector.GP, error);
  if ((event.type === 4 || event.type === 6) && dplOf(gate) < cplOf(cpu)) cpu.raise(Vector.GP, error);
  if (!isPresent(gate)) cpu.raise(Vector.NP, error);
  return gate;
}

/** The handler's code segment, and its privilege level. */
function readHandler(cpu: Cpu, selector: number, external: number): Descriptor {
  if (isNull(selector)) cpu.raise(Vector.GP, external);
  const error = (selector & 0xfffc) | external;
  const descriptor = readDescriptor(cpu, selector);
  if (descriptor === undefined || !isCode(descriptor) || dplOf(descriptor) > cplOf(cpu)) return cpu.raise(Vector.GP, error);
  // In long mode handlers are 64-bit code, present or not
  if (isLongMode(cpu) && (!isLongCode(descriptor) || isBig(descriptor))) cpu.raise(Vector.GP, error);
  if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
  return descriptor;
}

/** What the delivery in hand pushes. */
const frame = new LongFrame();

export function deliverLong(cpu: Cpu, event: GuestEvent): void {
  const external = externalBit(event);
  const gate = readGate(cpu, event, 16);
  const selector = gateSelector(gate);
  const code = readHandler(cpu, selector, external);
  const cpl = cplOf(cpu);
  const newCpl = isConforming(code) ? cpl : dplOf(code);
  const ist = gate.high & 7;
  let stackAt: number = RSP_AT;
  if (ist !== 0) stackAt = interruptRspAt(cpu, ist, external);
  else if (newCpl < cpl) stackAt = innerRspAt(cpu, newCpl, external);
  const stackLow = cpu.view.getUint32(stackAt, true);
  const stackHigh = cpu.view.getUint32(stackAt + 4, true);
  const flags = savedFlags(cpu, event);
  frame.begin();
  frame.add(selectorOf(cpu, SS), 0);
  frame.add(cpu.u32[RSP_AT >>> 2], cpu.u32[(RSP_AT >>> 2) + 1]);
  frame.add(flags, 0);
  frame.add(selectorOf(cpu, CS), 0);
  if (isSoftware(event)) {
    const rip = returnRip(cpu, event);
    frame.add(Number(BigInt.asUintN(32, rip)), Number(rip >> 32n));
  } else frame.add(cpu.u32[state.rip >>> 2], cpu.u32[(state.rip >>> 2) + 1]);
  if (event.errorCode !== undefined) frame.add(event.errorCode, 0);
  frame.place(cpu, (stackLow & ~15) >>> 0, stackHigh, external);
  if (!isCanonicalHigh(cpu, gate.upper)) cpu.raise(Vector.GP, external);
  frame.push(cpu, newCpl < 3);
  markAccessed(cpu, selector, code);

  const was64 = is64Bit(cpu);
  if (newCpl < cpl) loadNull(cpu, SS, newCpl, newCpl);
  loadCode(cpu, selector, code, newCpl);
  frame.takeStack(cpu);
  cpu.u32[state.rip >>> 2] = gateOffset(gate);
  cpu.u32[(state.rip >>> 2) + 1] = gate.upper;
  if (was64) {
    // Tops, bases and stack size are the same for all 64-bit code: only the privilege changes.
    setCpl(cpu, newCpl);
    switchTags(cpu);
  } else updateSegments(cpu);
  cpu.setFlags(flags & ~(CLEARED | ((gate.high & 0x100) === 0 ? Flag.IF : 0)));
}

export function deliverProtected(cpu: Cpu, event: GuestEvent): void {
  const external = externalBit(event);
  const gate = readGate(cpu, event, 8);
  const selector = gateSelector(gate);
  const type = typeOf(gate);
  if (type === SystemType.taskGate) {
    const { errorCode } = event;
    const old = { returnRip: returnRip(cpu, event), flags: savedFlags(cpu, event) };
    switchTask(cpu, selector, { source: "interrupt", external, errorCode, ...old });
    return;
  }
  const bytes = type >= SystemType.interruptGate ? 4 : 2;
  const code = readHandler(cpu, selector, external);
  const cpl = cplOf(cpu);
  const newCpl = isConforming(code) ? cpl : dplOf(code);
  const wasVirtual = isVirtual8086(cpu);
  if (wasVirtual && newCpl !== 0) cpu.raise(Vector.GP, (selector & 0xfffc) | external);
  const target = BigInt(bytes === 2 ? gateOffset(gate) & 0xffff : gateOffset(gate));
  const flags = savedFlags(cpu, event);
  const tail = [flags, selectorOf(cpu, CS), Number(BigInt.asUintN(32, returnRip(cpu, event)))];
  if (event.errorCode !== undefined) tail.push(event.errorCode);
  const oldPointer = Number(BigInt.asUintN(32, cpu.reg(RSP)));
  let pointer: number;
  if (newCpl < cpl) {
    const inner = innerStack(cpu, newCpl, external);
    const stack = stackOf(inner.descriptor, (inner.selector & 0xfffc) | external);
    const frame = wasVirtual ? [GS, FS, DS, ES].map((segment) => selectorOf(cpu, segment)) : [];
    frame.push(selectorOf(cpu, SS), oldPointer, ...tail);
    checkRoom(cpu, stack, inner.pointer, bytes, frame.length);
    checkTarget(cpu, code, target, external);
    pointer = pushLegacy(cpu, stack, inner.pointer, bytes, frame, true);
    markAccessed(cpu, inner.selector, inner.descriptor);
    markAccessed(cpu, selector, code);
    if (wasVirtual) for (const segment of [GS, FS, DS, ES]) loadNull(cpu, segment, 0, 0);
    loadDescriptor(cpu, SS, inner.selector, inner.descriptor);
  } else {
    const stack = { ...currentStack(cpu), error: external };
    checkRoom(cpu, stack, oldPointer, bytes, tail.length);
    checkTarget(cpu, code, target, external);
    pointer = pushLegacy(cpu, stack, oldPointer, bytes, tail, newCpl < 3);
    markAccessed(cpu, selector, code);
  }
  loadCode(cpu, selector, code, newCpl);
  cpu.setReg(RSP, BigInt(pointer));
  cpu.set64(state.rip, target);
  cpu.set32(state.systemFlags, cpu.get32(state.systemFlags) & ~Flag.VM);
  updateSegments(cpu);
  cpu.setFlags(flags & ~(CLEARED | ((type & 1) === 0 ? Flag.IF : 0)));
}
