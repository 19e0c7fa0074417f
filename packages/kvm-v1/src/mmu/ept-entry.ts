/** EPT entries. Source: Intel SDM Vol. 3C, The Extended Page Table Mechanism. */
import type { EntryFormat } from "./entry-format.ts";

const READ = 1;
const WRITE = 2;
const EXECUTE = 4;
/** Write-back in bits 5:3, "ignore PAT" in bit 6: guest RAM is ordinary memory whatever the guest's PAT says. */
const MEMORY_WB = 6 << 3;
const IGNORE_PAT = 1 << 6;

export const EPT_FORMAT: EntryFormat = {
  levels: 4,
  present: READ | WRITE | EXECUTE,
  table: READ | WRITE | EXECUTE,
  leaf: READ | EXECUTE | MEMORY_WB | IGNORE_PAT,
  write: WRITE,
  /** Write-back tables, walk of 4 levels, accessed and dirty bits as asked. */
  pointer: (root, accessedDirty) => BigInt(root) | 6n | (3n << 3n) | (accessedDirty ? 1n << 6n : 0n),
};
