/** Where the system guest keeps what it uses. All of it is copied from the ROM, so tables are made here and not by guest code. */

/** The ROM ends at 4 GiB; code in it runs where it lies, and privilege 3 sees it at ALIAS below, where paging is on. */
export const ROM_BYTES = 0x10_0000;
export const ORIGIN = 0xfff0_0000;
export const ALIAS_DISTANCE = 0x8000_0000;
/** In the ROM: memory as cases find it, and behind it the 64 KiB that the processor begins in. */
export const IMAGE_IN_ROM = 0xfffd_0000;
export const BOOT = 0xffff_0000;

export const GDT = 0x1000;
export const GDT_BYTES = 0x200;
export const LDT = 0x1200;
export const TSS = 0x1300;
export const IO_BITMAP = 0x1388;
export const OTHER_TSS = 0x1400;
export const OTHER_TSS_16 = 0x1480;
export const DOUBLE_FAULT_TSS = 0x1500;
export const SHORT_TSS_16 = 0x1580;
/** Of the tasks that handle vectors 10 to 13 where a case wants that. */
const FAULT_TSS = [0x1600, 0x1680, 0x1700, 0x1780] as const;
const FIRST_FAULT = 10;
export const IDT = 0x2000;
/** Two levels: directory, tables of low memory, of the ROM and of the page to try. */
const DIRECTORY = 0x4000;
const LOW_TABLE = 0x5000;
const ROM_TABLE = 0x6000;
const TRY_TABLE = 0x7000;
/** PAE and four levels: directories by GiB; the page to try has tables of its own. */
const PAE_POINTERS = 0x8000;
const PAE_LOW_DIRECTORY = 0x9000;
const PAE_ROM_DIRECTORY = 0xa000;
const PAE_LOW_TABLE = 0xb000;
const LONG_ROOT = 0xc000;
const LONG_POINTERS = 0xd000;
const LONG_TRY_POINTERS = 0xe000;
const PAE_TRY_DIRECTORY = 0xf000;
const PAE_TRY_TABLE = 0x1_0000;
export const IMAGE_START = 0x1000;
export const IMAGE_END = 0x2_1000;
/** What cases load, store, jump to: a page with code in it; mapped to itself, and to TRY_32 or TRY_64 as a case likes. */
export const PAGE = 0x2_0000;
/** In PAGE: INT 81h; POP EAX, ECX, EDX, EBX and INT 81h; data that may be written. */
export const PAGE_POPS = 0x10;
export const PAGE_DATA = 0x20;
/** Code of virtual-8086 cases is put here. */
export const PAGE_CODE = 0x40;
export const TRY_32 = 0x4000_0000;
export const TRY_64 = 0x80_0000_0000n;

/** The runtime's own: words that cases set, the frame of what happened, the line that is made of it. */
export const Slot = { index: 0x3800, begin: 0x3808, next: 0x3810, scratch: 0x3818 } as const;
export const FRAME = 0x3900;
export const RESET_STATE = 0x3c00;
export const LINE = 0x1_8000;
export const STACK = [0x3_0f00, 0x3_1f00, 0x3_2f00, 0x3_3f00] as const;
/** Stacks of more privileged levels, as the task state segment names them. */
export const INNER_STACK = [0x3_4f00, 0x3_5f00, 0x3_6f00] as const;
export const RUNTIME_STACK = 0x3_8f00;
export const DOUBLE_FAULT_STACK = 0x3_9f00;
export const IST_STACK = 0x3_af00;
export const OTHER_TASK_STACK = 0x3_bf00;

export const Selector = {
  code32: 0x08,
  data: 0x10,
  code64: 0x28,
  task: 0x38,
  ldt: 0x48,
  otherTask: 0x58,
  otherTask16: 0x60,
  doubleFaultTask: 0x68,
  /** For cases to define. */
  test: 0x70,
  code16: 0x80,
  data16: 0x88,
  second: 0x90,
  gate: 0xc0,
  /** Tasks for vectors 10 to 13, one after another. */
  faultTask: 0x100,
} as const;
/** By privilege. */
export const CODE = [0x08, 0xa1, 0xb2, 0x1b] as const;
export const DATA = [0x10, 0xa9, 0xba, 0x23] as const;
export const CODE_64_USER = 0x33;

/** A segment descriptor: access byte, and the flags G, D, L as 8, 4, 2. `limit` as the descriptor has it. */
export function descriptor(base: number, limit: number, access: number, flags = 0xc): [number, number] {
  const low = ((base << 16) | (limit & 0xffff)) >>> 0;
  const high = ((base & 0xff00_0000) | (flags << 20) | (limit & 0xf_0000) | (access << 8) | ((base >>> 16) & 0xff)) >>> 0;
  return [low, high];
}

/** A gate's lower 64 bits. */
export function gate(selector: number, offset: number, access: number, parameters = 0): [number, number] {
  return [((selector << 16) | (offset & 0xffff)) >>> 0, ((offset & 0xffff_0000) | (access << 8) | parameters) >>> 0];
}

const P = 1,
  W = 2,
  U = 4,
  LARGE = 0x80;
const ENTRY = P | W | U;

export interface PagingRoot {
  readonly cr3: number;
  /** Entries that map the page to try, from the root down: their addresses. */
  readonly entries: readonly number[];
}
export const paging: Readonly<Record<"twoLevel" | "pae" | "long", PagingRoot>> = {
  twoLevel: { cr3: DIRECTORY, entries: [DIRECTORY + 4 * 0x100, TRY_TABLE] },
  pae: { cr3: PAE_POINTERS, entries: [PAE_POINTERS + 8, PAE_TRY_DIRECTORY, PAE_TRY_TABLE] },
  long: { cr3: LONG_ROOT, entries: [LONG_ROOT + 8, LONG_TRY_POINTERS, PAE_TRY_DIRECTORY, PAE_TRY_TABLE] },
};

/** Places whose contents are told when a case has changed them: [address, 32-bit words]. All is put back after each case. */
export const WATCHED: readonly (readonly [number, number])[] = [
  [GDT, 0x800 / 4],
  [DIRECTORY + 4 * 0x100, 2],
  [TRY_TABLE, 4],
  [PAE_POINTERS + 8, 2],
  [PAE_TRY_DIRECTORY, 4],
  [PAE_TRY_TABLE, 4],
  [LONG_ROOT + 8, 2],
  [LONG_TRY_POINTERS, 4],
  [PAGE, 0x40 / 4],
];
/** Put back without being told. */
export const RESTORED: readonly (readonly [number, number])[] = [
  [IDT, 0x1000 / 4],
  [PAGE + PAGE_CODE, 0x40 / 4],
];

/** All of that memory as a case finds it, from IMAGE_START on. `handlers` by vector. */
export function memoryImage(bits: 32 | 64, handlers: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(IMAGE_END - IMAGE_START);
  const view = new DataView(bytes.buffer);
  const put = (address: number, ...words: number[]): void => {
    for (const [i, word] of words.entries()) view.setUint32(address - IMAGE_START + i * 4, word >>> 0, true);
  };
  const put16 = (address: number, value: number): void => view.setUint16(address - IMAGE_START, value, true);
  const define = (selector: number, [low, high]: [number, number]): void => put(GDT + (selector & ~7), low, high);

  for (const privilege of [0, 1, 2, 3] as const) {
    define(CODE[privilege], descriptor(0, 0xf_ffff, 0x9b | (privilege << 5)));
    define(DATA[privilege], descriptor(0, 0xf_ffff, 0x93 | (privilege << 5)));
  }
  define(Selector.code64, descriptor(0, 0xf_ffff, 0x9b, 0xa));
  define(CODE_64_USER, descriptor(0, 0xf_ffff, 0xfb, 0xa));
  define(Selector.task, descriptor(TSS, IO_BITMAP + 8 - TSS, 0x8b, 0));
  define(Selector.ldt, descriptor(LDT, 0x7f, 0x82, 0));
  define(Selector.code16, descriptor(PAGE, 0xffff, 0x9b, 0));
  define(Selector.data16, descriptor(0, 0xffff, 0x93, 0));
  // Test segments lie over PAGE
  define(Selector.test, descriptor(PAGE, 0xfff, 0x92));
  define(Selector.second, descriptor(PAGE, 0xfff, 0x92));
  if (bits === 32) {
    define(Selector.otherTask, descriptor(OTHER_TSS, 0x67, 0x89, 0));
    define(Selector.otherTask16, descriptor(OTHER_TSS_16, 0x2b, 0x81, 0));
    define(Selector.doubleFaultTask, descriptor(DOUBLE_FAULT_TSS, 0x67, 0x89, 0));
    for (const [i, stack] of INNER_STACK.entries()) put(TSS + 4 + i * 8, stack, DATA[i] as number);
    put16(TSS + 0x66, IO_BITMAP - TSS);
    put(OTHER_TSS + 0x20, PAGE, 2);
    put(OTHER_TSS + 0x28, 0x1111, 0x2222, 0x3333, 0x4444, OTHER_TASK_STACK, 0, 0, 0);
    put(OTHER_TSS + 0x48, Selector.data, Selector.code32, Selector.data, Selector.data, 0, 0, 0, 0x68_0000);
    put(OTHER_TSS + 4, INNER_STACK[0], Selector.data);
    const words16 = [0, 0x4f00, Selector.data, 0, 0, 0, 0, 0, 2, 0x1111, 0x2222, 0x3333, 0x4444, 0xff00, 0, 0, 0];
    for (const [i, word] of words16.entries()) put16(OTHER_TSS_16 + i * 2, word);
    // ES, CS, SS, DS, LDT. Code through the 16-bit segment over PAGE, and a stack in an unused part of the directory
    const segments16 = [Selector.data, Selector.code16, Selector.data16, Selector.data, 0];
    for (const [i, word] of segments16.entries()) put16(OTHER_TSS_16 + 0x22 + i * 2, word);
    const handle = (tss: number, vector: number): void => {
      put(tss + 0x20, handlers[vector] as number, 2);
      put(tss + 0x38, DOUBLE_FAULT_STACK);
      put(tss + 0x48, Selector.data, Selector.code32, Selector.data, Selector.data, Selector.data, Selector.data, 0, 0);
    };
    handle(DOUBLE_FAULT_TSS, 8);
    FAULT_TSS.forEach((tss, i) => {
      define(Selector.faultTask + i * 8, descriptor(tss, 0x67, 0x89, 0));
      handle(tss, FIRST_FAULT + i);
    });
  } else {
    put(TSS + 4, INNER_STACK[0], 0, INNER_STACK[1], 0, INNER_STACK[2], 0);
    put(TSS + 36, IST_STACK);
    put16(TSS + 0x66, IO_BITMAP - TSS);
  }
  put(IO_BITMAP, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff);
  handlers.forEach((handler, vector) => {
    // Programs may use the vectors of the runtime and of INT3 and INTO
    const access = vector === 3 || vector === 4 || vector >= 0x80 ? 0xee : 0x8e;
    if (bits === 64) put(IDT + vector * 16, ...gate(Selector.code64, handler, access, 1), 0);
    else if (vector === 8) put(IDT + vector * 8, ...gate(Selector.doubleFaultTask, 0, 0x85));
    else put(IDT + vector * 8, ...gate(Selector.code32, handler, access));
  });
  // Low memory is the runtime's, but for the stack of privilege 3, and one stack below it
  const lowFlags = (page: number): number => (page === STACK[3] >>> 12 ? ENTRY : P | W);
  put(DIRECTORY, LOW_TABLE | ENTRY);
  put(DIRECTORY + 4 * 0x100, TRY_TABLE | ENTRY);
  put(DIRECTORY + 4 * 0x1ff, ROM_TABLE | ENTRY);
  put(DIRECTORY + 4 * 0x3ff, ROM_TABLE | P | W);
  put(TRY_TABLE, PAGE | ENTRY, (PAGE + 0x1000) | ENTRY);
  for (let i = 0; i < 1024; i++) {
    put(LOW_TABLE + i * 4, (i << 12) | lowFlags(i));
    put(ROM_TABLE + i * 4, 0xffc0_0000 | (i << 12) | ENTRY);
  }
  put(PAE_POINTERS, PAE_LOW_DIRECTORY | P, 0, PAE_TRY_DIRECTORY | P, 0, 0, 0, PAE_ROM_DIRECTORY | P, 0);
  put(PAE_LOW_DIRECTORY, PAE_LOW_TABLE | ENTRY, 0);
  put(PAE_ROM_DIRECTORY + 8 * 511, 0xffe0_0000 | LARGE | P | W, 0);
  put(PAE_TRY_DIRECTORY, PAE_TRY_TABLE | ENTRY, 0);
  put(PAE_TRY_DIRECTORY + 8 * 511, 0xffe0_0000 | LARGE | ENTRY, 0);
  put(PAE_TRY_TABLE, PAGE | ENTRY, 0, (PAGE + 0x1000) | ENTRY, 0);
  for (let i = 0; i < 512; i++) put(PAE_LOW_TABLE + i * 8, (i << 12) | lowFlags(i), 0);
  put(LONG_ROOT, LONG_POINTERS | ENTRY, 0, LONG_TRY_POINTERS | ENTRY, 0);
  put(LONG_POINTERS, PAE_LOW_DIRECTORY | ENTRY, 0, PAE_TRY_DIRECTORY | ENTRY, 0, 0, 0, PAE_ROM_DIRECTORY | ENTRY, 0);
  put(LONG_TRY_POINTERS, PAE_TRY_DIRECTORY | ENTRY, 0);
  bytes.set([0xcd, 0x81], PAGE - IMAGE_START);
  bytes.set([0x58, 0x59, 0x5a, 0x5b, 0xcd, 0x81], PAGE + PAGE_POPS - IMAGE_START);
  return bytes;
}
