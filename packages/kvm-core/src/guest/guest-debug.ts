/**
 * Debugging of a guest by user space (KVM_SET_GUEST_DEBUG). While KVM_RUN lasts, RFLAGS.TF and the debug registers on the CPU are the
 * debugger's; between two calls, so for every other ioctl and for moves between modules, they are the guest's. Source: Linux,
 * Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG; Intel SDM Vol. 3B, Debug Registers.
 */
import { Errno, ExitReason, GuestDebugFlag } from "@mkvm/kvm-abi";
import { Cr4, Rflags, SegmentRegister, Vector } from "../arch/registers.ts";
import { cpl, in64BitMode } from "./guest-cpu.ts";
import type { ExitOutcome, VcpuParts } from "./vcpu-parts.ts";

/** Bits of DR6: those that are always set, and the causes of an exception. */
const DR6_FIXED = 0xffff_0ff0n;
const DR6_CAUSES = 0xe00fn;
const GENERAL_DETECT = 0x2000n;
const SINGLE_STEP = 0x4000n;
const BREAKPOINTS = 0xfn;
/** Pending debug exceptions: a breakpoint among them is enabled. */
const ENABLED_BREAKPOINT = 0x1000n;
const DR7_WRITABLE = 0xffff_23ffn;
const DR7_FIXED = 0x400n;
const SHADOW_OF_MOV_SS = 1;
const LOW_32 = 0xffff_ffffn;
/** DR0 to DR3, DR6 and DR7. */
const REGISTERS = [0, 1, 2, 3, 6, 7] as const;

/** What has to exit for a debugger. */
export interface DebugIntercepts {
  /** #DB. */
  traps: boolean;
  /** #BP. */
  breakpoints: boolean;
  /** MOV to and from debug registers. */
  moves: boolean;
}
const NOTHING: DebugIntercepts = { traps: false, breakpoints: false, moves: false };

export class GuestDebug {
  /** GuestDebugFlag bits; 0 while nobody debugs. */
  control = 0;
  readonly registers = new BigUint64Array(8);
  /** The guest's registers by number, while the debugger's are on the CPU. */
  #guest: BigUint64Array | undefined;
  /** TF is the debugger's. */
  #addsTrapFlag = false;

  #has(flag: number): boolean {
    return (this.control & flag) !== 0;
  }
  get #steps(): boolean {
    return this.#has(GuestDebugFlag.KVM_GUESTDBG_SINGLESTEP);
  }
  get #usesRegisters(): boolean {
    return this.#has(GuestDebugFlag.KVM_GUESTDBG_USE_HW_BP);
  }
  /** Debug exceptions of the guest are user space's. */
  get takesTraps(): boolean {
    return this.#steps || this.#usesRegisters;
  }
  get takesBreakpoints(): boolean {
    return this.#has(GuestDebugFlag.KVM_GUESTDBG_USE_SW_BP);
  }
  /** Neither interrupts nor NMIs are delivered. */
  get blocksInterrupts(): boolean {
    return this.#has(GuestDebugFlag.KVM_GUESTDBG_BLOCKIRQ);
  }

  /** KVM_SET_GUEST_DEBUG, between two calls of KVM_RUN: 0 or a negative errno. */
  set(vcpu: VcpuParts, control: number, registers: readonly bigint[]): number {
    const { KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_INJECT_BP } = GuestDebugFlag;
    if ((control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) !== 0) {
      const events = vcpu.events();
      if (events.exception !== undefined) return -Errno.EBUSY;
      if ((control & KVM_GUESTDBG_INJECT_DB) !== 0) vcpu.queueException(Vector.DB);
      else {
        // RIP is at the INT3, and the handler returns behind it
        const exception = { vector: Vector.BP, errorCode: undefined, payload: undefined, injected: true, software: true };
        vcpu.setEvents({ ...events, exception, instructionLength: 1 });
      }
    }
    const stepped = this.#steps;
    const usedRegisters = this.#usesRegisters;
    this.restore((control & KVM_GUESTDBG_ENABLE) !== 0 ? control : 0, registers);
    // What the debugger has caused and not fetched is not the guest's
    if (stepped && !this.#steps && (vcpu.rflags & Rflags.TF) === 0n) vcpu.pendingDebug &= ~SINGLE_STEP;
    if (usedRegisters && !this.#usesRegisters) vcpu.pendingDebug &= ~(BREAKPOINTS | ENABLED_BREAKPOINT);
    return 0;
  }
  restore(control: number, registers: readonly bigint[]): void {
    this.control = control;
    this.registers.set(registers);
  }

  /** KVM_RUN begins. */
  begin(vcpu: VcpuParts): void {
    if (this.control === 0) return;
    // The debugger has written INT3 anywhere: what the processor holds of code is to be fetched anew
    if (this.takesBreakpoints) vcpu.requestTlbFlush();
    vcpu.interceptDebug({ traps: this.takesTraps, breakpoints: this.takesBreakpoints, moves: this.#usesRegisters });
    if (!this.takesTraps) return;
    const guest = new BigUint64Array(8);
    for (const index of REGISTERS) guest[index] = vcpu.debugRegister(index);
    this.#guest = guest;
    vcpu.setDebugRegister(6, DR6_FIXED);
    if (this.#usesRegisters) {
      for (let index = 0; index < 4; index++) vcpu.setDebugRegister(index, this.registers[index]!);
      vcpu.setDebugRegister(7, (this.registers[7]! & DR7_WRITABLE & ~GENERAL_DETECT) | DR7_FIXED);
    }
    if (!this.#steps || (vcpu.rflags & Rflags.TF) !== 0n) return;
    this.#addsTrapFlag = true;
    vcpu.rflags |= Rflags.TF;
  }

  /** KVM_RUN ends. */
  end(vcpu: VcpuParts): void {
    if (this.control === 0) return;
    vcpu.interceptDebug(NOTHING);
    const guest = this.#guest;
    if (guest !== undefined) {
      this.#guest = undefined;
      vcpu.setDebugRegister(6, guest[6]!);
      if (this.#usesRegisters) for (const index of REGISTERS) if (index !== 6) vcpu.setDebugRegister(index, guest[index]!);
    }
    if (!this.#addsTrapFlag) return;
    this.#addsTrapFlag = false;
    vcpu.rflags &= ~Rflags.TF;
  }

  /** A trap that an instruction outside guest mode owes, or one that was left over: it is user space's. True: exit. */
  takePendingTrap(vcpu: VcpuParts): boolean {
    if (!this.takesTraps || (vcpu.interruptShadow & SHADOW_OF_MOV_SS) !== 0) return false;
    const pending = vcpu.pendingDebug;
    if ((pending & (SINGLE_STEP | ENABLED_BREAKPOINT)) === 0n) return false;
    vcpu.pendingDebug = 0n;
    this.exit(vcpu, Vector.DB, pending & (SINGLE_STEP | BREAKPOINTS));
    return true;
  }

  /** KVM_EXIT_DEBUG for #DB with these causes, or for #BP. */
  exit(vcpu: VcpuParts, vector: number, causes: bigint): ExitOutcome {
    const base = in64BitMode(vcpu) ? 0n : vcpu.segment(SegmentRegister.CS).base;
    const pc = BigInt.asUintN(in64BitMode(vcpu) ? 64 : 32, vcpu.rip + base);
    vcpu.run.exitReason = ExitReason.KVM_EXIT_DEBUG;
    vcpu.run.setDebug(vector, pc, (causes & DR6_CAUSES) | DR6_FIXED, vcpu.debugRegister(7));
    vcpu.setDebugRegister(6, DR6_FIXED);
    return "exit";
  }

  #register(vcpu: VcpuParts, index: number): bigint {
    return this.#guest?.[index] ?? vcpu.debugRegister(index);
  }
  #setRegister(vcpu: VcpuParts, index: number, value: bigint): void {
    if (this.#guest === undefined) vcpu.setDebugRegister(index, value);
    else this.#guest[index] = value;
  }

  /** MOV to or from debug register `number`, which exits while the debugger's are on the CPU. */
  move(vcpu: VcpuParts, number: number, gpr: number, isRead: boolean, length: number): ExitOutcome {
    const isAlias = number === 4 || number === 5;
    if (number > 7 || (isAlias && (vcpu.cr4 & Cr4.DE) !== 0n)) vcpu.queueException(Vector.UD);
    else if (cpl(vcpu) !== 0) vcpu.queueException(Vector.GP, 0);
    else if ((this.#register(vcpu, 7) & GENERAL_DETECT) !== 0n) return this.exit(vcpu, Vector.DB, GENERAL_DETECT);
    else if (!this.#moved(vcpu, isAlias ? number + 2 : number, gpr, isRead)) vcpu.queueException(Vector.GP, 0);
    else vcpu.skip(length);
    return "resume";
  }
  #moved(vcpu: VcpuParts, index: number, gpr: number, isRead: boolean): boolean {
    const mask = in64BitMode(vcpu) ? LOW_32 | (LOW_32 << 32n) : LOW_32;
    if (isRead) {
      vcpu.setGpr(gpr, this.#register(vcpu, index) & mask);
      return true;
    }
    const value = vcpu.gpr(gpr) & mask;
    if (index >= 6 && value > LOW_32) return false;
    const settled = index === 6 ? (value & DR6_CAUSES) | DR6_FIXED : (value & DR7_WRITABLE) | DR7_FIXED;
    this.#setRegister(vcpu, index, index >= 6 ? settled : value);
    return true;
  }
}
