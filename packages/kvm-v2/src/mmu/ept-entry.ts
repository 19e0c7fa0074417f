/** Entries of the EPT. Source: Intel SDM Vol. 3C, The Extended Page Table Mechanism. */
import type { TdpFormat } from "./tdp-entry.ts";

const READ_WRITE_EXECUTE = 7;
const READ_EXECUTE = 5;
/** Write-back whatever the guest's PAT says: guest RAM is ordinary memory. */
const RAM = (6 << 3) | (1 << 6);

export const EPT: TdpFormat = {
  levels: 4,
  present: READ_WRITE_EXECUTE,
  table: READ_WRITE_EXECUTE,
  leaf: READ_EXECUTE | RAM,
  dirty: 1 << 9,
  /** Write-back tables, 4 levels. */
  pointer: (root, accessedDirty) => BigInt(root) | 6n | (3n << 3n) | (accessedDirty ? 1n << 6n : 0n),
};
