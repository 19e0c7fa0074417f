/** Nested page table entries: those of long mode. Source: AMD64 APM Vol. 2, Nested Paging. */
import type { EntryFormat } from "./entry-format.ts";

const PRESENT = 1;
const WRITE = 2;
/** A guest's accesses are user accesses to the nested tables. */
const USER = 4;

export const nptFormat = (levels: 4 | 5): EntryFormat => ({
  levels,
  present: PRESENT,
  table: PRESENT | WRITE | USER,
  // PAT entry 0 of the host: write-back
  leaf: PRESENT | USER,
  write: WRITE,
  pointer: (root) => BigInt(root),
});
