/** The stack pointers that the task-state segment holds for transfers to inner privilege levels. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { TR } from "../cpu-state.ts";
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
  readDescriptor,
  segmentBase64,
  segmentLimit,
  selectorOf,
} from "./descriptors.ts";

/** Reads from the TSS; #TS with the task's selector when its limit is below. */
export function readTaskState(cpu: Cpu, offset: number, bytes: 2 | 4 | 8, external: number): bigint {
  if (offset + bytes - 1 > segmentLimit(cpu, TR)) cpu.raise(Vector.TS, (selectorOf(cpu, TR) & 0xfffc) | external);
  return cpu.readLinear(BigInt.asUintN(64, segmentBase64(cpu, TR) + BigInt(offset)) as Gva, bytes, true);
}

/** RSP0 to RSP2 of a 64-bit TSS. */
export const innerRsp = (cpu: Cpu, level: number, external: number): bigint => readTaskState(cpu, 4 + level * 8, 8, external);
/** IST1 to IST7. */
export const interruptRsp = (cpu: Cpu, index: number, external: number): bigint =>
  readTaskState(cpu, 28 + index * 8, 8, external);

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
    pointer = Number(readTaskState(cpu, 4 + level * 8, 4, external));
    selector = Number(readTaskState(cpu, 8 + level * 8, 2, external));
  } else {
    pointer = Number(readTaskState(cpu, 2 + level * 4, 2, external));
    selector = Number(readTaskState(cpu, 4 + level * 4, 2, external));
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
