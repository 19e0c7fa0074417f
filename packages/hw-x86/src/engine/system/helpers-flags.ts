/** RFLAGS where privilege decides: CLI, STI, PUSHF, POPF; and PKRU. */

import type { Cpu } from "../cpu.ts";
import { RAX, RCX, RDX, state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Cr4, Flag, Vector } from "./bits.ts";
import type { TransferBytes } from "./far-transfers.ts";
import { mergedFlags } from "./interrupt-return.ts";
import { changeFlags, cplOf, ioplOf, isVirtual8086 } from "./processor-mode.ts";
import { keyRightsChanged } from "./translation-caches.ts";
import { fromVirtualImage, hasVirtualFlags, interruptFlagOf, virtualImage } from "./virtual-8086-extensions.ts";

function requireKeys(cpu: Cpu): void {
  if ((cpu.get32(state.cr4) & Cr4.PKE) === 0) cpu.raise(Vector.UD);
  if (low(cpu, RCX) !== 0) cpu.raise(Vector.GP, 0);
}
const low = (cpu: Cpu, register: number): number => cpu.get32(state.gpr + 8 * register);

export const flagHelpers: HelperTable = {
  /** CLI where CPL is above 0. */
  clearInterruptFlag(cpu) {
    changeFlags(cpu, cpu.readFlags() & ~interruptFlagOf(cpu));
  },
  /** Interrupts stay blocked for one more instruction if STI found them disabled. */
  setInterruptFlag(cpu) {
    const flags = cpu.readFlags();
    if (interruptFlagOf(cpu) === Flag.VIF) {
      if ((flags & Flag.VIP) !== 0) cpu.raise(Vector.GP, 0);
      cpu.setFlags(flags | Flag.VIF);
      return;
    }
    if ((flags & Flag.IF) !== 0) return;
    const blocking = cpu.get32(state.interruptibility);
    cpu.setFlags(flags | Flag.IF);
    // With nothing blocked a window is open exactly if somebody waits for one
    cpu.set32(state.interruptibility, 0);
    const isAwaited = cpu.guest.windowOpened();
    cpu.set32(state.interruptibility, blocking | 1);
    if (!isAwaited) cpu.shadowNextInstruction();
  },
  /** RDPKRU and WRPKRU: rights of user pages by protection key. */
  readKeyRights(cpu) {
    requireKeys(cpu);
    cpu.setReg(RAX, BigInt(cpu.get32(state.pkru)));
    cpu.setReg(RDX, 0n);
  },
  writeKeyRights(cpu) {
    requireKeys(cpu);
    if (low(cpu, RDX) !== 0) cpu.raise(Vector.GP, 0);
    cpu.set32(state.pkru, low(cpu, RAX));
    keyRightsChanged(cpu);
  },
  /** PUSHF of an image in virtual-8086 mode, or where it is intercepted: the image to push. */
  pushedFlags(cpu, image, bytes) {
    cpu.guest.pushf();
    if (!isVirtual8086(cpu) || ioplOf(cpu) === 3) return image;
    if (bytes !== 2 || !hasVirtualFlags(cpu)) cpu.raise(Vector.GP, 0);
    return virtualImage(image);
  },
  /** POPF: low 32 bits of the popped value, operand bytes. */
  loadFlags(cpu, popped, bytes) {
    const isVirtual = bytes === 2 && hasVirtualFlags(cpu);
    if (isVirtual8086(cpu) && ioplOf(cpu) < 3 && !isVirtual) cpu.raise(Vector.GP, 0);
    cpu.guest.popf();
    const flags = isVirtual ? fromVirtualImage(cpu, popped) : mergedFlags(cpu, popped, bytes as TransferBytes, cplOf(cpu));
    // RF is cleared; VM, VIF and VIP, which IRET may load, keep their value.
    changeFlags(cpu, flags & ~Flag.RF);
  },
};
