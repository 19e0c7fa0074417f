/** EPT entries as two 32-bit words: the low one has rights and the bank offset, the high one the bank (SDM 3C, "The Extended Page Table Mechanism"). */
export const EPT_READ = 1;
export const EPT_WRITE = 2;
export const EPT_EXECUTE = 4;
export const EPT_RIGHTS = EPT_READ | EPT_WRITE | EPT_EXECUTE;
/** Write-back in bits 5:3, "ignore PAT" in bit 6: guest RAM is ordinary memory whatever the guest's PAT says. */
export const EPT_MEMORY_WB = 6 << 3;
export const EPT_IGNORE_PAT = 1 << 6;
export const EPT_ACCESSED = 1 << 8;
export const EPT_DIRTY = 1 << 9;
/** Bits 31:12 of the low word. */
export const EPT_ADDRESS_LOW = 0xffff_f000;

/** EPT pointer: write-back tables, walk of 4 levels, accessed and dirty bits as asked. */
export function eptPointer(root: number, accessedDirty: boolean): bigint {
  return BigInt(root) | 6n | (3n << 3n) | (accessedDirty ? 1n << 6n : 0n);
}
