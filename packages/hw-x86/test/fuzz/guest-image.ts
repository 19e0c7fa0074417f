/**
 * Memory and registers of guests that no sane author would write: code of random and of likely bytes, page tables that lead anywhere,
 * descriptor tables with odd types, stacks that are not there. All of it follows from a seed.
 */
import { type Random, seededRandom } from "../random.ts";
import { CODE_AT, CODE_BYTES, CodeWriter } from "./guest-code.ts";

/** What of guest memory is filled; the rest is zeros. */
export const IMAGE_BYTES = 0x4_0000;
export const MODES = ["real", "flat", "narrow", "pae", "long", "compatibility", "virtual"] as const;
export type Mode = (typeof MODES)[number];

const TABLES = 0x1000;
const TABLE_PAGES = 4;
export const GDT = 0x5000;
export const IDT = 0x6000;
export const TSS = 0x7000;
const STACK = 0x2_8000;
/** The fifth level of tables, where there is one. */
const TOP_TABLE = 0xc000;

const Cr0 = {
  PE: 1,
  MP: 2,
  EM: 4,
  TS: 8,
  ET: 0x10,
  NE: 0x20,
  WP: 0x1_0000,
  AM: 0x4_0000,
  CD: 0x4000_0000,
  PG: 0x8000_0000,
} as const;

export interface SegmentSetup {
  selector: number;
  base: number;
  limit: number;
  /** As in the VMX format; 0x10000 is unusable. */
  access: number;
}

export interface GuestSetup {
  mode: Mode;
  cr0: number;
  cr3: number;
  cr4: number;
  efer: number;
  rflags: number;
  rip: number;
  /** Sixteen, RSP at 4. */
  registers: bigint[];
  /** ES CS SS DS FS GS LDTR TR. */
  segments: SegmentSetup[];
  gdtLimit: number;
  idtLimit: number;
  /** Guest memory from 0. */
  image: Uint8Array;
  extras: GuestExtras;
}

/** What came to the machine later, and a guest may have or not. */
export interface GuestExtras {
  pkru: number;
  /** DR0 to DR3. */
  breakpoints: bigint[];
  dr7: number;
  debugctl: number;
  /** The processor virtualizes the local APIC, whose registers are at APIC_AT; the word says which of it. */
  apic: number | undefined;
  /** RDMSR and WRMSR do not exit. */
  passesMsrs: boolean;
}
export const PLAIN: GuestExtras = {
  pkru: 0,
  breakpoints: [0n, 0n, 0n, 0n],
  dr7: 0x400,
  debugctl: 0,
  apic: undefined,
  passesMsrs: false,
};

/** An address that is likely to mean something, or to be just beside it. */
export function likelyAddress(random: Random): number {
  const base = random.pick([
    0,
    TABLES,
    GDT,
    IDT,
    TSS,
    CODE_AT,
    CODE_AT + CODE_BYTES,
    STACK,
    0x1_0000,
    0x2_0000,
    0x3f_f000,
    0x40_0000,
  ]);
  return Math.max(0, base + random.below(64) - 24);
}

function likelyValue(random: Random): bigint {
  switch (random.below(6)) {
    case 0:
      return random.next64();
    case 1:
      return BigInt(random.next());
    case 2:
      return random.pick([
        0n,
        1n,
        0xffff_ffff_ffff_ffffn,
        0x8000_0000_0000_0000n,
        0x7fff_ffff_fff8n,
        0x8000_0000_0000n,
        0xffff_8000_0000_0000n,
      ]);
    case 3:
      return BigInt(random.below(64));
    default:
      return BigInt(likelyAddress(random));
  }
}

class ImageWriter {
  readonly image = new Uint8Array(IMAGE_BYTES);
  readonly view = new DataView(this.image.buffer);
  readonly #random: Random;
  constructor(random: Random) {
    this.#random = random;
  }

  /** Page tables on four pages. Most map memory one to one as far as it goes; the rest of the entries lead anywhere. */
  tables(mode: Mode, wildness: number): void {
    const random = this.#random;
    const { view } = this;
    const isNarrow = mode === "narrow" || mode === "virtual";
    const entry = (table: number, index: number, value: number, high = 0): void => {
      if (isNarrow) view.setUint32(table + index * 4, value, true);
      else view.setBigUint64(table + index * 8, (BigInt(high >>> 0) << 32n) | BigInt(value >>> 0), true);
    };
    const [first, second, third, last] = [0, 1, 2, 3].map((page) => TABLES + page * 4096) as [number, number, number, number];
    if (isNarrow) {
      entry(first, 0, last | 7);
      entry(first, 1, 0x87);
      entry(first, 768, last | 7);
    } else if (mode === "pae") {
      for (let i = 0; i < 4; i++) entry(first, i, third | 1);
      entry(third, 0, last | 7);
      entry(third, 1, 0x20_0087);
    } else {
      entry(first, 0, second | 7);
      entry(first, 511, second | 7);
      entry(second, 0, third | 7);
      entry(second, 511, third | 7);
      entry(third, 0, last | 7);
      entry(third, 1, 0x20_0087);
    }
    const entries = isNarrow ? 1024 : 512;
    for (let i = 0; i < 128; i++) {
      const isRemote = random.oneIn(40);
      const frame = isRemote ? random.below(128) : i;
      const flags = random.oneIn(40) ? random.below(0x200) : 7 | (random.oneIn(3) ? 0 : 0x60) | (random.oneIn(8) ? 0x100 : 0);
      entry(last, i, (frame * 4096) | flags, !isNarrow && random.oneIn(60) ? 0x8000_0000 : 0);
    }
    for (let i = 0; i < wildness; i++) {
      const table = TABLES + random.below(TABLE_PAGES) * 4096;
      const target = random.oneIn(4) ? random.next() & 0xffff_f000 : random.below(0x480) * 4096;
      entry(table, random.below(entries), (target | random.below(0x1000)) >>> 0, random.oneIn(6) ? random.next() : 0);
    }
  }

  #descriptor(base: number, limit: number, access: number): bigint {
    const units = limit > 0xf_ffff ? limit >>> 12 : limit;
    const rights = (access & 0x70ff) | (limit > 0xf_ffff ? 0x8000 : 0);
    const low = (((base & 0xffff) << 16) | (units & 0xffff)) >>> 0;
    const high =
      ((base & 0xff00_0000) |
        ((rights & 0xf000) << 8) |
        (units & 0xf_0000) |
        ((rights & 0xff) << 8) |
        ((base >>> 16) & 0xff)) >>>
      0;
    return (BigInt(high) << 32n) | BigInt(low);
  }

  /** 32 descriptors: the usual ones first, then whatever type. */
  descriptors(isLong: boolean): void {
    const random = this.#random;
    const usual: readonly (readonly [number, number])[] = [
      [0xffff_ffff, isLong ? 0xa09b : 0xc09b],
      [0xffff_ffff, 0xc093],
      [0xffff_ffff, 0xc0fb],
      [0xffff_ffff, 0xc0f3],
      [0xffff_ffff, isLong ? 0xa0fb : 0xc0fb],
      [0x67, 0x89],
    ];
    usual.forEach(([limit, access], i) => {
      this.view.setBigUint64(GDT + 8 + i * 8, this.#descriptor(access === 0x89 ? TSS : 0, limit, access), true);
    });
    for (let i = 8; i < 32; i++) {
      const isGate = random.oneIn(3);
      const access = isGate
        ? random.pick([0x84, 0x8c, 0xec, 0xe5, 0x85, 0xe4, 0x0c])
        : random.below(256) | (random.below(16) << 12);
      let value = random.oneIn(4)
        ? random.next64()
        : this.#descriptor(
            random.oneIn(2) ? 0 : likelyAddress(random),
            random.pick([0xffff, 0xffff_ffff, 0x67, 0x2b, 0]),
            access,
          );
      if (isGate)
        value =
          BigInt(CODE_AT + random.below(256)) |
          (BigInt(8 * random.below(8) + random.below(4)) << 16n) |
          (BigInt(access) << 40n) |
          (BigInt(random.below(4)) << 32n);
      this.view.setBigUint64(GDT + i * 8, value, true);
    }
  }

  /** Real-mode vectors at 0, gates of 8 or 16 bytes at IDT. */
  vectors(bytes: 8 | 16): void {
    const random = this.#random;
    for (let vector = 0; vector < 256; vector++) {
      const segment = random.oneIn(20) ? random.next() & 0xffff : 0;
      this.view.setUint32(vector * 4, (segment << 16) | (CODE_AT + random.below(CODE_BYTES)), true);
    }
    for (let vector = 0; vector < 0x1000 / bytes && vector < 256; vector++) {
      const at = IDT + vector * bytes;
      const target = random.oneIn(200) ? random.next() : CODE_AT + random.below(CODE_BYTES);
      const selector = random.oneIn(100) ? random.below(256) : 8;
      const type = random.oneIn(100) ? random.below(256) : random.pick([0x8e, 0x8f, 0xee, 0xef]);
      this.view.setUint32(at, ((selector << 16) | (target & 0xffff)) >>> 0, true);
      this.view.setUint32(
        at + 4,
        ((target & 0xffff_0000) | (type << 8) | (bytes === 16 && random.oneIn(6) ? random.below(8) : 0)) >>> 0,
        true,
      );
    }
  }

  task(isLong: boolean): void {
    const random = this.#random;
    for (let at = 0; at < 0x68; at += 4)
      this.view.setUint32(TSS + at, random.oneIn(3) ? random.next() : likelyAddress(random), true);
    if (isLong) {
      for (const at of [4, 12, 20, 36, 44, 52])
        this.view.setBigUint64(TSS + at, random.oneIn(8) ? random.next64() : BigInt(STACK + random.below(0x1000)), true);
    } else {
      for (const at of [4, 12, 20]) {
        this.view.setUint32(TSS + at, random.oneIn(8) ? random.next() : STACK + random.below(0x1000), true);
        this.view.setUint32(TSS + at + 4, random.oneIn(8) ? random.below(256) : 0x10, true);
      }
    }
    this.view.setUint16(TSS + 102, random.pick([0x68, 0x20, 0xffff, 0]), true);
  }
}

function segmentsOf(mode: Mode, isUser: boolean, random: Random): SegmentSetup[] {
  const rpl = isUser ? 3 : 0;
  const dpl = isUser ? 0x60 : 0;
  let data: SegmentSetup = { selector: isUser ? 0x23 : 0x10, base: 0, limit: 0xffff_ffff, access: 0xc093 | dpl };
  let code: SegmentSetup = {
    selector: isUser ? 0x1b : 8,
    base: 0,
    limit: 0xffff_ffff,
    access: (mode === "long" ? 0xa09b : 0xc09b) | dpl,
  };
  if (mode === "real") {
    data = { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
    code = { selector: 0, base: 0, limit: 0xffff, access: 0x9b };
  } else if (mode === "virtual") data = code = { selector: 0, base: 0, limit: 0xffff, access: 0xf3 };
  const others = [data, code, data, data, data, data].map((segment) => ({ ...segment }));
  if (mode !== "long" && mode !== "real" && mode !== "virtual") {
    // Sixteen-bit code, and data with bases, limits, and growing downwards
    if (random.oneIn(4)) (others[1] as SegmentSetup).access &= ~0x4000;
    if (random.oneIn(4))
      Object.assign(others[3] as SegmentSetup, {
        base: random.below(0x1000),
        limit: 0xffff,
        access: (data.access & ~0xc004) | (random.oneIn(2) ? 4 : 0),
      });
    if (random.oneIn(4))
      Object.assign(others[4] as SegmentSetup, {
        base: random.below(0x2_0000),
        limit: random.below(0x8000),
        access: data.access & ~0x8000,
      });
    if (random.oneIn(6)) (others[2] as SegmentSetup).access &= ~0x4000;
  }
  const isLong = mode === "long" || mode === "compatibility";
  return [
    ...others.map((segment, i) =>
      i === 1 ? segment : { ...segment, selector: mode === "real" || mode === "virtual" ? 0 : (segment.selector & ~3) | rpl },
    ),
    { selector: 0, base: 0, limit: 0, access: 0x1_0000 },
    { selector: 0x30, base: TSS, limit: isLong || random.oneIn(2) ? 0x67 : 0x200, access: 0x8b },
  ];
}

/** The stream of random numbers for what came to the machine later. */
export const extrasOf = (seed: number): Random => seededRandom((seed ^ 0x9e37_79b9) >>> 0);

/** `extras`: a stream of its own, so that without it seeds mean what they always have. */
export function makeGuest(random: Random, mode: Mode = random.pick(MODES), extras?: Random): GuestSetup {
  const writer = new ImageWriter(random);
  const isLong = mode === "long" || mode === "compatibility";
  const isPaged = mode !== "real" && mode !== "flat" && (mode !== "virtual" || random.oneIn(2));
  const isUser = mode === "virtual" || (mode !== "real" && random.oneIn(3));
  // Some memory is noise, so that pointers read from it lead somewhere odd
  if (random.oneIn(2)) for (let at = 0x1_0000; at < 0x1_1000; at++) writer.image[at] = random.next();
  if (isPaged) writer.tables(mode, random.oneIn(3) ? random.below(60) : 0);
  writer.descriptors(isLong);
  writer.vectors(isLong ? 16 : 8);
  writer.task(isLong);
  const code = new CodeWriter(random, mode === "long" ? 64 : mode === "real" || mode === "virtual" ? 16 : 32, extras);
  writer.image.set(code.write(), CODE_AT);
  let cr0 = Cr0.ET | Cr0.NE | Cr0.MP;
  if (mode !== "real") cr0 |= Cr0.PE;
  if (isPaged) cr0 |= Cr0.PG;
  for (const bit of [Cr0.WP, Cr0.AM, Cr0.TS]) if (random.oneIn(3)) cr0 |= bit;
  let cr4 = 0x600;
  if (isLong || mode === "pae") cr4 |= 0x20;
  // VME PVI TSD DE PSE PGE UMIP FSGSBASE OSXSAVE SMEP SMAP
  for (const bit of [1, 2, 4, 8, 0x10, 0x80, 0x800, 0x1_0000, 0x4_0000, 0x10_0000, 0x20_0000]) if (random.oneIn(3)) cr4 |= bit;
  let rflags = 2;
  for (const bit of [1, 0x10, 0x40, 0x80, 0x200, 0x400, 0x800, 0x4_0000]) if (random.oneIn(2)) rflags |= bit;
  if (random.oneIn(12)) rflags |= 0x100;
  if (mode === "virtual") rflags |= 0x2_0000;
  if (random.oneIn(2)) rflags |= 0x3000;
  const registers = Array.from({ length: 16 }, () => likelyValue(random));
  registers[4] = random.oneIn(10) ? likelyValue(random) : BigInt(STACK + random.below(0x2000));
  if (mode === "real" || mode === "virtual") registers[4] = BigInt(random.below(0x1_0000));
  const setup: GuestSetup = {
    mode,
    cr0: cr0 >>> 0,
    cr3: TABLES,
    cr4,
    efer: (isLong ? 0x501 : 1) | (random.oneIn(4) ? 0 : 0x800),
    rflags,
    rip: CODE_AT + (random.oneIn(3) ? random.below(CODE_BYTES) : 0),
    registers,
    segments: segmentsOf(mode, isUser, random),
    gdtLimit: 0xff,
    idtLimit: mode === "real" ? 0x3ff : 0xfff,
    image: writer.image,
    extras: { ...PLAIN },
  };
  if (extras !== undefined) addExtras(setup, writer.view, extras);
  return setup;
}

const Cr4 = { LA57: 0x1000, PCIDE: 0x2_0000, PKE: 0x40_0000 } as const;

function addExtras(setup: GuestSetup, view: DataView, random: Random): void {
  const isLong = setup.mode === "long" || setup.mode === "compatibility";
  if (isLong && random.oneIn(3)) {
    setup.cr4 |= Cr4.LA57;
    setup.cr3 = TOP_TABLE;
    view.setBigUint64(TOP_TABLE, BigInt(TABLES | 7), true);
    view.setBigUint64(TOP_TABLE + 511 * 8, BigInt(TABLES | 7), true);
  }
  if (isLong && random.oneIn(2)) {
    setup.cr4 |= Cr4.PCIDE;
    setup.cr3 |= random.below(4);
  }
  if (random.oneIn(3)) {
    setup.cr4 |= Cr4.PKE;
    setup.extras.pkru = random.oneIn(2) ? random.next() & 0x5555_5550 : random.next() & random.next();
    // Bits 62:59 of entries of the last level
    const last = TABLES + (TABLE_PAGES - 1) * 4096;
    for (let i = 0; isLong && i < 128; i++)
      if (random.oneIn(4)) view.setUint8(last + i * 8 + 7, (view.getUint8(last + i * 8 + 7) & 0x87) | (random.below(16) << 3));
  }
  if (random.oneIn(4)) {
    setup.extras.breakpoints = [0, 1, 2, 3].map(() => BigInt(likelyAddress(random)));
    setup.extras.dr7 = (0x400 | (random.next() & 0xffff_00ff)) >>> 0;
  }
  // Branch records of AMD's processors, and single steps of branches
  if (random.oneIn(4)) setup.extras.debugctl = random.below(4);
  if (random.oneIn(3)) setup.extras.apic = random.next();
  setup.extras.passesMsrs = random.oneIn(2);
}
