import { expect, it } from "vitest";
import { RAX, state } from "../src/engine/cpu-state.ts";
import { mapLong } from "./page-tables.ts";
import { CODE, createSystemMachine, DATA, imm64, type SystemMachine } from "./system-machine.ts";

const AREA = 0x40_0000_0000n;

/** A page that only the first one uses, so that nothing takes its place. */
const OWN = AREA + 0x5000n;

function load(m: SystemMachine, address = AREA): number {
  m.code(0x48, 0xa1, ...imm64(address), 0xf4);
  return m.runToHandler();
}

/** As a VM entry of another virtual CPU does it: a tag of its own, and CR3. */
function turnTo(m: SystemMachine, tag: number, cr3: bigint): void {
  m.guest.translationTag = tag;
  m.engine.set64(state.cr3, cr3);
  m.engine.updateTags();
}

it("keeps the translations of two virtual CPUs apart, and warm, while they take turns", () => {
  const m = createSystemMachine(64);
  const first = m.engine.get64(state.cr3);
  const second = 0x20_0000n;
  m.ram.copyWithin(Number(second), Number(first), Number(first) + 4096);
  m.memory.setBigUint64(DATA, 1n, true);
  m.memory.setBigUint64(DATA + 0x1000, 2n, true);
  turnTo(m, 11, first);
  const entries = mapLong(m, AREA, BigInt(DATA), 3n);
  const own = mapLong(m, OWN, BigInt(DATA), 3n);
  expect(load(m, OWN)).toBe(-1);
  expect(load(m)).toBe(-1);
  expect(m.engine.reg(RAX)).toBe(1n);

  turnTo(m, 12, second);
  // Its own upper tables, or the two would share all but the root.
  m.memory.setBigUint64(Number(second), m.memory.getBigUint64(Number(first), true), true);
  m.memory.setBigUint64(0x20_1000, m.memory.getBigUint64(entries[0], true), true);
  const pdpt = Number(m.memory.getBigUint64(entries[0], true) & 0xf_ffff_f000n);
  m.ram.copyWithin(0x20_2000, pdpt, pdpt + 4096);
  m.memory.setBigUint64(Number(second), 0x20_2007n, true);
  m.memory.setBigUint64(0x20_2000 + Number((AREA >> 30n) & 511n) * 8, 0n, true);
  m.engine.flushTlb(false);
  mapLong(m, AREA, BigInt(DATA + 0x1000), 3n);
  expect(load(m)).toBe(-1);
  expect(m.engine.reg(RAX)).toBe(2n);

  // The first one's entry in memory is gone, its cached translation is not: nobody has invalidated it.
  m.memory.setBigUint64(own[3], 0n, true);
  turnTo(m, 11, first);
  expect(load(m, OWN)).toBe(-1);
  expect(load(m)).toBe(-1);
  expect(m.engine.reg(RAX)).toBe(1n);
  turnTo(m, 12, second);
  expect(load(m)).toBe(-1);
  expect(m.engine.reg(RAX)).toBe(2n);
  // Back under a tag that is new: nothing is cached.
  turnTo(m, 13, first);
  expect(load(m, OWN)).toBe(14);
  expect(m.stacked(1)).toBe(BigInt(CODE));
});
