/** What runs between cases: entry to a privilege, the handler of every vector, the line that tells what happened, and the way back. */
import { Code } from "iced-x86";
import type { Assembler, Label } from "../../assembler/assembler.ts";
import { bytes32, type CaseWriter } from "./case-writer.ts";
import {
  ALIAS_DISTANCE,
  CODE,
  CODE_64_USER,
  DATA,
  FRAME,
  GDT,
  GDT_BYTES,
  IDT,
  IMAGE_IN_ROM,
  IMAGE_START,
  LINE,
  ORIGIN,
  paging,
  RESTORED,
  RUNTIME_STACK,
  Selector,
  Slot,
  STACK,
  WATCHED,
} from "./layout.ts";

/** Ports that print: Bochs's debug console, and the one SeaBIOS writes to, which @mkvm/vmm has. */
const PRINT_PORTS = [0xe9, 0x402] as const;
/** Vectors whose exceptions have an error code. */
const WITH_ERROR_CODE = new Set([8, 10, 11, 12, 13, 14, 17]);
/** CR0, CR4 and EFER between cases, by code size: nothing on that need not be. */
const BETWEEN = { 32: { cr0: 0x11, cr4: 0, efer: 0 }, 64: { cr0: 0x8000_0011, cr4: 0x20, efer: 0xd00 } } as const;
const CR0_PAGING = 0x8000_0000;
const EFER = 0xc000_0080;
const DEBUGCTL = 0x1d9;
const DR6_CLEAR = 0xffff_0ff0;

/** What the handler pushes and the processor pushed before, lowest address first, then CR2 and DR6: names for each word of a line. */
export const FRAME_WORDS: Readonly<Record<32 | 64, readonly string[]>> = {
  32: "ss gs fs es ds edi esi ebp esp ebx edx ecx eax vector error ip cs flags oldEsp oldSs vmEs vmDs vmFs vmGs cr2 dr6".split(
    " ",
  ),
  64: "ss gs fs es ds r11 rdi rsi rbp rbx rdx rcx rax vector error ip cs flags rsp oldSs cr2 dr6".split(" "),
};

export class SystemRuntime {
  /** Handlers by vector. */
  readonly handlers: readonly Label[];
  readonly #a: Assembler;
  readonly #m: CaseWriter;
  readonly #bits: 32 | 64;
  readonly #entries = new Map<string, { label: Label; ring: 0 | 1 | 2 | 3; flags: number; isAliased: boolean }>();
  readonly #modes = new Map<string, { label: Label; cr0: number; cr4: number; efer: number; cr3: number }>();
  readonly #hex: Label;
  readonly #print: Label;
  readonly #restore: Label;

  constructor(a: Assembler, m: CaseWriter) {
    this.#a = a;
    this.#m = m;
    this.#bits = m.bits;
    this.handlers = Array.from({ length: 256 }, (_, vector) => a.label(`vector ${vector}`));
    this.#hex = a.label("hex");
    this.#print = a.label("print");
    this.#restore = a.label("restore");
  }

  /** Routine that returns to its caller at another privilege, with all but segment registers as they are. */
  entry(ring: 0 | 1 | 2 | 3, flags: number, isAliased: boolean): Label {
    const key = `enter ${ring} ${flags} ${isAliased}`;
    const known = this.#entries.get(key);
    if (known !== undefined) return known.label;
    const label = this.#a.label(key);
    this.#entries.set(key, { label, ring, flags, isAliased });
    return label;
  }

  /** Routine that turns on paging as a case wants it. */
  pagingMode(mode: "twoLevel" | "pae" | "long", cr0: number, cr4: number, efer: number): Label {
    const key = `paging ${mode} ${cr0} ${cr4} ${efer}`;
    const known = this.#modes.get(key);
    if (known !== undefined) return known.label;
    const label = this.#a.label(key);
    const pae = mode === "twoLevel" ? 0 : 0x20;
    const long = mode === "long" ? 0x500 : 0;
    this.#modes.set(key, {
      label,
      cr3: paging[mode].cr3,
      cr0: (CR0_PAGING | 0x11 | cr0) >>> 0,
      cr4: pae | cr4,
      efer: long | efer,
    });
    return label;
  }

  /** MOV of the accumulator to a word of memory: 32 or 64 bits, as the code is. */
  #storeWord(address: number): void {
    this.#wide();
    this.#m.at(address, 0, 0x89);
  }
  /** REX.W in 64-bit code. */
  #wide(): void {
    if (this.#bits === 64) this.#a.bytes(0x48);
  }
  /** Jcc rel32 by its second opcode byte. */
  #branch(condition: "e" | "ne" | "b", label: Label): void {
    const codes = {
      e: [Code.Je_rel32_32, Code.Je_rel32_64],
      ne: [Code.Jne_rel32_32, Code.Jne_rel32_64],
      b: [Code.Jb_rel32_32, Code.Jb_rel32_64],
    } as const;
    this.#a.emit(codes[condition][this.#bits === 64 ? 1 : 0], label);
  }

  /** The routines themselves, behind the cases: what cases asked for is known then. */
  emit(): void {
    this.#emitEntries();
    this.#emitModes();
    this.#emitHandlers();
    this.#emitPrint();
    this.#emitHex();
    this.#emitRestore();
  }

  #emitEntries(): void {
    const m = this.#m;
    for (const { label, ring, flags, isAliased } of this.#entries.values()) {
      m.place(label);
      m.at(Slot.scratch, 0, 0x8f); // pop [scratch]
      if (isAliased) m.at(Slot.scratch, 5, 0x81).bytes(...bytes32(ALIAS_DISTANCE)); // sub [scratch], distance
      m.bytes(0x50).load("eax", DATA[ring]);
      for (const segment of [0xd8, 0xc0, 0xe0, 0xe8]) m.bytes(0x8e, segment);
      m.bytes(0x58);
      const code = this.#bits === 64 ? (ring === 3 ? CODE_64_USER : Selector.code64) : CODE[ring];
      for (const word of [DATA[ring], STACK[ring], flags | 2, code]) m.bytes(0x68, ...bytes32(word));
      m.at(Slot.scratch, 6, 0xff); // push [scratch]
      this.#wide();
      m.bytes(0xcf);
    }
  }

  #emitModes(): void {
    const m = this.#m;
    for (const { label, cr0, cr4, efer, cr3 } of this.#modes.values()) {
      m.place(label).writeMsr(EFER, efer).writeCr(3, cr3).writeCr(4, cr4).writeCr(0, cr0).bytes(0xc3);
    }
  }

  #emitHandlers(): void {
    const m = this.#m;
    const common = m.label("common handler");
    for (const [vector, handler] of this.handlers.entries()) {
      m.place(handler);
      if (!WITH_ERROR_CODE.has(vector)) m.bytes(0x6a, 0xff);
      m.bytes(0x68, ...bytes32(vector)).jump(common);
    }
    m.place(common);
    if (this.#bits === 32) {
      m.bytes(0x60, 0x1e, 0x06, 0x0f, 0xa0, 0x0f, 0xa8, 0x16, 0xfc); // pushad; push ds, es, fs, gs, ss; cld
      // mov esi, esp; of a 16-bit stack the lower half: mov ax, ss; lar eax, eax; test B; jnz; movzx esi, si
      m.bytes(0x89, 0xe6, 0x66, 0x8c, 0xd0, 0x0f, 0x02, 0xc0, 0xa9, 0, 0, 0x40, 0, 0x75, 3, 0x0f, 0xb7, 0xf6);
      m.load("eax", DATA[0]).bytes(0x8e, 0xd8, 0x8e, 0xc0); // mov ds, ax; mov es, ax
      m.load("edi", FRAME).load("ecx", 24).bytes(0x36, 0xf3, 0xa5); // rep movsd from the stack
    } else {
      m.bytes(0x50, 0x51, 0x52, 0x53, 0x55, 0x56, 0x57, 0x41, 0x53); // push rax, rcx, rdx, rbx, rbp, rsi, rdi, r11
      for (const segment of [0xd8, 0xc0, 0xe0, 0xe8, 0xd0]) m.bytes(0x8c, segment, 0x50); // ds, es, fs, gs, ss
      m.bytes(0xfc, 0x48, 0x89, 0xe6).load("edi", FRAME).load("ecx", 20).bytes(0xf3, 0x48, 0xa5);
      m.load("eax", DATA[0]);
    }
    m.bytes(0x8e, 0xd0, 0xbc, ...bytes32(RUNTIME_STACK)); // mov ss, ax; mov esp
    m.load("eax", 0).bytes(0x0f, 0x23, 0xf8); // mov dr7
    const bytes = this.#bits / 8;
    const word = (name: string): number => FRAME + FRAME_WORDS[this.#bits].indexOf(name) * bytes;
    m.bytes(0x0f, 0x20, 0xd0); // mov eax, cr2
    this.#storeWord(word("cr2"));
    m.bytes(0x0f, 0x21, 0xf0); // mov eax, dr6
    this.#storeWord(word("dr6"));
    const { cr0, cr4, efer } = BETWEEN[this.#bits];
    m.writeCr(0, cr0).writeCr(4, cr4).writeMsr(EFER, efer).writeMsr(DEBUGCTL, 0);
    if (this.#bits === 32) this.#forgetOldStack(word);
    // Code in the ROM is told by its distance from where the case begins, at whatever address it ran
    const isTold = m.label();
    const isHigh = m.label();
    if (this.#bits === 64) {
      m.at(word("ip") + 4, 7, 0x83).bytes(0); // cmp [ip + 4], 0
      this.#branch("ne", isTold);
    }
    m.at(word("ip"), 7, 0x81).bytes(...bytes32(ORIGIN - ALIAS_DISTANCE));
    this.#branch("b", isTold);
    m.at(word("ip"), 7, 0x81).bytes(...bytes32(ALIAS_DISTANCE));
    const isLow = m.label();
    this.#branch("b", isLow);
    m.jump(isHigh).place(isLow);
    m.at(word("ip"), 0, 0x81).bytes(...bytes32(ALIAS_DISTANCE)); // add
    m.place(isHigh).at(Slot.begin, 0, 0x8b).at(word("ip"), 0, 0x29).place(isTold); // sub [ip], [begin]
    this.printWords(FRAME, FRAME_WORDS[this.#bits].length);
    this.restore();
    m.at(Slot.next, 0, 0x8b).bytes(0xff, 0xe0); // jmp [next]
  }

  /** What lies above a frame of the same privilege is no part of it. */
  #forgetOldStack(word: (name: string) => number): void {
    const m = this.#m;
    const all = m.label();
    m.at(word("flags") + 2, 0, 0xf6).bytes(2); // test VM
    this.#branch("ne", all);
    for (const name of ["vmEs", "vmDs", "vmFs", "vmGs"]) m.poke(word(name), 0);
    m.at(word("cs"), 0, 0xf6).bytes(3);
    this.#branch("ne", all);
    m.poke(word("oldEsp"), 0).poke(word("oldSs"), 0).place(all);
  }

  /** A line of the case's number, words in memory, and what has changed. */
  printWords(address: number, count: number): void {
    this.#m.load("esi", address).load("ebx", count).call(this.#print);
  }

  /** Memory, tables and registers become as every case finds them. */
  restore(): void {
    this.#m.call(this.#restore);
  }

  #emitPrint(): void {
    const m = this.#m;
    m.place(this.#print).load("edi", LINE);
    m.bytes(0xc6, 0x07, "@".charCodeAt(0), 0xff, 0xc7).at(Slot.index, 0, 0x8b).call(this.#hex);
    const field = m.label();
    m.place(field);
    this.#wide();
    m.bytes(0xad).call(this.#hex).bytes(0xff, 0xcb); // lods; dec ebx
    this.#branch("ne", field);
    m.at(Slot.scratch, 7, 0x89); // mov [scratch], edi
    const place = m.label(),
      again = m.label(),
      done = m.label(),
      end = m.label(),
      table = m.label("watched");
    m.loadLabel("ebp", table).place(place);
    m.bytes(0x8b, 0x7d, 0, 0x8b, 0x4d, 4, 0x8b, 0x75, 8, 0x85, 0xff); // mov edi, ecx, esi from the table; test edi, edi
    this.#branch("e", end);
    m.place(again).bytes(0x85, 0xc9);
    this.#branch("e", done);
    m.bytes(0xf3, 0xa7); // repe cmpsd
    this.#branch("e", done);
    m.bytes(0x56, 0x57, 0x51, 0x8b, 0x57, 0xfc, 0x52); // push esi, edi, ecx; mov edx, [edi - 4]; push edx
    m.bytes(0x8d, 0x47, 0xfc).at(Slot.scratch, 7, 0x8b).call(this.#hex); // lea eax, [edi - 4]; mov edi, [scratch]
    m.bytes(0xc6, 0x47, 0xff, "=".charCodeAt(0), 0x58).call(this.#hex).at(Slot.scratch, 7, 0x89);
    m.bytes(0x59, 0x5f, 0x5e).jump(again);
    m.place(done).bytes(0x83, 0xc5, 12).jump(place);
    m.place(end).at(Slot.scratch, 7, 0x8b).bytes(0xc6, 0x07, 10, 0xff, 0xc7);
    for (const port of PRINT_PORTS) {
      m.bytes(0x89, 0xf9, 0x81, 0xe9, ...bytes32(LINE)).load("esi", LINE); // mov ecx, edi; sub ecx, LINE
      m.load("edx", port).bytes(0xf3, 0x6e); // rep outsb
    }
    m.bytes(0xc3).place(table);
    this.#emitTable(WATCHED);
  }

  /** Address, 32-bit words, and where in the ROM the words are as they were; 0 ends it. */
  #emitTable(places: readonly (readonly [number, number])[]): void {
    for (const [address, count] of places) this.#a.doublewords(address, count, IMAGE_IN_ROM + address - IMAGE_START);
    this.#a.doublewords(0);
  }

  /** The accumulator as hexadecimal digits and a space, at EDI. Clobbers ECX and EDX. */
  #emitHex(): void {
    const m = this.#m;
    const skip = m.label(),
      digit = m.label(),
      isDecimal = m.label(),
      end = m.label();
    const rotate = (): void => {
      this.#wide();
      m.bytes(0xc1, 0xc0, 4, 0xff, 0xc9); // rol eax, 4; dec ecx
    };
    m.place(this.#hex)
      .load("ecx", this.#bits / 4)
      .place(skip);
    rotate();
    this.#branch("e", digit);
    m.bytes(0xa8, 0x0f);
    this.#branch("e", skip);
    m.place(digit).bytes(0x88, 0xc2, 0x80, 0xe2, 0x0f, 0x80, 0xfa, 10); // mov dl, al; and dl, 15; cmp dl, 10
    this.#branch("b", isDecimal);
    m.bytes(0x80, 0xc2, 0x27).place(isDecimal).bytes(0x80, 0xc2, 0x30, 0x88, 0x17, 0xff, 0xc7, 0x85, 0xc9);
    this.#branch("e", end);
    rotate();
    m.jump(digit).place(end).bytes(0xc6, 0x07, 0x20, 0xff, 0xc7, 0xc3);
  }

  /** Memory, tables and registers as every case finds them. */
  #emitRestore(): void {
    const m = this.#m;
    const place = m.label(),
      end = m.label(),
      table = m.label("restored");
    m.place(this.#restore).loadLabel("ebp", table).place(place);
    m.bytes(0x8b, 0x7d, 0, 0x8b, 0x4d, 4, 0x8b, 0x75, 8, 0x85, 0xff);
    this.#branch("e", end);
    m.bytes(0xf3, 0xa5, 0x83, 0xc5, 12).jump(place).place(end);
    if (this.#bits === 64) m.writeCr(3, paging.long.cr3);
    this.loadTables();
    m.load("eax", 0).bytes(0x0f, 0x22, 0xd0).writeDr(6, DR6_CLEAR); // mov cr2
    // The stack changes under the caller
    m.bytes(0x59, 0xbc, ...bytes32(STACK[0]), 0x6a, 2, 0x9d); // pop ecx; mov esp; push 2; popf
    for (const register of ["eax", "edx", "ebx", "ebp", "esi", "edi"] as const) m.load(register, 0);
    m.bytes(0xff, 0xe1).place(table); // jmp ecx
    this.#emitTable([...WATCHED, ...RESTORED]);
  }

  /** GDTR, IDTR, LDTR, TR and the data segments. */
  loadTables(): void {
    const m = this.#m;
    const pointers = { 2: [GDT_BYTES - 1, GDT], 3: [this.#bits === 64 ? 0xfff : 0x7ff, IDT] } as const;
    for (const group of [2, 3] as const) {
      const [limit, base] = pointers[group];
      m.poke(Slot.scratch, limit, 2)
        .poke(Slot.scratch + 2, base)
        .poke(Slot.scratch + 6, 0)
        .at(Slot.scratch, group, 0x0f, 0x01);
    }
    m.load("eax", 0).bytes(0x0f, 0x00, 0xd0); // lldt ax
    // LTR wants a task that is not busy, and marks it
    m.poke(GDT + Selector.task + 5, 0x89, 1)
      .load("eax", Selector.task)
      .bytes(0x0f, 0x00, 0xd8);
    m.load("eax", DATA[0]);
    for (const segment of [0xd8, 0xc0, 0xe0, 0xe8, 0xd0]) m.bytes(0x8e, segment);
  }
}
