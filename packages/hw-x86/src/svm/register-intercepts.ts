/** Control and debug registers of a guest of SVM: which accesses exit. Source: AMD64 APM Vol. 2, Instruction Intercepts; CR0 Selective Writes. */
import type { Gva } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import { Cr0 } from "../engine/system/bits.ts";
import type { GuestEngine } from "../root-interface.ts";
import type { Avic } from "./avic.ts";
import type { GuestExits } from "./guest-exits.ts";
import type { VirtualInterrupts } from "./virtual-interrupts.ts";
import { Control, ExitCode, Intercept3, Intercept4 } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

/** High half of EXITINFO1 of a CR access by MOV. */
const IS_MOV = 0x8000_0000;

export interface InterceptedGuest {
  readonly engine: GuestEngine;
  readonly exits: GuestExits;
  readonly apic: Avic;
  readonly interrupts: VirtualInterrupts;
}

export class RegisterIntercepts {
  readonly #guest: InterceptedGuest;
  #cr = 0;
  #dr = 0;
  #isSelective = false;
  /** The word of intercepts that write traps belong to. */
  #traps = 0;

  constructor(guest: InterceptedGuest) {
    this.#guest = guest;
  }

  /** `word3` and `word4`: of the intercepts. */
  useControls(vmcb: Vmcb, word3: number, word4: number): void {
    this.#cr = vmcb.low(Control.INTERCEPT_CR);
    this.#dr = vmcb.low(Control.INTERCEPT_DR);
    this.#isSelective = (word3 & Intercept3.cr0Selective) !== 0;
    this.#traps = word4;
  }

  #exitByCr(code: number, gpr: number): never {
    const { exits, engine } = this.#guest;
    const exit = exits.information;
    exit.reset(code);
    if (gpr >= 0) {
      exit.info1Low = gpr;
      exit.info1High = IS_MOV;
    }
    exit.nextRip = engine.nextRip();
    return exits.leave();
  }

  readCr(cr: number, gpr: number, value: bigint): bigint {
    if (((this.#cr >>> cr) & 1) !== 0) this.#exitByCr(ExitCode.readCr + cr, gpr);
    return value;
  }

  writeCr(cr: number, gpr: number, value: bigint): bigint {
    if (((this.#cr >>> (16 + cr)) & 1) !== 0) this.#exitByCr(ExitCode.writeCr + cr, gpr);
    if (cr === 0) this.#checkSelective(Number(value & 0xffff_ffffn), gpr);
    return value;
  }
  #checkSelective(value: number, gpr: number): void {
    if (!this.#isSelective) return;
    const changed = value ^ (this.#guest.engine.u32[state.cr0 >>> 2] as number);
    if ((changed & ~(Cr0.TS | Cr0.MP)) !== 0) this.#exitByCr(ExitCode.cr0Selective, gpr);
  }

  clts(): boolean {
    if (((this.#cr >>> 16) & 1) !== 0) this.#exitByCr(ExitCode.writeCr, -1);
    return true;
  }
  lmsw(value: number, _memory: Gva | undefined): bigint {
    if (((this.#cr >>> 16) & 1) !== 0) this.#exitByCr(ExitCode.writeCr, -1);
    const current = this.#guest.engine.u32[state.cr0 >>> 2] as number;
    // LMSW cannot clear PE
    const loaded = ((current & ~14) | (value & 15)) >>> 0;
    this.#checkSelective(loaded, -1);
    return BigInt(loaded);
  }
  moveDr(dr: number, gpr: number, isRead: boolean): void {
    if (((this.#dr >>> (isRead ? dr : 16 + dr)) & 1) !== 0)
      this.#guest.exits.byInstruction((isRead ? ExitCode.readDr : ExitCode.writeDr) + dr, gpr);
  }

  /** After a write that nothing prevented. */
  registerWritten(register: "efer" | number, value: bigint): void {
    const { engine, exits, apic, interrupts } = this.#guest;
    // A lower task priority may let an interrupt through behind this instruction, which may be the one that STI shadows
    if (register === 8 && interrupts.isRequested) engine.requestStop();
    if (register === 8 && apic.isEnabled) apic.taskPriorityWritten(Number(value & 15n));
    const trap = register === "efer" ? Intercept4.eferWriteTrap : 1 << (16 + register);
    if ((this.#traps & trap) === 0) return;
    exits.information.reset(register === "efer" ? ExitCode.eferWriteTrap : ExitCode.crWriteTrap + register);
    exits.information.setInfo1(value);
    exits.trap();
  }
}
