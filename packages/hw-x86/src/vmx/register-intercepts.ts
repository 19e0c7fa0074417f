/**
 * Control and debug registers in VMX non-root operation: which accesses exit, and what the others come to under masks and shadows. Source:
 * Intel SDM Vol. 3C, Instructions That Cause VM Exits Conditionally; Changes to Instruction Behavior in VMX Non-Root Operation.
 */
import type { Gva } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import type { GuestEngine } from "../root-interface.ts";
import { CR0_FIXED0, CR4_FIXED0 } from "./capabilities.ts";
import { ExitReason, Primary, Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { GuestExits } from "./guest-exits.ts";
import type { VirtualApic } from "./virtual-apic.ts";
import type { Vmcs } from "./vmcs.ts";

const GP = 13;

export interface InterceptedGuest {
  readonly engine: GuestEngine;
  readonly exits: GuestExits;
  readonly apic: VirtualApic;
  readonly primary: number;
  readonly secondary: number;
}

export class RegisterIntercepts {
  readonly #vmcs: Vmcs;
  readonly #guest: InterceptedGuest;
  #cr0Mask = 0n;
  #cr4Mask = 0n;

  constructor(vmcs: Vmcs, guest: InterceptedGuest) {
    this.#vmcs = vmcs;
    this.#guest = guest;
  }

  useControls(): void {
    this.#cr0Mask = this.#vmcs.big(slot.CR0_MASK);
    this.#cr4Mask = this.#vmcs.big(slot.CR4_MASK);
  }

  readCr(cr: number, gpr: number, value: bigint): bigint {
    switch (cr) {
      case 0:
        return (value & ~this.#cr0Mask) | (this.#vmcs.big(slot.CR0_SHADOW) & this.#cr0Mask);
      case 4:
        return (value & ~this.#cr4Mask) | (this.#vmcs.big(slot.CR4_SHADOW) & this.#cr4Mask);
      case 3:
        if ((this.#guest.primary & Primary.cr3StoreExiting) !== 0)
          this.#guest.exits.byInstruction(ExitReason.controlRegister, 3 | (1 << 4) | (gpr << 8));
        return value;
      case 2:
        return value;
      default:
        if ((this.#guest.primary & Primary.cr8StoreExiting) !== 0)
          this.#guest.exits.byInstruction(ExitReason.controlRegister, 8 | (1 << 4) | (gpr << 8));
        return this.#guest.apic.usesShadow ? this.#guest.apic.readCr8() : value;
    }
  }

  writeCr(cr: number, gpr: number, value: bigint): bigint {
    switch (cr) {
      case 0:
        return this.#writeMasked(0, gpr, value, this.#cr0Mask, this.#vmcs.big(slot.CR0_SHADOW), state.cr0);
      case 4:
        return this.#writeMasked(4, gpr, value, this.#cr4Mask, this.#vmcs.big(slot.CR4_SHADOW), state.cr4);
      case 3:
        if ((this.#guest.primary & Primary.cr3LoadExiting) !== 0 && !this.#isCr3Target(value))
          this.#guest.exits.byInstruction(ExitReason.controlRegister, 3 | (gpr << 8));
        return value;
      case 2:
        return value;
      default:
        if ((this.#guest.primary & Primary.cr8LoadExiting) !== 0)
          this.#guest.exits.byInstruction(ExitReason.controlRegister, 8 | (gpr << 8));
        if (this.#guest.apic.usesShadow) {
          if (value >> 4n !== 0n) this.#guest.engine.raise(GP, 0);
          this.#guest.apic.writeCr8(Number(value));
        }
        return value;
    }
  }

  #writeMasked(cr: number, gpr: number, value: bigint, mask: bigint, shadow: bigint, register: number): bigint {
    if (((value ^ shadow) & mask) !== 0n) this.#guest.exits.byInstruction(ExitReason.controlRegister, cr | (gpr << 8));
    const loaded = (this.#guest.engine.get64(register) & mask) | (value & ~mask);
    // Bits that VMX operation fixes: an attempt to change them faults
    const unrestricted = (this.#guest.secondary & Secondary.unrestrictedGuest) !== 0;
    const fixed = cr === 0 ? BigInt(unrestricted ? CR0_FIXED0 & 0x7fff_fffe : CR0_FIXED0) : BigInt(CR4_FIXED0);
    if ((loaded & fixed) !== fixed) this.#guest.engine.raise(GP, 0);
    return loaded;
  }

  #isCr3Target(value: bigint): boolean {
    const count = this.#vmcs.low(slot.CR3_TARGET_COUNT);
    for (let i = 0; i < count; i++) if (this.#vmcs.big(slot.CR3_TARGET0 + 2 * i) === value) return true;
    return false;
  }

  clts(): boolean {
    if ((this.#cr0Mask & 8n) === 0n) return true;
    if ((this.#vmcs.big(slot.CR0_SHADOW) & 8n) !== 0n) this.#guest.exits.byInstruction(ExitReason.controlRegister, 2 << 4);
    return false; // the host owns TS and shows it clear: nothing happens
  }

  lmsw(value: number, memory: Gva | undefined): bigint {
    const mask = Number(this.#cr0Mask & 15n);
    const shadow = this.#vmcs.low(slot.CR0_SHADOW);
    const current = this.#guest.engine.get64(state.cr0);
    const changed = (value ^ shadow) & mask & 14;
    const setsPe = (mask & value & ~shadow & 1) !== 0; // LMSW cannot clear PE
    if (changed !== 0 || setsPe) {
      const { exits } = this.#guest;
      const exit = exits.information;
      exit.reset(ExitReason.controlRegister);
      exit.qualificationLow = ((3 << 4) | (memory === undefined ? 0 : 1 << 6) | ((value & 0xffff) << 16)) >>> 0;
      if (memory !== undefined) exit.setLinear(memory);
      exit.instructionLength = this.#guest.engine.instructionLength();
      exits.leave();
    }
    const writable = BigInt(~mask & 14);
    const pe = (mask & 1) === 0 ? BigInt(value & 1) : 0n;
    return (current & ~writable) | (BigInt(value) & writable) | pe;
  }

  moveDr(dr: number, gpr: number, isRead: boolean): void {
    if ((this.#guest.primary & Primary.movDrExiting) !== 0)
      this.#guest.exits.byInstruction(ExitReason.moveDr, dr | (isRead ? 1 << 4 : 0) | (gpr << 8));
  }
}
