/** Guest memory through the slots of a VM. */
import type { PhysicalAddress, Process } from "@mkvm/kvm-abi";
import type { GuestMemory } from "../guest/vcpu-parts.ts";
import { MEM_READONLY, type MemoryRegion, PAGE_BYTES, type SlotTable } from "./memory-region.ts";

export interface DirtyTrackedSlot extends MemoryRegion {
  markDirty(gfn: number): void;
}

/** Has `drop` called with each slot whose memory the process gives up, in whole or part. The result ends it. */
export function watchSlots<Slot extends MemoryRegion>(
  process: Process,
  slots: SlotTable<Slot>,
  drop: (slot: Slot) => void,
): () => void {
  return process.memory.watchUnmapped((address, length) => {
    for (const slot of slots.all()) {
      const isInside = slot.userspaceAddress < address + length && address < slot.userspaceAddress + slot.pages * PAGE_BYTES;
      if (isInside) drop(slot);
    }
  });
}

/** `bytes`: view of host physical memory. */
export function slotMemory(
  process: Process,
  slots: SlotTable<DirtyTrackedSlot>,
  bytes: (address: PhysicalAddress, length: number) => Uint8Array,
): GuestMemory {
  const page = (gpa: number, write: boolean): Uint8Array | undefined => {
    const gfn = Math.floor(gpa / PAGE_BYTES);
    const slot = slots.find(gfn);
    if (slot === undefined || (write && (slot.flags & MEM_READONLY) !== 0)) return undefined;
    const address = process.memory.translate(slot.userspaceAddress + (gfn - slot.baseGfn) * PAGE_BYTES);
    if (address < 0) return undefined;
    if (write) slot.markDirty(gfn);
    return bytes(address, PAGE_BYTES);
  };
  return {
    read: (gpa, length) => page(gpa, false)?.slice(gpa % PAGE_BYTES, (gpa % PAGE_BYTES) + length),
    write(gpa, data) {
      const target = page(gpa, true);
      target?.set(data, gpa % PAGE_BYTES);
      return target !== undefined;
    },
  };
}
