/** Page tables for tests, built in the guest's memory beside those that the machine starts with. */
import { state } from "../src/engine/cpu-state.ts";
import type { SystemMachine } from "./system-machine.ts";

export const CR0_WP = 0x1_0000n;
export const NO_EXECUTE = 1n << 63n;
const TABLES = 0x10_0000;
const PRESENT = 1n;
/** Present, writable, user. */
const OPEN = 7n;

const nextTable = new WeakMap<SystemMachine, number>();
function newTable(m: SystemMachine): number {
  const at = nextTable.get(m) ?? TABLES;
  nextTable.set(m, at + 4096);
  return at;
}

/** Maps a 4 KiB page of a 4-level address space, upper levels open; addresses of the four entries, uppermost first. */
export function mapLong(m: SystemMachine, linear: bigint, physical: bigint, rights: bigint): number[] {
  const entries: number[] = [];
  let table = Number(m.engine.get64(state.cr3));
  for (let level = 4; level > 1; level--) {
    const at = table + Number((linear >> BigInt(12 + 9 * (level - 1))) & 511n) * 8;
    if ((m.memory.getBigUint64(at, true) & PRESENT) === 0n) m.memory.setBigUint64(at, BigInt(newTable(m)) | OPEN, true);
    entries.push(at);
    table = Number(m.memory.getBigUint64(at, true) & 0xf_ffff_ffff_f000n);
  }
  const last = table + Number((linear >> 12n) & 511n) * 8;
  m.memory.setBigUint64(last, physical | rights, true);
  entries.push(last);
  return entries;
}

/** Turns 32-bit paging on with the first 4 MiB mapped to themselves, and maps a page; addresses of its two entries. */
export function mapNarrow(m: SystemMachine, linear: number, physical: number, rights: number): number[] {
  const directory = newTable(m);
  const table = newTable(m);
  m.memory.setUint32(directory, 0x87, true);
  const first = directory + (linear >>> 22) * 4;
  m.memory.setUint32(first, table | 7, true);
  const second = table + ((linear >>> 12) & 1023) * 4;
  m.memory.setUint32(second, physical | rights, true);
  m.engine.set64(state.cr3, BigInt(directory));
  m.engine.set64(state.cr4, 0x10n);
  m.engine.set64(state.cr0, 0x8001_0011n);
  m.engine.updateTags();
  return [first, second];
}

/** Turns PAE paging on by MOV-like loads, the first 2 MiB mapped to themselves, and maps a page. */
export function mapPae(m: SystemMachine, linear: number, physical: number): void {
  const pointers = newTable(m);
  const low = newTable(m);
  const directory = newTable(m);
  const table = newTable(m);
  m.memory.setBigUint64(low, 0x87n, true);
  m.memory.setBigUint64(pointers, BigInt(low) | PRESENT, true);
  m.memory.setBigUint64(pointers + (linear >>> 30) * 8, BigInt(directory) | PRESENT, true);
  m.memory.setBigUint64(directory + ((linear >>> 21) & 511) * 8, BigInt(table) | OPEN, true);
  m.memory.setBigUint64(table + ((linear >>> 12) & 511) * 8, BigInt(physical) | OPEN, true);
  for (let i = 0; i < 4; i++) m.engine.set64(state.pdpte + i * 8, m.memory.getBigUint64(pointers + i * 8, true));
  m.engine.set64(state.cr3, BigInt(pointers));
  m.engine.set64(state.cr4, 0x20n);
  m.engine.set64(state.cr0, 0x8001_0011n);
  m.engine.updateTags();
}
