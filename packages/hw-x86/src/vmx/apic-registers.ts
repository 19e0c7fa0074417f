/**
 * Which registers on the APIC-access page the processor virtualizes; all else exits. Source: Intel SDM Vol. 3C, Virtualizing Reads from
 * the APIC-Access Page; Virtualizing Writes to the APIC-Access Page.
 */
import { Apic } from "../apic-page.ts";

/** Registers are 16 bytes apart: a bit each in 256. */
function registers(...ranges: readonly (readonly [number, number])[]): Uint8Array {
  const set = new Uint8Array(256);
  for (const [first, last] of ranges) set.fill(1, first >>> 4, (last >>> 4) + 1);
  return set;
}
const one = (offset: number): readonly [number, number] => [offset, offset];

const TASK_PRIORITY = registers(one(Apic.tpr));
const WITH_DELIVERY = registers(one(Apic.tpr), one(Apic.eoi), one(Apic.icrLow));
const WRITABLE = [one(0x20), one(0x80), one(0xb0), [0xd0, 0xf0], one(0x280), [0x300, 0x380], one(0x3e0)] as const;
const ALL_READ = registers(...WRITABLE, one(0x30), [0x100, 0x270]);
const ALL_WRITTEN = registers(...WRITABLE);

export function virtualizedReads(registerVirtualization: boolean): Uint8Array {
  return registerVirtualization ? ALL_READ : TASK_PRIORITY;
}
export function virtualizedWrites(registerVirtualization: boolean, interruptDelivery: boolean): Uint8Array {
  if (registerVirtualization) return ALL_WRITTEN;
  return interruptDelivery ? WITH_DELIVERY : TASK_PRIORITY;
}
