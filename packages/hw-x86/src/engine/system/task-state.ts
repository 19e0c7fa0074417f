/** The stack pointers that the task-state segment holds for transfers to inner privilege levels. */
import type { Cpu } from "../cpu.ts";
import { SEG_BASE, segmentOffset, TR } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import {
  accessOf,
  type Descriptor,
  dplOf,
  isApplication,
  isCode,
  isNull,
  isPresent,
  isWritableOrReadable,
  readBehind,
  readDescriptor,
  segmentLimit,
  selectorOf,
} from "./descriptors.ts";

/** Bank offset from which part of the TSS can be read; #TS with the task's selector when its limit is below. */
function taskStateAt(cpu: Cpu, offset: number, bytes: number, external: number): number {
  if (offset + bytes - 1 > segmentLimit(cpu, TR)) cpu.raise(Vector.TS, (selectorOf(cpu, TR) & 0xfffc) | external);
  return readBehind(cpu, segmentOffset(TR) + SEG_BASE, offset, bytes);
}
function readTaskState(cpu: Cpu, offset: number, bytes: 2 | 4, external: number): number {
  const at = taskStateAt(cpu, offset, bytes, external);
  return bytes === 2 ? cpu.view.getUint16(at, true) : cpu.view.getUint32(at, true);
}

/** Where RSP0 to RSP2 of a 64-bit TSS can be read. */
export const innerRspAt = (cpu: Cpu, level: number, external: number): number => taskStateAt(cpu, 4 + level * 8, 8, external);
/** Where IST1 to IST7 can be read. */
export const interruptRspAt = (cpu: Cpu, index: number, external: number): number =>
  taskStateAt(cpu, 28 + index * 8, 8, external);

export interface InnerStack {
  selector: number;
  pointer: number;
  descriptor: Descriptor;
}

/** SS and ESP for privilege `level` from a 16-bit or 32-bit TSS, checked as a load of SS at that level. */
export function innerStack(cpu: Cpu, level: number, external: number): InnerStack {
  let pointer: number;
  let selector: number;
  if ((accessOf(cpu, TR) & Access.code) !== 0) {
    pointer = readTaskState(cpu, 4 + level * 8, 4, external);
    selector = readTaskState(cpu, 8 + level * 8, 2, external);
  } else {
    pointer = readTaskState(cpu, 2 + level * 4, 2, external);
    selector = readTaskState(cpu, 4 + level * 4, 2, external);
  }
  if (isNull(selector)) cpu.raise(Vector.TS, external);
  const error = (selector & 0xfffc) | external;
  const descriptor = readDescriptor(cpu, selector);
  if (
    descriptor === undefined ||
    (selector & 3) !== level ||
    dplOf(descriptor) !== level ||
    !isApplication(descriptor) ||
    isCode(descriptor) ||
    !isWritableOrReadable(descriptor)
  ) {
    return cpu.raise(Vector.TS, error);
  }
  if (!isPresent(descriptor)) cpu.raise(Vector.SS, error);
  return { selector, pointer, descriptor };
}
