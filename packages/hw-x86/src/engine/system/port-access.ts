/** Permission to use an I/O port (Intel SDM Vol. 1, Input/Output: I/O Privilege Level, I/O Permission Bit Map). */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { TR } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import { accessOf, segmentBase64, segmentLimit } from "./descriptors.ts";
import { cplOf, ioplOf, isProtected, isVirtual8086 } from "./processor-mode.ts";

/** #GP(0) unless CPL <= IOPL or the task's bit map has `bytes` clear bits at `port`. */
export function checkPort(cpu: Cpu, port: number, bytes: number): void {
  if (!isProtected(cpu) || (!isVirtual8086(cpu) && cplOf(cpu) <= ioplOf(cpu))) return;
  const base = segmentBase64(cpu, TR);
  const limit = segmentLimit(cpu, TR);
  // 16-bit task-state segments have no bit map.
  if ((accessOf(cpu, TR) & Access.unusable) !== 0 || (accessOf(cpu, TR) & Access.code) === 0 || limit < 103)
    cpu.raise(Vector.GP, 0);
  const map = Number(cpu.readLinear((base + 102n) as Gva, 2, true)) + (port >>> 3);
  // The CPU reads two bytes, whatever the port.
  if (map + 1 > limit) cpu.raise(Vector.GP, 0);
  const bits = Number(cpu.readLinear((base + BigInt(map)) as Gva, 2, true)) >>> (port & 7);
  if ((bits & ((1 << bytes) - 1)) !== 0) cpu.raise(Vector.GP, 0);
}
