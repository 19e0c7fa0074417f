/** Far transfers, software interrupts and returns. */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { doesBehave, VendorBehaviour } from "../vendor-behaviour.ts";
import { Flag, Vector } from "./bits.ts";
import { deliverEvent } from "./events.ts";
import { jumpOrCallFar, returnFar, type TransferBytes } from "./far-transfers.ts";
import { syscall, sysenter, sysexit, sysret } from "./fast-calls.ts";
import { argument, operandAddress } from "./helper-operands.ts";
import { interruptReturn } from "./interrupt-return.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { is64Bit, isVirtual8086 } from "./processor-mode.ts";
import { enterRedirected, isRedirected } from "./virtual-8086-extensions.ts";

/** ptr16:z in argument 0: offset in bits 0-31, selector in 32-47. */
function direct(cpu: Cpu, bytes: TransferBytes, isCall: boolean): void {
  const pointer = argument(cpu);
  const offset = pointer & (bytes === 2 ? 0xffffn : 0xffff_ffffn);
  jumpOrCallFar(cpu, Number((pointer >> 32n) & 0xffffn), offset, bytes, isCall);
}

/** m16:v at the effective address in argument 0; not all processors know m16:64. */
function indirect(cpu: Cpu, bytes: TransferBytes, isCall: boolean): void {
  const offsetBytes = bytes === 8 && !doesBehave(cpu, VendorBehaviour.farPointersHave64Bits) ? 4 : bytes;
  const offset = cpu.readLinear(operandAddress(cpu, 0, offsetBytes, false), offsetBytes);
  const selector = Number(cpu.readLinear(operandAddress(cpu, offsetBytes, 2, false), 2));
  jumpOrCallFar(cpu, selector, offset, bytes, isCall);
}

function softwareEvent(cpu: Cpu, vector: number, type: 4 | 5 | 6): void {
  // At its start already: no handler of a software interrupt finds RF set, only that of a fault on the way there
  cpu.setFlags(cpu.readFlags() & ~Flag.RF);
  deliverEvent(cpu, {
    vector,
    type,
    errorCode: undefined,
    instructionLength: cpu.instructionLength(),
    payload: 0n,
    injected: false,
  });
  cpu.setNextRip(cpu.get64(state.rip));
}

export const transferHelpers: HelperTable = {
  /** A target of 64-bit code that takes more than 48 bits, by its upper half. */
  checkWideTarget(cpu, high) {
    if (!isCanonicalHigh(cpu, high)) cpu.raise(Vector.GP, 0);
  },
  jumpFarDirect: (cpu, bytes) => direct(cpu, bytes as TransferBytes, false),
  callFarDirect: (cpu, bytes) => direct(cpu, bytes as TransferBytes, true),
  jumpFarIndirect: (cpu, bytes) => indirect(cpu, bytes as TransferBytes, false),
  callFarIndirect: (cpu, bytes) => indirect(cpu, bytes as TransferBytes, true),
  returnFar: (cpu, bytes, release) => returnFar(cpu, bytes as TransferBytes, release & 0xffff),
  interruptReturn(cpu, bytes) {
    if (!cpu.guest.iret()) interruptReturn(cpu, bytes as TransferBytes);
  },
  interrupt(cpu, vector) {
    const redirects = isVirtual8086(cpu) && isRedirected(cpu, vector & 0xff);
    if (cpu.guest.softwareInterrupt(vector & 0xff)) return;
    if (redirects) enterRedirected(cpu, vector & 0xff, cpu.nextRip());
    else softwareEvent(cpu, vector & 0xff, 4);
  },
  interrupt3: (cpu) => softwareEvent(cpu, Vector.BP, 6),
  interrupt1: (cpu) => softwareEvent(cpu, Vector.DB, 5),
  /** INTO: OF, and nothing happens without it. */
  interruptOnOverflow(cpu, overflow) {
    if (overflow !== 0) softwareEvent(cpu, Vector.OF, 6);
  },
  syscall: (cpu) => syscall(cpu),
  sysret: (cpu, toLong) => sysret(cpu, toLong !== 0),
  sysenter: (cpu) => sysenter(cpu),
  sysexit: (cpu, toLong) => {
    if (toLong !== 0 && !is64Bit(cpu)) cpu.raise(Vector.UD);
    sysexit(cpu, toLong !== 0);
  },
};
