/**
 * Virtual interrupts and the redirection of software interrupts (Intel SDM Vol. 3B, 8086 Emulation: Interrupt and Exception Handling in
 * Virtual-8086 Mode, Protected-Mode Virtual Interrupts; AMD64 APM Vol. 2, Virtual Interrupts): CR4.VME and CR4.PVI let code that may not
 * touch IF have VIF in its place.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, RSP, state, TR } from "../cpu-state.ts";
import { Cr4, FLAGS_DEFINED, FLAGS_FIXED, Flag, Vector } from "./bits.ts";
import { segmentBase64, segmentLimit, selectorOf } from "./descriptors.ts";
import { loadParagraphCode } from "./far-transfers.ts";
import { cplOf, ioplOf, isProtected, isVirtual8086 } from "./processor-mode.ts";
import { pushed } from "./stack-frame.ts";

const has = (cpu: Cpu, bit: number): boolean => (cpu.u32[state.cr4 >>> 2] & bit) !== 0;

/** Virtual-8086 code below IOPL 3 that reads and writes VIF as its IF. */
export const hasVirtualFlags = (cpu: Cpu): boolean => isVirtual8086(cpu) && ioplOf(cpu) < 3 && has(cpu, Cr4.VME);

/** Which flag CLI and STI are about; #GP(0) where that is neither. */
export function interruptFlagOf(cpu: Cpu): typeof Flag.IF | typeof Flag.VIF {
  if (!isProtected(cpu) || cplOf(cpu) <= ioplOf(cpu)) return Flag.IF;
  if (isVirtual8086(cpu) ? has(cpu, Cr4.VME) : cplOf(cpu) === 3 && has(cpu, Cr4.PVI)) return Flag.VIF;
  return cpu.raise(Vector.GP, 0);
}

/** An interrupt waits for virtual-8086 code that takes interrupts: #GP(0) at the beginning of its next instruction, for the monitor. */
export function hasAwaitedInterrupt(cpu: Cpu): boolean {
  const both = Flag.VIF | Flag.VIP;
  return hasVirtualFlags(cpu) && (cpu.readFlags() & both) === both;
}

/** FLAGS as virtual-8086 code with virtual flags finds them in memory: its IF is VIF, its IOPL 3. */
export function virtualImage(flags: number): number {
  return (flags & ~Flag.IF) | Flag.IOPL | ((flags & Flag.VIF) !== 0 ? Flag.IF : 0);
}

/** RFLAGS from a 16-bit image that such code pops; #GP(0) where its monitor has to look: single steps, and an interrupt that waits. */
export function fromVirtualImage(cpu: Cpu, popped: number): number {
  const flags = cpu.readFlags();
  const isAwaited = (popped & Flag.IF) !== 0 && (flags & Flag.VIP) !== 0;
  if (isAwaited || (popped & Flag.TF) !== 0) cpu.raise(Vector.GP, 0);
  const kept = (flags & ~(0xffff | Flag.VIF)) | (flags & (Flag.IF | Flag.IOPL));
  const taken = popped & FLAGS_DEFINED & 0xffff & ~(Flag.IF | Flag.IOPL);
  return kept | taken | FLAGS_FIXED | ((popped & Flag.IF) !== 0 ? Flag.VIF : 0);
}

const IO_MAP_BASE = 102;
const REDIRECTION_BYTES = 32;

/**
 * Whether CR4.VME and the bit map in front of the task's I/O permissions send a software interrupt of virtual-8086 code to the 8086
 * program's own handler. #GP(0) where there is no map.
 */
function isInProgramsMap(cpu: Cpu, vector: number): boolean {
  if (!has(cpu, Cr4.VME)) return false;
  const limit = segmentLimit(cpu, TR);
  const base = segmentBase64(cpu, TR);
  if (limit < IO_MAP_BASE + 1) cpu.raise(Vector.GP, 0);
  const map = Number(cpu.readLinear((base + BigInt(IO_MAP_BASE)) as Gva, 2, true)) - REDIRECTION_BYTES;
  const at = map + (vector >>> 3);
  if (at < 0 || at > limit) cpu.raise(Vector.GP, 0);
  const bits = Number(cpu.readLinear((base + BigInt(at)) as Gva, 1, true));
  return (bits & (1 << (vector & 7))) === 0;
}

/** The same for INT n, which is #GP(0) where it goes to the monitor, unless IOPL is 3. */
export function isRedirected(cpu: Cpu, vector: number): boolean {
  if (isInProgramsMap(cpu, vector)) return true;
  if (ioplOf(cpu) < 3) cpu.raise(Vector.GP, 0);
  return false;
}

/**
 * The same for a software interrupt that a hypervisor injects, of which IOPL is not asked (Intel SDM Vol. 3C, Details of Vectored-Event
 * Injection).
 */
export const isInjectionRedirected = (cpu: Cpu, vector: number): boolean => isVirtual8086(cpu) && isInProgramsMap(cpu, vector);

/** INT n through the interrupt table at linear address 0, as in real mode, without leaving virtual-8086 mode. */
export function enterRedirected(cpu: Cpu, vector: number, returnRip: bigint): void {
  const target = Number(cpu.readLinear(BigInt(vector * 4) as Gva, 4, true));
  const flags = cpu.readFlags();
  const isVirtual = ioplOf(cpu) < 3;
  const image = isVirtual ? virtualImage(flags) : flags;
  const rsp = pushed(cpu, 2, [BigInt(image), BigInt(selectorOf(cpu, CS)), returnRip]);
  cpu.deliveries++;
  cpu.setReg(RSP, rsp);
  loadParagraphCode(cpu, target >>> 16, BigInt(target & 0xffff));
  cpu.setFlags(flags & ~(Flag.TF | Flag.RF | (isVirtual ? Flag.VIF : Flag.IF)));
}
