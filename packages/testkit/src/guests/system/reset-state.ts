/** The code at the reset vector: it keeps the state of the processor as it comes out of reset, and goes to protected mode. */
import { bytes32 } from "./case-writer.ts";
import {
  BOOT,
  CODE,
  DATA,
  GDT,
  GDT_BYTES,
  IMAGE_END,
  IMAGE_IN_ROM,
  IMAGE_START,
  ORIGIN,
  paging,
  RESET_STATE,
  Selector,
} from "./layout.ts";

/** Offsets in the last 64 KiB. */
const START_16 = 0xf000;
const START_32 = 0xf800;
const GDT_POINTER = 0xff00;
const RESET_VECTOR = 0xfff0;
/** The runtime's variables, between tables, have no image. */
const VARIABLES = [0x3000, 0x4000] as const;
const EFER = 0xc000_0080;

/** MSRs that reset gives a value which is the same on every processor. */
const MSRS = { efer: EFER, apicBase: 0x1b, pat: 0x277, sysenterCs: 0x174, debugctl: 0x1d9, mtrrDefault: 0x2ff } as const;
const GENERAL = { eax: 0, ebx: 3, esp: 4, ebp: 5, esi: 6, edi: 7 } as const;
const SEGMENTS = { cs: 1, ds: 3, es: 0, fs: 4, gs: 5, ss: 2 } as const;
const DEBUG = { dr0: 0, dr1: 1, dr2: 2, dr3: 3, dr6: 6, dr7: 7 } as const;

/** Names of the words that are kept, in their order. */
export const RESET_WORDS: readonly string[] = [
  ...Object.keys(GENERAL),
  "flags",
  ...Object.keys(SEGMENTS),
  "cr0",
  "cr2",
  "cr3",
  "cr4",
  ...Object.keys(DEBUG),
  "gdtrLimit",
  "gdtrBase",
  "idtrLimit",
  "idtrBase",
  ...Object.keys(MSRS),
  "fpuControl",
  "fpuStatus",
];

/** The last 64 KiB of the ROM. The code at ORIGIN is begun in protected mode, or in 64-bit mode with tables of four levels. */
export function bootCode(bits: 32 | 64): Uint8Array {
  const rom = new Uint8Array(0x1_0000).fill(0xf4);
  rom.set(resetCode(bits / 8), START_16);
  rom.set(protectedModeCode(bits), START_32);
  rom.set([...bytes32(GDT_BYTES - 1).slice(0, 2), ...bytes32(IMAGE_IN_ROM + GDT - IMAGE_START)], GDT_POINTER);
  const distance = START_16 - (RESET_VECTOR + 3);
  rom.set([0xe9, distance & 0xff, (distance >>> 8) & 0xff], RESET_VECTOR);
  return rom;
}

/** 16-bit code. Words lie `stride` bytes apart. */
function resetCode(stride: number): number[] {
  const code: number[] = [];
  let address = RESET_STATE;
  const place = (): number[] => {
    const at = [address & 0xff, address >>> 8];
    address += stride;
    return at;
  };
  /** MOV [place], register. */
  const store = (register: number): void => void code.push(0x66, 0x89, (register << 3) | 6, ...place());
  for (const register of Object.values(GENERAL)) store(register);
  code.push(0xbc, 0x00, 0x30, 0x66, 0x9c, 0x66, 0x58); // mov sp, 3000h; pushfd; pop eax
  store(0);
  for (const segment of Object.values(SEGMENTS)) code.push(0x8c, (segment << 3) | 6, ...place());
  for (const cr of [0, 2, 3, 4]) {
    code.push(0x0f, 0x20, 0xc0 | (cr << 3));
    store(0);
  }
  for (const dr of Object.values(DEBUG)) {
    code.push(0x0f, 0x21, 0xc0 | (dr << 3));
    store(0);
  }
  for (const group of [0, 1]) {
    // SGDT and SIDT to 2FF0h with 32-bit bases, then limit and base apart
    code.push(0x66, 0x0f, 0x01, (group << 3) | 6, 0xf0, 0x2f, 0x66, 0x0f, 0xb7, 0x06, 0xf0, 0x2f);
    store(0);
    code.push(0x66, 0xa1, 0xf2, 0x2f);
    store(0);
  }
  for (const msr of Object.values(MSRS)) {
    code.push(0x66, 0xb9, ...bytes32(msr), 0x0f, 0x32);
    store(0);
  }
  code.push(0xd9, 0x3e, ...place(), 0xdd, 0x3e, ...place()); // fnstcw, fnstsw
  code.push(0x2e, 0x66, 0x0f, 0x01, 0x16, GDT_POINTER & 0xff, GDT_POINTER >>> 8); // lgdt cs:[pointer]
  code.push(0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0); // mov eax, cr0; or al, 1; mov cr0, eax
  code.push(0x66, 0xea, ...bytes32(BOOT + START_32), CODE[0], 0);
  return code;
}

function protectedModeCode(bits: 32 | 64): number[] {
  const code = [0xb8, ...bytes32(DATA[0]), 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xfc]; // mov eax; mov ds, es, ss; cld
  const [keptFrom, keptTo] = VARIABLES;
  for (const [from, to] of [
    [IMAGE_START, keptFrom],
    [keptTo, IMAGE_END],
  ] as const) {
    code.push(0xbe, ...bytes32(IMAGE_IN_ROM + from - IMAGE_START), 0xbf, ...bytes32(from));
    code.push(0xb9, ...bytes32((to - from) / 4), 0xf3, 0xa5); // rep movsd
  }
  // CR0.CD and NW off
  code.push(0xb8, ...bytes32(0x11), 0x0f, 0x22, 0xc0);
  if (bits === 64) {
    code.push(0xb8, ...bytes32(0x20), 0x0f, 0x22, 0xe0, 0xb8, ...bytes32(paging.long.cr3), 0x0f, 0x22, 0xd8);
    code.push(0xb9, ...bytes32(EFER), 0xb8, ...bytes32(0x900), 0x31, 0xd2, 0x0f, 0x30);
    code.push(0xb8, ...bytes32(0x8000_0011), 0x0f, 0x22, 0xc0);
  }
  code.push(0xea, ...bytes32(ORIGIN), bits === 64 ? Selector.code64 : CODE[0], 0);
  return code;
}
