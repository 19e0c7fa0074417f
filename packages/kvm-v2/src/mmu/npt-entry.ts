/** Entries of nested page tables, which are long mode's; guests access them as a user does. Source: AMD64 APM Vol. 2, Nested Paging. */
import { TDP_WRITE, type TdpFormat } from "./tdp-entry.ts";

const PRESENT = 1;
const USER = 4;

export const npt = (levels: 4 | 5): TdpFormat => ({
  levels,
  present: PRESENT,
  table: PRESENT | TDP_WRITE | USER,
  // Memory type: PAT entry 0 of the host, write-back
  leaf: PRESENT | USER,
  dirty: 1 << 6,
  pointer: (root) => BigInt(root),
});
