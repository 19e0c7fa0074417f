/** Paging: permission bits of entries, kinds of access, and what CR0, CR4, EFER, RFLAGS.AC and PKRU make of them. */
import type { PagingChoice, SystemCase } from "./case-writer.ts";
import { PAGE_DATA, paging, TRY_32, TRY_64 } from "./layout.ts";

const P = 1,
  W = 2,
  U = 4,
  A = 0x20,
  D = 0x40,
  LARGE = 0x80,
  G = 0x100;
const NX_HIGH = 0x8000_0000;
const WP = 0x1_0000;
const Cr4 = { PSE: 0x10, PGE: 0x80, FSGSBASE: 0x1_0000, SMEP: 0x10_0000, SMAP: 0x20_0000, PKE: 0x40_0000 } as const;
const NXE = 0x800;
const AC = 0x4_0000;

/** What is done with the address in EBX; DATA of the page is written to, its code is called. */
const accesses = {
  read: [0x8b, 0x43, PAGE_DATA], // mov eax, [ebx + data]
  write: [0x89, 0x43, PAGE_DATA],
  // Read-modify-write asks for writing first
  modify: [0x83, 0x43, PAGE_DATA, 1], // add dword [ebx + data], 1
  call: [0xff, 0xe3], // jmp ebx
  // An implicit access of privilege 0, made by code of any
  string: [0x89, 0xde, 0x89, 0xdf, 0x83, 0xc7, PAGE_DATA, 0xa4], // mov esi, ebx; mov edi, ebx; add edi, data; movsb
} as const;
type Access = keyof typeof accesses;

interface Variation {
  readonly name: string;
  /** Flags of an entry in its low word, and whether its NX is set. */
  readonly flags: number;
  readonly isNx?: boolean;
}
const permissions: readonly Variation[] = [
  { name: "-", flags: 0 },
  { name: "P", flags: P },
  { name: "PW", flags: P | W },
  { name: "PU", flags: P | U },
  { name: "PWU", flags: P | W | U },
  { name: "PWU,NX", flags: P | W | U, isNx: true },
];

/** Entry `level` from the root keeps its address and gets these flags. */
function pokeEntry(mode: "twoLevel" | "pae" | "long", level: number, variation: Variation): SystemCase["setup"] {
  const address = paging[mode].entries[level] as number;
  return (m) => {
    // The entry's address is what it is in the image; its low 12 bits are replaced
    m.at(address, 4, 0x81).bytes(0x00, 0xf0, 0xff, 0xff); // and dword [entry], ~0xfff
    m.at(address, 1, 0x81).bytes(variation.flags & 0xff, (variation.flags >>> 8) & 0xff, 0, 0); // or
    if (variation.isNx) m.poke(address + 4, NX_HIGH);
  };
}

interface Situation {
  readonly name: string;
  readonly choice: Omit<PagingChoice, "mode">;
  readonly flags?: number;
}
const situations: readonly Situation[] = [
  { name: "plain", choice: { efer: NXE } },
  { name: "WP", choice: { cr0: WP, efer: NXE } },
  { name: "SMEP", choice: { cr4: Cr4.SMEP, efer: NXE } },
  { name: "SMAP", choice: { cr0: WP, cr4: Cr4.SMAP, efer: NXE } },
  { name: "SMAP,AC", choice: { cr0: WP, cr4: Cr4.SMAP, efer: NXE }, flags: AC },
  { name: "SMEP,SMAP, no WP", choice: { cr4: Cr4.SMAP | Cr4.SMEP, efer: NXE } },
  { name: "no NXE", choice: { cr0: WP } },
  { name: "no NXE,SMEP", choice: { cr0: WP, cr4: Cr4.SMEP } },
];

function permissionCases(bits: 32 | 64, mode: "twoLevel" | "pae" | "long"): SystemCase[] {
  const cases: SystemCase[] = [];
  const page = bits === 64 ? TRY_64 : TRY_32;
  const last = paging[mode].entries.length - 1;
  // The pointers of PAE have no permissions
  const first = mode === "pae" ? 1 : 0;
  const usable = permissions.filter(({ isNx }) => mode !== "twoLevel" || isNx === undefined);
  let count = 0;
  for (let upper = first; upper < last; upper++) {
    for (const above of usable) {
      for (const below of usable) {
        for (const situation of situations) {
          if (mode === "twoLevel" && situation.name.startsWith("no NXE")) continue;
          for (const ring of [0, 3] as const) {
            for (const access of Object.keys(accesses) as Access[]) {
              cases.push({
                name: `${mode}: entry ${upper} ${above.name}, entry ${last} ${below.name}, ${situation.name}, privilege ${ring}, ${access}`,
                bits,
                ring,
                flags: situation.flags ?? 0,
                paging: { mode, ...situation.choice },
                registers: { ebx: page },
                setup: (m) => {
                  pokeEntry(mode, upper, above)?.(m);
                  pokeEntry(mode, last, below)?.(m);
                },
                action: accesses[access],
                // A prime's every multiple, so that each of the loops' values comes up
                isLong: count++ % 13 !== 0,
              });
            }
          }
        }
      }
    }
  }
  return cases;
}

/** Bits that are reserved, at each level; A and D set beforehand; large pages. */
function reservedCases(bits: 32 | 64, mode: "twoLevel" | "pae" | "long"): SystemCase[] {
  const cases: SystemCase[] = [];
  const page = bits === 64 ? TRY_64 : TRY_32;
  const add = (name: string, setup: NonNullable<SystemCase["setup"]>, choice: Omit<PagingChoice, "mode"> = {}): void => {
    for (const ring of [0, 3] as const)
      for (const access of ["read", "write", "call"] as const)
        cases.push({
          name: `${mode}: ${name}, privilege ${ring}, ${access}`,
          bits,
          ring,
          paging: { mode, cr0: WP, ...choice },
          registers: { ebx: page },
          setup,
          action: accesses[access],
        });
  };
  paging[mode].entries.forEach((address, level) => {
    const isRoot = mode === "pae" && level === 0;
    const set = (low: number, high = 0): NonNullable<SystemCase["setup"]> => {
      return (m) => {
        m.at(address, 1, 0x81).bytes(low & 0xff, (low >>> 8) & 0xff, (low >>> 16) & 0xff, low >>> 24);
        if (high !== 0) m.at(address + 4, 1, 0x81).bytes(high & 0xff, (high >>> 8) & 0xff, (high >>> 16) & 0xff, high >>> 24);
      };
    };
    // A present bit in a pointer that is reserved faults where CR3 is loaded, which has cases of its own
    if (isRoot) return;
    add(`entry ${level} A`, set(A));
    add(`entry ${level} A D`, set(A | D));
    add(`entry ${level} G`, set(G), { cr4: Cr4.PGE });
    add(`entry ${level} bits that software has`, set(0xe00));
    // In the last entry it is PAT; in others a large page, whose low address bits are reserved, or a reserved bit. How many address
    // bits there are differs between processors
    if (mode === "twoLevel") add(`entry ${level} bit 7, no PSE`, set(LARGE));
    else {
      add(`entry ${level} bit 7`, set(LARGE));
      add(`entry ${level} bits 62 to 52`, set(0, 0x7ff0_0000), { efer: NXE });
      add(`entry ${level} NX without NXE`, set(0, NX_HIGH));
      add(`entry ${level} not present, all other bits`, (m) => m.poke(address, 0xffff_fffe).poke(address + 4, 0xffff_ffff));
    }
  });
  const directory = paging[mode].entries.at(-2) as number;
  for (const flags of [P | W | U, P | U, P | W, P | W | U | G, P | W | U | 0x1000])
    add(
      `large page, flags ${flags.toString(16)}`,
      (m) => m.poke(directory, flags | LARGE),
      mode === "twoLevel" ? { cr4: Cr4.PSE | Cr4.PGE } : { cr4: Cr4.PGE },
    );
  if (mode === "long") {
    const pointers = paging.long.entries[1] as number;
    for (const flags of [P | W | U, P | U, P | W, P | W | U | 0x2000])
      add(`1-GiB page, flags ${flags.toString(16)}`, (m) => m.poke(pointers, flags | LARGE));
  }
  return cases;
}

/** Protection keys of the last entry, by what PKRU says of theirs. */
function keyCases(): SystemCase[] {
  const cases: SystemCase[] = [];
  const entry = paging.long.entries.at(-1) as number;
  for (const pkru of [0, 4, 8, 12])
    for (const isOn of [true, false])
      for (const cr0 of [0, WP])
        for (const flags of [P | W | U, P | U, P | W, 0])
          for (const ring of [0, 3] as const)
            for (const access of ["read", "write", "call"] as const)
              cases.push({
                name: `key 1, PKRU ${pkru}, PKE ${isOn}, WP ${cr0 !== 0}, flags ${flags}, privilege ${ring}, ${access}`,
                bits: 64,
                ring,
                paging: { mode: "long", cr0, cr4: isOn ? Cr4.PKE : 0 },
                registers: { ebx: TRY_64 },
                setup: (m) => {
                  m.poke(entry, 0x2_0000 | flags).poke(entry + 4, 1 << 27);
                  m.writeCr(4, 0x20 | Cr4.PKE)
                    .load("eax", pkru)
                    .load("ecx", 0)
                    .load("edx", 0)
                    .bytes(0x0f, 0x01, 0xef); // wrpkru
                },
                action: accesses[access],
                isLong: cases.length % 3 !== 0,
              });
  return cases;
}

/** Accesses across two pages, of which the second is as the variation says. */
function crossingCases(bits: 32 | 64, mode: "twoLevel" | "pae" | "long"): SystemCase[] {
  const page = bits === 64 ? TRY_64 : TRY_32;
  const next = (paging[mode].entries.at(-1) as number) + (mode === "twoLevel" ? 4 : 8);
  const kinds = {
    read: [0x8b, 0x03],
    write: [0x89, 0x03],
    modify: [0x83, 0x03, 1],
    "locked modify": [0xf0, 0x83, 0x03, 1],
    "read of 16 bytes": [0xf3, 0x0f, 0x6f, 0x03],
  };
  return [0, P, P | U, P | W, P | W | U].flatMap((flags) =>
    ([0, 3] as const).flatMap((ring) =>
      Object.entries(kinds).map(
        ([name, action]): SystemCase => ({
          name: `${mode}: ${name} across pages, second ${flags}, privilege ${ring}`,
          bits,
          ring,
          paging: { mode, cr0: WP, cr4: 0x200 },
          registers: { ebx: typeof page === "bigint" ? page + 0xffdn : page + 0xffd },
          setup: (m) => m.poke(next, 0x2_1000 | flags),
          action,
        }),
      ),
    ),
  );
}

/** PAE: the four pointers are loaded, and judged, where CR3 or paging is. */
function pointerCases(): SystemCase[] {
  const reserved = [0x2, 0x4, 0x6, 0x18, 0x20, 0x40, 0x80, 0x100, 0xe00];
  return reserved.flatMap((low): SystemCase[] =>
    ([0, 1] as const).map((present) => ({
      name: `PAE pointer with bits ${low.toString(16)}, present ${present}`,
      bits: 32,
      setup: (m) =>
        m
          .poke(paging.pae.entries[0] as number, 0xf000 | low | present)
          .writeCr(3, paging.pae.cr3)
          .writeCr(4, 0x20),
      action: (m) => void m.writeCr(0, 0x8000_0011),
    })),
  );
}

export const pagingCases: readonly SystemCase[] = [
  ...permissionCases(32, "twoLevel"),
  ...permissionCases(32, "pae"),
  ...permissionCases(64, "long"),
  ...reservedCases(32, "twoLevel"),
  ...reservedCases(32, "pae"),
  ...reservedCases(64, "long"),
  ...crossingCases(32, "twoLevel"),
  ...crossingCases(32, "pae"),
  ...crossingCases(64, "long"),
  ...keyCases(),
  ...pointerCases(),
];
