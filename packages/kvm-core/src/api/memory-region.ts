/**
 * What KVM_SET_USER_MEMORY_REGION accepts: the checks and the table of slots, which no version has changed. What a slot carries
 * besides (reverse maps, huge page information) is each version's own, in the type parameter.
 */
import { Errno } from "@mkvm/kvm-abi";

export const PAGE_BYTES = 4096;
export const MEM_LOG_DIRTY_PAGES = 1;
export const MEM_READONLY = 2;
/** KVM_CAP_NR_MEMSLOTS: SHRT_MAX less the slots that Linux keeps for itself. */
export const USER_MEMORY_SLOTS = 32764;
const MAX_SLOT_PAGES = 0x7fff_ffff;
/** End of user addresses of a 47-bit address space: access_ok. */
const USER_ADDRESS_END = 2n ** 47n;

/** A memory slot as user space described it. Frame numbers are guest-physical addresses divided by 4096. */
export interface MemoryRegion {
  readonly id: number;
  readonly flags: number;
  readonly baseGfn: number;
  readonly pages: number;
  readonly userspaceAddress: number;
}

export interface RawMemoryRegion {
  slot: number;
  flags: number;
  guestPhysicalAddress: bigint;
  memorySize: bigint;
  userspaceAddress: bigint;
}

export type RegionChange<Slot> =
  | { kind: "none" }
  | { kind: "create"; region: MemoryRegion }
  | { kind: "delete"; old: Slot }
  | { kind: "move"; old: Slot; region: MemoryRegion }
  | { kind: "flags"; old: Slot; region: MemoryRegion };

/** The slots of a VM, sorted by guest frame. */
export class SlotTable<Slot extends MemoryRegion> {
  readonly #byId = new Map<number, Slot>();
  #sorted: Slot[] = [];
  #last: Slot | undefined;

  byId(id: number): Slot | undefined {
    return this.#byId.get(id);
  }
  all(): readonly Slot[] {
    return this.#sorted;
  }
  /** The slot that holds a guest frame. */
  find(gfn: number): Slot | undefined {
    const last = this.#last;
    if (last !== undefined && gfn >= last.baseGfn && gfn < last.baseGfn + last.pages) return last;
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const slot = this.#sorted[middle]!;
      if (gfn < slot.baseGfn) high = middle;
      else if (gfn >= slot.baseGfn + slot.pages) low = middle + 1;
      else {
        this.#last = slot;
        return slot;
      }
    }
    return undefined;
  }
  set(slot: Slot): void {
    this.#byId.set(slot.id, slot);
    this.#changed();
  }
  delete(id: number): void {
    this.#byId.delete(id);
    this.#changed();
  }
  #changed(): void {
    this.#sorted = [...this.#byId.values()].sort((a, b) => a.baseGfn - b.baseGfn);
    this.#last = undefined;
  }
}

/**
 * What a region asks for, or a negative errno: the order of checks is Linux's __kvm_set_memory_region.
 * `maxPhysicalBits` bounds guest frames.
 */
export function checkMemoryRegion<Slot extends MemoryRegion>(
  table: SlotTable<Slot>,
  raw: RawMemoryRegion,
  maxPhysicalBits: number,
): RegionChange<Slot> | number {
  if ((raw.flags & ~(MEM_LOG_DIRTY_PAGES | MEM_READONLY)) !== 0) return -Errno.EINVAL;
  if ((raw.memorySize & 0xfffn) !== 0n || (raw.guestPhysicalAddress & 0xfffn) !== 0n) return -Errno.EINVAL;
  if ((raw.userspaceAddress & 0xfffn) !== 0n) return -Errno.EINVAL;
  if (raw.userspaceAddress + raw.memorySize > USER_ADDRESS_END) return -Errno.EINVAL;
  // The upper half of the number is the address space; there is one (no SMM)
  if (raw.slot >>> 16 !== 0 || raw.slot >= USER_MEMORY_SLOTS) return -Errno.EINVAL;
  if (raw.guestPhysicalAddress + raw.memorySize >= 2n ** 64n) return -Errno.EINVAL;
  if (raw.memorySize / 4096n > BigInt(MAX_SLOT_PAGES)) return -Errno.EINVAL;

  const old = table.byId(raw.slot);
  if (raw.memorySize === 0n) return old === undefined ? -Errno.EINVAL : { kind: "delete", old };

  const region: MemoryRegion = {
    id: raw.slot,
    flags: raw.flags,
    baseGfn: Number(raw.guestPhysicalAddress / 4096n),
    pages: Number(raw.memorySize / 4096n),
    userspaceAddress: Number(raw.userspaceAddress),
  };
  if (region.baseGfn + region.pages > 2 ** (maxPhysicalBits - 12)) return -Errno.EINVAL;
  if (old !== undefined) {
    if (region.userspaceAddress !== old.userspaceAddress || region.pages !== old.pages) return -Errno.EINVAL;
    if (((region.flags ^ old.flags) & MEM_READONLY) !== 0) return -Errno.EINVAL;
    if (region.baseGfn === old.baseGfn) {
      return region.flags === old.flags ? { kind: "none" } : { kind: "flags", old, region };
    }
  }
  for (const other of table.all()) {
    if (other.id === region.id) continue;
    if (region.baseGfn < other.baseGfn + other.pages && other.baseGfn < region.baseGfn + region.pages) return -Errno.EEXIST;
  }
  return old === undefined ? { kind: "create", region } : { kind: "move", old, region };
}
