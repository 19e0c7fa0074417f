/** Second-level entries as two 32-bit words: the low one has rights and the bank offset, the high one the bank (SDM 3C, "The Extended Page Table Mechanism"). */
export const TDP_READ = 1;
export const TDP_WRITE = 2;
export const TDP_EXECUTE = 4;
export const TDP_ALL = TDP_READ | TDP_WRITE | TDP_EXECUTE;
/** Leaf of a level above 1. */
export const TDP_LARGE = 1 << 7;
/** Write-back whatever the guest's PAT says: guest RAM is ordinary memory. */
export const TDP_RAM = (6 << 3) | (1 << 6);
export const TDP_ADDRESS = 0xffff_f000;

export const BANK_SPAN = 0x1_0000_0000;
export const LEVELS = 4;
/** Level of 4 KiB leaves, and of 2 MiB leaves. */
export const LEVEL_4K = 1;
export const LEVEL_2M = 2;

/** Guest frames that an entry of a level maps. */
export function framesOf(level: number): number {
  return 512 ** (level - 1);
}
