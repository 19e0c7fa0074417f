/** RFLAGS where privilege decides: CLI, STI, PUSHF, POPF. */

import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Flag, Vector } from "./bits.ts";
import type { TransferBytes } from "./far-transfers.ts";
import { mergedFlags } from "./interrupt-return.ts";
import { changeFlags, cplOf, ioplOf, isProtected, isVirtual8086 } from "./processor-mode.ts";

export const flagHelpers: HelperTable = {
  /** CLI where CPL is above 0. */
  clearInterruptFlag(cpu) {
    if (isProtected(cpu) && cplOf(cpu) > ioplOf(cpu)) cpu.raise(Vector.GP, 0);
    changeFlags(cpu, cpu.readFlags() & ~Flag.IF);
  },
  /** Interrupts stay blocked for one more instruction if STI found them disabled. */
  setInterruptFlag(cpu) {
    if (isProtected(cpu) && cplOf(cpu) > ioplOf(cpu)) cpu.raise(Vector.GP, 0);
    const flags = cpu.readFlags();
    if ((flags & Flag.IF) !== 0) return;
    const blocking = cpu.get32(state.interruptibility);
    cpu.setFlags(flags | Flag.IF);
    // With nothing blocked a window is open exactly if somebody waits for one
    cpu.set32(state.interruptibility, 0);
    const isAwaited = cpu.guest.windowOpened();
    cpu.set32(state.interruptibility, blocking | 1);
    if (!isAwaited) cpu.shadowNextInstruction();
  },
  /** PUSHF and POPF in virtual-8086 mode need IOPL 3. For PUSHF, there or where it is intercepted. */
  checkFlagAccess(cpu) {
    cpu.guest.pushf();
    if (isVirtual8086(cpu) && ioplOf(cpu) < 3) cpu.raise(Vector.GP, 0);
  },
  /** POPF: low 32 bits of the popped value, operand bytes. */
  loadFlags(cpu, popped, bytes) {
    if (isVirtual8086(cpu) && ioplOf(cpu) < 3) cpu.raise(Vector.GP, 0);
    cpu.guest.popf();
    const cpl = isVirtual8086(cpu) ? 3 : cplOf(cpu);
    // RF is cleared, VM keeps its value.
    changeFlags(cpu, mergedFlags(cpu, popped, bytes as TransferBytes, cpl) & ~Flag.RF);
  },
};
