import { Code } from "iced-x86";
import {
  AL,
  Assembler,
  CR2,
  CR3,
  DL,
  DX,
  EAX,
  EBX,
  ECX,
  EDX,
  type Label,
  mem,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  RSP,
} from "../assembler/assembler.ts";

/** Where a flat64 image is loaded and started. */
const ORIGIN = 0x10_0000;
const STACK_TOP = 0x1f_0000;
/** Page tables that the guest builds: one that maps ALIAS to DATA, page by page, as faults ask for it. */
const ALIAS = 0x40_0000_0000n;
const ALIAS_TABLES = 0x20_0000;
const DATA = 0x21_0000;
const DATA_PAGES = 16;
const IDT = 0x1f_1000;
const APIC = 0xfee0_0000;
const APIC_EOI = 0xb0,
  APIC_SPURIOUS = 0xf0,
  APIC_TIMER = 0x320,
  APIC_INITIAL_COUNT = 0x380,
  APIC_DIVIDE = 0x3e0;
const TIMER_VECTOR = 0x20;
const PAGE_FAULT_VECTOR = 14;
/** LAPIC ticks of a period, about 10 ms at a bus clock of 1 GHz divided by 16. */
const TIMER_COUNT = 625_000;
const SERIAL = 0x3f8;
const LINE_STATUS = SERIAL + 5;
const POWER_PORT = 0x604;
const POWER_OFF = 0x3400;
const MODULUS = 1_000_000_007;

/**
 * A 64-bit guest for machines without a Linux at hand: a flat64 image that runs the same rounds as the Linux workload, with its
 * own page-fault handler, local APIC timer and serial console. Registers: R12 rounds, R13 checksum, R14 timer ticks, R15 page.
 * With `rounds` it ends by itself after that many, else when told to.
 * Each round waits for a timer tick, writes the sum through a page that is mapped only when the write faults, and reads it back.
 */
export function checkGuest(rounds?: number): Uint8Array {
  const a = new Assembler(64, ORIGIN);
  const timerHandler = a.label("timer"),
    faultHandler = a.label("page fault"),
    print = a.label("print"),
    printNumber = a.label("print number");
  const round = a.label("round"),
    stop = a.label("stop"),
    mark = a.label("mark"),
    broken = a.label("broken");
  const strings = new Map<string, Label>();
  const say = (text: string) => {
    const label = strings.get(text) ?? a.label(`text ${text}`);
    strings.set(text, label);
    a.emit(Code.Mov_r64_imm64, RSI, label).emit(Code.Call_rel32_64, print);
  };
  const sayNumber = (register: typeof RAX) => a.emit(Code.Mov_r64_rm64, RAX, register).emit(Code.Call_rel32_64, printNumber);
  const mapIdtGate = (vector: number, handler: Label) => {
    a.emit(Code.Mov_r64_imm64, RAX, handler).emit(Code.Mov_r64_imm64, RDI, BigInt(IDT + vector * 16));
    a.emit(Code.Mov_rm64_r64, mem(RDI, 8), RAX).emit(Code.Shr_rm64_imm8, mem(RDI, 8), 32);
    a.emit(Code.Mov_r32_rm32, ECX, EAX).emit(Code.And_rm32_imm32, ECX, 0xffff).emit(Code.Or_rm32_imm32, ECX, 0x10_0000);
    a.emit(Code.And_rm32_imm32, EAX, -0x1_0000).emit(Code.Or_rm32_imm32, EAX, 0x8e00);
    a.emit(Code.Mov_rm32_r32, mem(RDI, 0), ECX).emit(Code.Mov_rm32_r32, mem(RDI, 4), EAX);
  };

  // Paging: PML4 entry 0 as the loader made it, its entry for ALIAS through tables of our own, the last level empty.
  a.emit(Code.Mov_r64_imm64, RSP, BigInt(STACK_TOP)).emit(Code.Cld);
  a.emit(Code.Mov_r64_imm64, RDI, BigInt(ALIAS_TABLES))
    .emit(Code.Mov_r32_imm32, ECX, (3 * 4096) / 8)
    .emit(Code.Mov_r32_imm32, EAX, 0);
  a.bytes(0xf3, 0x48, 0xab); // rep stosq
  a.emit(Code.Mov_r64_cr, RBX, CR3).emit(Code.Mov_r64_rm64, RBX, mem(RBX, 0)).emit(Code.And_rm64_imm32, RBX, -4096);
  const pdptIndex = Number((ALIAS >> 30n) & 511n);
  a.emit(Code.Mov_r64_imm64, RAX, BigInt(ALIAS_TABLES + 3)).emit(Code.Mov_rm64_r64, mem(RBX, pdptIndex * 8), RAX);
  a.emit(Code.Mov_r64_imm64, RBX, BigInt(ALIAS_TABLES))
    .emit(Code.Mov_r64_imm64, RAX, BigInt(ALIAS_TABLES + 0x1003))
    .emit(Code.Mov_rm64_r64, mem(RBX, 0), RAX);

  // Interrupts: gates, local APIC on, timer periodic, both 8259s masked.
  mapIdtGate(TIMER_VECTOR, timerHandler);
  mapIdtGate(PAGE_FAULT_VECTOR, faultHandler);
  const idtr = a.label("idtr");
  a.emit(Code.Mov_r64_imm64, RAX, idtr).emit(Code.Lidt_m1664, mem(RAX, 0));
  a.emit(Code.Mov_r32_imm32, EAX, 0xff).emit(Code.Out_imm8_AL, 0x21, AL).emit(Code.Out_imm8_AL, 0xa1, AL);
  const apic = (register: number, value: number) =>
    a
      .emit(Code.Mov_r64_imm64, RBX, BigInt(APIC + register))
      .emit(Code.Mov_r32_imm32, EAX, value)
      .emit(Code.Mov_rm32_r32, mem(RBX, 0), EAX);
  apic(APIC_SPURIOUS, 0x1ff);
  apic(APIC_DIVIDE, 3);
  apic(APIC_TIMER, 0x2_0000 | TIMER_VECTOR);
  apic(APIC_INITIAL_COUNT, TIMER_COUNT);
  a.emit(Code.Mov_r64_imm64, R12, 0n)
    .emit(Code.Mov_r64_imm64, R13, 7n)
    .emit(Code.Mov_r64_imm64, R14, 0n)
    .emit(Code.Mov_r64_imm64, R15, 0n);
  say("mkvm-guest: user space reached, the tiny guest of mkvm\n");

  a.place(round);
  const waitTick = a.label("wait for tick");
  a.emit(Code.Mov_r64_rm64, RBX, R14);
  a.place(waitTick);
  a.emit(Code.Cli).emit(Code.Cmp_r64_rm64, R14, RBX);
  const ticked = a.label("ticked");
  a.emit(Code.Jne_rel32_64, ticked).emit(Code.Sti).emit(Code.Hlt).emit(Code.Jmp_rel32_64, waitTick);
  a.place(ticked);
  a.emit(Code.Sti);
  // sum = (sum * 31 + n) mod MODULUS
  a.emit(Code.Inc_rm64, R12).emit(Code.Imul_r64_rm64_imm32, RAX, R13, 31).emit(Code.Add_r64_rm64, RAX, R12);
  a.emit(Code.Mov_r32_imm32, EDX, 0)
    .emit(Code.Mov_r64_imm64, RCX, BigInt(MODULUS))
    .emit(Code.Div_rm64, RCX)
    .emit(Code.Mov_r64_rm64, R13, RDX);
  // The sum goes to memory through the alias and comes back through the identity map.
  a.emit(Code.Mov_r64_rm64, R15, R12)
    .emit(Code.And_rm64_imm32, R15, DATA_PAGES - 1)
    .emit(Code.Shl_rm64_imm8, R15, 12);
  a.emit(Code.Mov_r64_imm64, RBX, ALIAS).emit(Code.Mov_rm64_r64, mem(RBX, 0x18, R15), R13);
  a.emit(Code.Mov_r64_imm64, RBX, BigInt(DATA))
    .emit(Code.Cmp_r64_rm64, R13, mem(RBX, 0x18, R15))
    .emit(Code.Jne_rel32_64, broken);
  say("mkvm-check n=");
  sayNumber(R12);
  say(" sum=");
  sayNumber(R13);
  say(" up=");
  sayNumber(R14);
  say(" ticks=");
  sayNumber(R14);
  say(" md5=-\n");
  // Every sixteenth round the pages are unmapped again, so that faults keep coming.
  const mapped = a.label("mapped");
  a.emit(Code.Test_rm64_imm32, R12, DATA_PAGES - 1).emit(Code.Jne_rel32_64, mapped);
  a.emit(Code.Mov_r64_imm64, RDI, BigInt(ALIAS_TABLES + 0x1000))
    .emit(Code.Mov_r32_imm32, ECX, DATA_PAGES)
    .emit(Code.Mov_r32_imm32, EAX, 0);
  a.bytes(0xf3, 0x48, 0xab);
  a.emit(Code.Mov_r64_cr, RAX, CR3).emit(Code.Mov_cr_r64, CR3, RAX);
  a.place(mapped);
  if (rounds) a.emit(Code.Cmp_rm64_imm32, R12, rounds).emit(Code.Je_rel32_64, stop);
  // A command from the console: s(top) or m(ark), told by its first letter.
  a.emit(Code.Mov_r32_imm32, EDX, LINE_STATUS)
    .emit(Code.In_AL_DX, AL, DX)
    .emit(Code.Test_AL_imm8, AL, 1)
    .emit(Code.Je_rel32_64, round);
  a.emit(Code.Mov_r32_imm32, EDX, SERIAL).emit(Code.In_AL_DX, AL, DX);
  a.emit(Code.Cmp_AL_imm8, AL, "s".charCodeAt(0)).emit(Code.Je_rel32_64, stop);
  a.emit(Code.Cmp_AL_imm8, AL, "m".charCodeAt(0)).emit(Code.Je_rel32_64, mark).emit(Code.Jmp_rel32_64, round);

  a.place(mark);
  say("mkvm-check-mark n=");
  sayNumber(R12);
  say("\n");
  a.emit(Code.Jmp_rel32_64, round);

  const powerOff = a.label("power off");
  a.place(broken);
  say("mkvm-check memory differs\n");
  a.emit(Code.Jmp_rel32_64, powerOff);
  a.place(stop);
  say("mkvm-check-end n=");
  sayNumber(R12);
  say(" sum=");
  sayNumber(R13);
  say(" log=0\n");
  a.place(powerOff);
  a.emit(Code.Mov_r32_imm32, EDX, POWER_PORT).emit(Code.Mov_r32_imm32, EAX, POWER_OFF).bytes(0x66, 0xef); // out dx, ax
  const halt = a.label("halt");
  a.place(halt).label;
  a.emit(Code.Cli).emit(Code.Hlt).emit(Code.Jmp_rel32_64, halt);

  // Timer: count, end of interrupt.
  a.place(timerHandler);
  a.emit(Code.Push_r64, RAX).emit(Code.Push_r64, RBX).emit(Code.Inc_rm64, R14);
  apic(APIC_EOI, 0);
  a.emit(Code.Pop_r64, RBX).emit(Code.Pop_r64, RAX).emit(Code.Iretq);

  // Page fault: maps the page of ALIAS at CR2 to its page of DATA. The error code lies on top of the stack.
  a.place(faultHandler);
  a.emit(Code.Push_r64, RAX).emit(Code.Push_r64, RBX).emit(Code.Push_r64, RCX);
  a.emit(Code.Mov_r64_cr, RAX, CR2)
    .emit(Code.Mov_r64_imm64, RBX, ALIAS)
    .emit(Code.Sub_r64_rm64, RAX, RBX)
    .emit(Code.Shr_rm64_imm8, RAX, 12);
  a.emit(Code.Cmp_rm64_imm32, RAX, DATA_PAGES).emit(Code.Jae_rel32_64, broken);
  a.emit(Code.Mov_r64_rm64, RCX, RAX)
    .emit(Code.Shl_rm64_imm8, RCX, 12)
    .emit(Code.Add_rm64_imm32, RCX, DATA + 3);
  a.emit(Code.Mov_r64_imm64, RBX, BigInt(ALIAS_TABLES + 0x1000)).emit(
    Code.Mov_rm64_r64,
    { base: RBX, index: RAX, scale: 8 },
    RCX,
  );
  a.emit(Code.Pop_r64, RCX).emit(Code.Pop_r64, RBX).emit(Code.Pop_r64, RAX).emit(Code.Add_rm64_imm8, RSP, 8).emit(Code.Iretq);

  // print: zero-terminated text at RSI.
  a.place(print);
  const printEnd = a.label("print end");
  a.emit(Code.Mov_r8_rm8, AL, mem(RSI, 0)).emit(Code.Test_rm8_r8, AL, AL).emit(Code.Je_rel32_64, printEnd);
  a.emit(Code.Mov_r32_imm32, EDX, SERIAL).emit(Code.Out_DX_AL, DX, AL).emit(Code.Inc_rm64, RSI).emit(Code.Jmp_rel32_64, print);
  a.place(printEnd);
  a.emit(Code.Retnq);

  // print number: RAX in decimal, digits gathered on the stack.
  a.place(printNumber);
  const digits = a.label("digits"),
    out = a.label("digits out");
  a.emit(Code.Mov_r32_imm32, ECX, 0).emit(Code.Mov_r32_imm32, EBX, 10);
  a.place(digits);
  a.emit(Code.Mov_r32_imm32, EDX, 0)
    .emit(Code.Div_rm64, RBX)
    .emit(Code.Add_rm8_imm8, DL, 0x30)
    .emit(Code.Push_r64, RDX)
    .emit(Code.Inc_rm64, RCX);
  a.emit(Code.Test_rm64_r64, RAX, RAX).emit(Code.Jne_rel32_64, digits);
  a.place(out);
  a.emit(Code.Pop_r64, RAX)
    .emit(Code.Mov_r32_imm32, EDX, SERIAL)
    .emit(Code.Out_DX_AL, DX, AL)
    .emit(Code.Dec_rm64, RCX)
    .emit(Code.Jne_rel32_64, out);
  a.emit(Code.Retnq);

  a.place(idtr);
  a.bytes(0xff, 0x0f).quads(IDT).bytes(0, 0, 0, 0, 0, 0);
  for (const [text, label] of strings) {
    a.place(label);
    a.text(text).bytes(0);
  }
  return a.assemble();
}
