import { Code } from "iced-x86";
import {
  AL,
  Assembler,
  AX,
  CR3,
  DS,
  EAX,
  EBX,
  ECX,
  EDI,
  EDX,
  ES,
  type Label,
  mem,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  RSP,
  SS,
} from "../../assembler/assembler.ts";
import {
  APIC,
  ApicRegister,
  CALL_VECTOR,
  EXIT_PORT,
  FIRST_VECTOR,
  IDT,
  IO_APIC,
  LAST_VECTOR,
  NMI_COUNT,
  ORIGIN,
  PASSED,
  PER_CPU,
  PER_CPU_BYTES,
  SECOND_MARK,
  Shared,
  TRAMPOLINE_CR3,
  TRAMPOLINE_GDTR,
  TRAMPOLINES,
  X2apicMsr,
} from "./layout.ts";

/** Looks at a condition, a PAUSE between each, before a check gives up. */
const PATIENCE = 1_000_000;
const FIRST_FAILURE = 2;
/** So that moves of a VM fall into the handling of an NMI. */
const NMI_HANDLER_ROUNDS = 40;

/**
 * What every SMP guest stands on: start-up of the other CPUs, handlers that count, and checks. Registers that all code keeps:
 * RBP 0, R13 APIC id, R14 address of the local APIC, R15 the CPU's own block.
 */
export class SmpRuntime {
  readonly a = new Assembler(64, ORIGIN);
  readonly cpus: number;
  /** Names of the checks, in the order of their numbers; several looks at one thing have one name. */
  readonly checks: string[] = [];
  readonly #handlers: Label;
  readonly #fail: Label;
  readonly #apEntry: Label;
  readonly #idtr: Label;
  readonly #later: (() => void)[] = [];

  /** The guest begins here, on the boot CPU in 64-bit mode. */
  constructor(cpus: number) {
    this.cpus = cpus;
    const { a } = this;
    this.#handlers = a.label("counting handler");
    this.#fail = a.label("fail");
    this.#idtr = a.label("idtr");
    this.#apEntry = a.label("application processor");
    this.#begin();
  }

  /** Code or data behind the program. */
  later(emit: () => void): void {
    this.#later.push(emit);
  }

  block(cpu: number): number {
    return PER_CPU + cpu * PER_CPU_BYTES;
  }

  store(address: number, value: number): void {
    this.a.emit(Code.Mov_rm32_imm32, mem(RBP, address), value);
  }

  setApic(register: number, value: number): void {
    this.a.emit(Code.Mov_rm32_imm32, mem(R14, register), value);
  }

  setIoApic(register: number, value: number): void {
    this.a.emit(Code.Mov_rm32_imm32, mem(R14, IO_APIC - APIC), register);
    this.a.emit(Code.Mov_rm32_imm32, mem(R14, IO_APIC - APIC + 0x10), value);
  }

  out(port: number, value: number): void {
    this.a.emit(Code.Mov_r32_imm32, EAX, value).emit(Code.Out_imm8_AL, port, AL);
  }

  // Checks

  /** Goes on when the branch is taken. */
  expect(name: string, branch: Code): void {
    const { a } = this;
    const passed = a.label();
    a.emit(branch, passed);
    this.#failNow(name);
    a.place(passed);
  }

  #failNow(name: string): void {
    if (!this.checks.includes(name)) this.checks.push(name);
    const number = FIRST_FAILURE + this.checks.indexOf(name);
    this.a.emit(Code.Mov_r32_imm32, EAX, number).emit(Code.Jmp_rel32_64, this.#fail);
  }

  /** Waits for a word in memory to have a value. */
  waitFor(name: string, address: number, value: number): void {
    const { a } = this;
    const again = a.label(),
      there = a.label();
    a.emit(Code.Mov_r32_imm32, ECX, PATIENCE);
    a.place(again);
    a.emit(Code.Cmp_rm32_imm32, mem(RBP, address), value).emit(Code.Je_rel32_64, there).emit(Code.Pause);
    a.emit(Code.Dec_rm32, ECX).emit(Code.Jne_rel32_64, again);
    this.#failNow(name);
    a.place(there);
  }

  expectWord(name: string, address: number, value: number): void {
    this.a.emit(Code.Cmp_rm32_imm32, mem(RBP, address), value);
    this.expect(name, Code.Je_rel32_64);
  }

  /** So many instructions that moves of the VM fall into them. */
  delay(rounds: number): void {
    const { a } = this;
    const again = a.label();
    a.emit(Code.Mov_r32_imm32, ECX, rounds);
    a.place(again);
    a.emit(Code.Dec_rm32, ECX).emit(Code.Jne_rel32_64, again);
  }

  // Interrupts between CPUs

  /** Writes the interrupt command register: `low` as in the manual, `destination` an APIC id or a logical one of 8 bits. */
  send(low: number, destination = 0): void {
    this.setApic(ApicRegister.icrHigh, (destination << 24) | 0);
    this.setApic(ApicRegister.icrLow, low);
  }

  sendX2apic(low: number, destination = 0): void {
    this.wrmsr(X2apicMsr.icr, low, destination);
  }

  wrmsr(index: number, low: number, high = 0): void {
    this.a.emit(Code.Mov_r32_imm32, ECX, index).emit(Code.Mov_r32_imm32, EAX, low).emit(Code.Mov_r32_imm32, EDX, high);
    this.a.emit(Code.Wrmsr);
  }

  /** Has every CPU, this one included, call a routine, which keeps RBP, R13 to R15 and RSP. */
  callAll(name: string, routine: Label): void {
    this.callWithout(name, routine, () => this.a.emit(Code.Call_rel32_64, routine));
  }

  /** Has all other CPUs call a routine while this one does something else. */
  callWithout(name: string, routine: Label, meanwhile: () => void): void {
    const { a } = this;
    a.emit(Code.Mov_r64_imm64, RAX, routine).emit(Code.Mov_rm64_r64, mem(RBP, Shared.routine), RAX);
    this.store(Shared.done, 0);
    this.send(0xc_4000 | CALL_VECTOR);
    meanwhile();
    this.waitFor(name, Shared.done, this.cpus - 1);
  }

  /** Starts all other CPUs by INIT and two SIPIs. */
  startOthers(): void {
    this.send(0xc_4500);
    this.delay(200);
    this.expectWord("INIT alone starts nobody", Shared.alive, 0);
    this.send(0xc_4600 | (TRAMPOLINES[0] >> 12));
    this.delay(50);
    this.send(0xc_4600 | (TRAMPOLINES[0] >> 12));
    this.waitFor("SIPI starts every other CPU", Shared.alive, this.cpus - 1);
  }

  /** The end of the program: all checks have passed. */
  pass(): void {
    this.a.emit(Code.Mov_r32_imm32, EAX, PASSED).emit(Code.Jmp_rel32_64, this.#fail);
  }

  assemble(): Uint8Array {
    this.#applicationProcessor();
    this.#endAll();
    for (const emit of this.#later) emit();
    return this.a.assemble();
  }

  // Parts

  #begin(): void {
    const { a } = this;
    a.emit(Code.Cld).emit(Code.Mov_r64_imm64, RBP, 0n).emit(Code.Mov_r64_imm64, R14, BigInt(APIC));
    a.emit(Code.Mov_r64_imm64, R13, 0n).emit(Code.Mov_r64_imm64, R15, BigInt(PER_CPU));
    a.emit(Code.Mov_r64_imm64, RSP, BigInt(PER_CPU + PER_CPU_BYTES));
    // Both 8259s masked
    this.out(0x21, 0xff);
    this.out(0xa1, 0xff);
    const gdt = a.label("gdt"),
      makeGate = a.label("make gate");
    this.later(() => {
      a.place(this.#idtr);
      a.bytes(0xff, 0x0f).quads(IDT);
      a.place(gdt);
      a.quads(0, 0, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn);
      this.#gates(makeGate);
    });
    a.emit(Code.Call_rel32_64, makeGate);
    a.emit(Code.Mov_r64_imm64, RAX, this.#idtr).emit(Code.Lidt_m1664, mem(RAX, 0));
    // What the trampolines read
    this.store(TRAMPOLINE_GDTR, 0x1f);
    a.emit(Code.Mov_r64_imm64, RAX, gdt).emit(Code.Mov_rm32_r32, mem(RBP, TRAMPOLINE_GDTR + 2), EAX);
    a.emit(Code.Mov_r64_cr, RAX, CR3).emit(Code.Mov_rm32_r32, mem(RBP, TRAMPOLINE_CR3), EAX);
    for (const [index, address] of TRAMPOLINES.entries()) {
      const code = a.label(`trampoline ${index}`);
      this.later(() => this.#trampoline(code, index === 1));
      a.emit(Code.Mov_r64_imm64, RSI, code).emit(Code.Mov_r64_imm64, RDI, BigInt(address)).emit(Code.Mov_r32_imm32, ECX, 128);
      a.bytes(0xf3, 0xa4); // rep movsb
    }
    this.setApic(ApicRegister.spurious, 0x1ff);
    a.emit(Code.Sti);
  }

  /** 16-bit code that leads to 64-bit mode at once. It runs at either trampoline page, with DS 0. */
  #trampoline(code: Label, second: boolean): void {
    const { a } = this;
    const word = (value: number) => [value & 0xff, value >> 8];
    a.place(code);
    a.bytes(0xfa, 0x66, 0x0f, 0x01, 0x16, ...word(TRAMPOLINE_GDTR)); // cli; lgdt
    if (second) a.bytes(0xc7, 0x06, ...word(SECOND_MARK), 1, 0); // mov word [mark], 1
    a.bytes(0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0); // CR4.PAE
    a.bytes(0x66, 0xa1, ...word(TRAMPOLINE_CR3), 0x0f, 0x22, 0xd8);
    a.bytes(0x66, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0, 1, 0, 0, 0x0f, 0x30); // EFER.LME
    a.bytes(0x0f, 0x20, 0xc0, 0x66, 0x0d, 1, 0, 0, 0x80, 0x0f, 0x22, 0xc0); // CR0.PG, PE
    a.bytes(0x66, 0xea).doublewords(this.#apEntry).bytes(0x10, 0); // jmp far 0x10:entry
    a.zeros(128);
  }

  #applicationProcessor(): void {
    const { a } = this;
    const idle = a.label("idle");
    a.place(this.#apEntry);
    a.emit(Code.Mov_r32_imm32, EAX, 0x18);
    for (const segment of [DS, ES, SS]) a.emit(Code.Mov_Sreg_rm16, segment, AX);
    a.emit(Code.Mov_r64_imm64, RBP, 0n).emit(Code.Mov_r64_imm64, R14, BigInt(APIC));
    a.emit(Code.Mov_r32_rm32, EAX, mem(R14, ApicRegister.id)).emit(Code.Shr_rm32_imm8, EAX, 24);
    a.emit(Code.Mov_r64_rm64, R13, RAX);
    a.emit(Code.Imul_r64_rm64_imm32, RAX, RAX, PER_CPU_BYTES).emit(Code.Add_rm64_imm32, RAX, PER_CPU);
    a.emit(Code.Mov_r64_rm64, R15, RAX);
    a.emit(Code.Mov_r64_rm64, RSP, RAX).emit(Code.Add_rm64_imm32, RSP, PER_CPU_BYTES);
    a.emit(Code.Mov_r64_imm64, RAX, this.#idtr).emit(Code.Lidt_m1664, mem(RAX, 0));
    this.setApic(ApicRegister.spurious, 0x1ff);
    a.bytes(0xf0).emit(Code.Inc_rm32, mem(RBP, Shared.alive));
    a.place(idle);
    a.emit(Code.Sti).emit(Code.Hlt).emit(Code.Jmp_rel32_64, idle);
  }

  #endAll(): void {
    const { a } = this;
    const halt = a.label("halt");
    a.place(this.#fail);
    a.emit(Code.Out_imm8_AL, EXIT_PORT, AL);
    a.place(halt);
    a.emit(Code.Cli).emit(Code.Hlt).emit(Code.Jmp_rel32_64, halt);
  }

  /** The routine that fills the IDT, and the handlers. */
  #gates(makeGate: Label): void {
    const { a } = this;
    const nmi = a.label("nmi"),
      call = a.label("call"),
      fault = a.label("fault");
    const stubs: Label[] = [];
    a.place(makeGate);
    const gate = (vector: number, handler: Label) => {
      a.emit(Code.Mov_r64_imm64, RAX, handler).emit(Code.Mov_r32_imm32, EDI, IDT + vector * 16);
      a.emit(Code.Mov_r32_rm32, EBX, EAX).emit(Code.And_rm32_imm32, EBX, 0xffff).emit(Code.Or_rm32_imm32, EBX, 0x10_0000);
      a.emit(Code.And_rm32_imm32, EAX, -0x1_0000).emit(Code.Or_rm32_imm32, EAX, 0x8e00);
      a.emit(Code.Mov_rm32_r32, mem(RDI, 0), EBX).emit(Code.Mov_rm32_r32, mem(RDI, 4), EAX);
    };
    for (const vector of [6, 8, 10, 11, 12, 13, 14]) gate(vector, fault);
    gate(2, nmi);
    gate(CALL_VECTOR, call);
    for (let vector = FIRST_VECTOR; vector <= LAST_VECTOR; vector++) {
      const stub = a.label(`vector ${vector}`);
      stubs.push(stub);
      gate(vector, stub);
    }
    a.emit(Code.Retnq);
    for (const [index, stub] of stubs.entries()) {
      a.place(stub);
      a.emit(Code.Push_r64, RAX)
        .emit(Code.Mov_r32_imm32, EAX, FIRST_VECTOR + index)
        .emit(Code.Jmp_rel32_64, this.#handlers);
    }
    const endOfInterrupt = a.label("end of interrupt"),
      byMsr = a.label("end of interrupt by MSR");
    a.place(this.#handlers);
    a.emit(Code.Inc_rm32, mem(R15, 0, RAX, 4))
      .emit(Code.Push_r64, RCX)
      .emit(Code.Push_r64, RDX);
    a.emit(Code.Call_rel32_64, endOfInterrupt);
    a.emit(Code.Pop_r64, RDX).emit(Code.Pop_r64, RCX).emit(Code.Pop_r64, RAX).emit(Code.Iretq);
    a.place(call);
    const saved = [RAX, RBX, RCX, RDX, RSI, RDI];
    for (const register of saved) a.emit(Code.Push_r64, register);
    a.emit(Code.Mov_r64_rm64, RAX, mem(RBP, Shared.routine)).emit(Code.Call_rm64, RAX);
    a.bytes(0xf0).emit(Code.Inc_rm32, mem(RBP, Shared.done));
    a.emit(Code.Call_rel32_64, endOfInterrupt);
    for (const register of saved.toReversed()) a.emit(Code.Pop_r64, register);
    a.emit(Code.Iretq);
    a.place(nmi);
    a.emit(Code.Push_r64, RCX);
    this.delay(NMI_HANDLER_ROUNDS);
    a.emit(Code.Pop_r64, RCX).emit(Code.Inc_rm32, mem(R15, NMI_COUNT)).emit(Code.Iretq);
    a.place(endOfInterrupt);
    a.emit(Code.Cmp_rm32_imm32, mem(RBP, Shared.x2apic), 0).emit(Code.Jne_rel32_64, byMsr);
    this.setApic(ApicRegister.eoi, 0);
    a.emit(Code.Retnq);
    a.place(byMsr);
    this.wrmsr(X2apicMsr.eoi, 0);
    a.emit(Code.Retnq);
    a.place(fault);
    this.#failNow("no exceptions");
  }
}
