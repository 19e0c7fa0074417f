/** What mode the CPU is in, read from the state block without a bigint. */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { Cr0, Efer, Flag } from "./bits.ts";

export const isProtected = (cpu: Cpu): boolean => (cpu.u32[state.cr0 >>> 2] & Cr0.PE) !== 0;
export const isVirtual8086 = (cpu: Cpu): boolean => (cpu.u32[state.systemFlags >>> 2] & Flag.VM) !== 0;
/** Real-address or virtual-8086 mode: selectors are paragraph numbers. */
export const hasParagraphSegments = (cpu: Cpu): boolean => !isProtected(cpu) || isVirtual8086(cpu);
/** EFER.LMA: 64-bit or compatibility mode. */
export const isLongMode = (cpu: Cpu): boolean => (cpu.u32[state.efer >>> 2] & Efer.LMA) !== 0;
/** 64-bit mode: long mode with CS.L set. */
export const is64Bit = (cpu: Cpu): boolean => cpu.u32[state.codeSize >>> 2] === 64;
export const cplOf = (cpu: Cpu): number => cpu.u32[state.cpl >>> 2];
/** The new level, of which whoever counts by privilege is told before. */
export function setCpl(cpu: Cpu, cpl: number): void {
  if (cpu.privilegeChanges !== undefined && (cplOf(cpu) === 0) !== (cpl === 0)) cpu.privilegeChanges();
  cpu.u32[state.cpl >>> 2] = cpl;
}
export const ioplOf = (cpu: Cpu): number => (cpu.u32[state.systemFlags >>> 2] >>> 12) & 3;

/** Loads RFLAGS and asks the engine to stop where that opens a window (interrupts, NMIs). */
export function changeFlags(cpu: Cpu, value: number): void {
  cpu.setFlags(value);
  if (cpu.guest.windowOpened()) cpu.requestStop();
}
