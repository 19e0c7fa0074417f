/**
 * Random loops in segments with bases and limits, translated and interpreted: after any number of instructions the state is the
 * same. What faults begins anew with other registers, so that every program comes to accesses that pass limits and ones that do not.
 */
import { describe, expect, test } from "vitest";
import { CS, DS, ES, FS, GS, gprOffset, RSP, SS, state } from "../src/engine/cpu-state.ts";
import { writeSegment } from "../src/engine/system/descriptors.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";
import { segmentedLoops } from "./segmented-loops.ts";

const PROGRAMS = Number(process.env.MKVM_LOOP_PROGRAMS ?? 8);
/** Programs are made beyond that until one was translated and one faulted, which short ones need not be. */
const MOST_PROGRAMS = 40 * PROGRAMS;
const SLICES = 30;
const RAM = 4 << 20;
/** Where code may lie in physical memory, and no data segment does. */
const CODE = 0x10_0000;
const VIRTUAL_8086 = 0x2_0000;

interface Segment {
  readonly base: number;
  readonly limit: number;
  readonly access: number;
}
type Kind = "real mode" | "virtual-8086 mode" | "16-bit protected mode" | "32-bit segments" | "flat 32-bit code, FS and GS";

interface Layout {
  readonly bits: 16 | 32;
  readonly segments: ReadonlyMap<number, Segment>;
  /** Offset of the code in CS. */
  readonly ip: number;
}

/** Type and size bits of data segments: read-write, read-only, expand-down, unusable. */
const DATA = { readWrite: 0x93, readOnly: 0x91, expandDown: 0x97, unusable: 0x1_0000 };

function dataSegment(random: Random, kind: Kind, segment: number): Segment {
  const isParagraph = kind === "real mode" || kind === "virtual-8086 mode";
  const align = isParagraph ? ~15 : ~0;
  const start = random.pick([0x8_0000, 0x20_0000, isParagraph ? 0x4_0000 : 0xffff_8000]);
  const base = ((start + random.below(0x4000)) & align) >>> 0;
  const big = segment === SS && kind !== "16-bit protected mode" && random.oneIn(2) ? 0x4000 : 0;
  if (isParagraph) return { base, limit: 0xffff, access: kind === "real mode" ? 0x93 : 0xf3 };
  const limit = random.pick([0xffff, 0xffff, 0xffff, 0x1_ffff, 0x7ffe, segment === FS ? 0x800 : 0xffff]);
  const type = random.below(segment === DS || segment === ES ? 16 : 6);
  if (type === 0 && segment !== SS) return { base, limit, access: DATA.readOnly };
  if (type === 1) return { base, limit: 0x7ff, access: DATA.expandDown };
  if (type === 2 && segment !== SS) return { base: 0, limit: 0, access: DATA.unusable };
  return { base, limit: segment === SS ? 0xffff : limit, access: DATA.readWrite | big };
}

function layout(random: Random, kind: Kind, length: number): Layout {
  const bits = kind === "32-bit segments" || kind === "flat 32-bit code, FS and GS" ? 32 : 16;
  const segments = new Map<number, Segment>();
  for (const segment of [ES, SS, DS, FS, GS]) segments.set(segment, dataSegment(random, kind, segment));
  if (kind === "flat 32-bit code, FS and GS") {
    for (const segment of [ES, SS, DS]) segments.set(segment, { base: 0, limit: 0xffff_ffff, access: 0xc093 });
    segments.set(CS, { base: 0, limit: 0xffff_ffff, access: 0xc09b });
    return { bits, segments, ip: CODE + random.below(0x3000) };
  }
  const access = (bits === 32 ? 0x409b : 0x9b) | (kind === "virtual-8086 mode" ? 0x60 : 0);
  // Code at the end of the segment goes on at its start
  const isWrapping = random.oneIn(5);
  const limit = bits === 32 && isWrapping ? 0xffff_ffff : 0xffff;
  const base = (CODE + random.below(0x2000)) & ~15;
  segments.set(CS, { base, limit, access: limit > 0xffff ? access | 0x8000 : access });
  return { bits, segments, ip: isWrapping ? limit + 1 - random.below(length) : random.below(0x3000) };
}

function start({ engine }: FlatMachine, { ip }: Layout, entry: number, bits: number, random: Random): void {
  for (let register = 0; register < 8; register++) {
    engine.setReg(register, BigInt(random.oneIn(3) ? random.below(0x1_0000) : random.next() >>> 0));
  }
  engine.setReg(RSP, BigInt(0x4000 + 2 * random.below(0x400)));
  engine.setFlags(2 | (engine.get32(state.systemFlags) & VIRTUAL_8086));
  engine.set64(state.rip, BigInt.asUintN(bits, BigInt(ip + entry)));
}

function machine(kind: Kind, at: Layout, translate: TranslateMode, code: Uint8Array, random: Random): FlatMachine {
  const made = createFlatMachine(kind === "real mode" ? 16 : 32, RAM, translate);
  const { engine, guest, ram } = made;
  const translateWithin = guest.translate.bind(guest);
  guest.translate = (gpa) => translateWithin((Number(gpa) % RAM) as unknown as typeof gpa);
  const record = guest.exception.bind(guest);
  guest.exception = (vector, type, errorCode, payload) => {
    record(vector, type, errorCode, payload);
    guest.exit();
  };
  const words = new Uint32Array(ram.buffer, ram.byteOffset, RAM >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = random.next();
  const base = at.segments.get(CS)?.base ?? 0;
  const mask = at.bits === 16 ? 0xffff : 0xffff_ffff;
  code.forEach((byte, i) => {
    ram[(base + (((at.ip + i) & mask) >>> 0)) % RAM] = byte;
  });
  for (const [segment, { base: own, limit, access }] of at.segments) writeSegment(engine, segment, 8, own, limit, access);
  if (kind === "virtual-8086 mode") engine.set32(state.systemFlags, engine.get32(state.systemFlags) | VIRTUAL_8086);
  engine.updateSegments();
  engine.flushTlb(false);
  return made;
}

function describeState({ engine, guest }: FlatMachine): string {
  const registers = Array.from({ length: 8 }, (_, i) => engine.u64[gprOffset(i) >>> 3].toString(16));
  const faults = guest.exceptions.map(({ vector, errorCode }) => `${vector}:${errorCode}`).join();
  return `rip ${engine.get64(state.rip).toString(16)} flags ${engine.readFlags().toString(16)} retired ${engine.retired()} faults ${faults} registers ${registers.join(" ")}`;
}

/** The same code by way of another CS, 16 bytes further on. */
function moveCodeSegment({ engine }: FlatMachine, at: Layout): void {
  const cs = at.segments.get(CS) as Segment;
  writeSegment(engine, CS, 8, cs.base + 16, cs.limit, cs.access);
  engine.updateSegments();
}

const kinds: readonly Kind[] = [
  "real mode",
  "virtual-8086 mode",
  "16-bit protected mode",
  "32-bit segments",
  "flat 32-bit code, FS and GS",
];
describe.each(kinds)("random loops in %s", (kind) => {
  const seed = chooseSeed();
  test.each(["always", "hot"] as const)(`run %s as they are interpreted (seed ${seed})`, (mode) => {
    let regions = 0;
    let faults = 0;
    for (let program = 0; program < PROGRAMS || (program < MOST_PROGRAMS && (regions === 0 || faults === 0)); program++) {
      const random = seededRandom(seed + program);
      const bits = kind === "32-bit segments" || kind === "flat 32-bit code, FS and GS" ? 32 : 16;
      const { code, entry } = segmentedLoops(random, bits);
      const at = layout(random, kind, code.length);
      const data = random.next();
      const machines = (["off", mode] as const).map((translate) => machine(kind, at, translate, code, seededRandom(data)));
      const [reference, translated] = machines as [FlatMachine, FlatMachine];
      let isFresh = true;
      for (let slice = 0; slice < SLICES; slice++) {
        if (isFresh) {
          const registers = random.next();
          for (const each of machines) start(each, at, entry, bits, seededRandom(registers));
        }
        const instructions = random.oneIn(3) ? 1 + random.below(20) : random.below(mode === "hot" ? 20_000 : 2000);
        const [expected, reason] = machines.map(({ engine }) => engine.run(instructions));
        const where = `program ${program} of seed ${seed}, slice ${slice}: ${Buffer.from(code).toString("hex")}, entry ${entry}`;
        expect(reason, where).toBe(expected);
        expect(describeState(translated), where).toBe(describeState(reference));
        expect(Buffer.compare(reference.ram, translated.ram), where).toBe(0);
        isFresh = expected !== "budget";
        if (isFresh && slice === SLICES >> 1 && at.ip >= 16 && kind !== "flat 32-bit code, FS and GS") {
          for (const each of machines) moveCodeSegment(each, at);
          (at as { ip: number }).ip -= 16;
        }
      }
      regions += translated.engine.counts().translator.regionsMade;
      faults += reference.guest.exceptions.length;
    }
    expect(regions).toBeGreaterThan(0);
    expect(faults).toBeGreaterThan(0);
  });
});
