/**
 * SYSCALL, SYSRET, SYSENTER and SYSEXIT: privilege changes that read no descriptor. Intel's processors have SYSCALL in 64-bit mode only
 * and SYSENTER everywhere; AMD's have SYSCALL everywhere and SYSENTER outside long mode only (AMD64 APM Vol. 3, SYSCALL; SYSENTER).
 */
import type { Cpu } from "../cpu.ts";
import { RCX, RDX, RSP, state } from "../cpu-state.ts";
import { Efer, FLAGS_DEFINED, FLAGS_FIXED, Flag, Vector } from "./bits.ts";
import { loadFlat } from "./code-segment.ts";
import { isCanonical } from "./linear-address.ts";
import { changeFlags, cplOf, is64Bit, isLongMode, isProtected } from "./processor-mode.ts";

const R11 = 11;
/** Flags that SYSRET takes from R11: all but RF and VM. */
const SYSRET_FLAGS = FLAGS_DEFINED & ~(Flag.RF | Flag.VM);

const isAmd = (cpu: Cpu): boolean => cpu.model.vendor === "amd";
function syscallEnabled(cpu: Cpu): boolean {
  return (is64Bit(cpu) || (isAmd(cpu) && isProtected(cpu))) && (cpu.u32[state.efer >>> 2] & Efer.SCE) !== 0;
}
/** STAR: bits 32-47 the kernel's selectors, 48-63 the user's. */
const starKernel = (cpu: Cpu): number => cpu.u32[(state.star >>> 2) + 1] & 0xffff;
const starUser = (cpu: Cpu): number => cpu.u32[(state.star >>> 2) + 1] >>> 16;

export function syscall(cpu: Cpu): void {
  if (!syscallEnabled(cpu)) cpu.raise(Vector.UD);
  const flags = cpu.readFlags();
  if (!isLongMode(cpu)) {
    syscallLegacy(cpu, flags);
    return;
  }
  const target = is64Bit(cpu) ? state.lstar : state.cstar;
  cpu.setReg(RCX, cpu.nextRip());
  cpu.setReg(R11, BigInt((flags & ~Flag.RF) >>> 0));
  const kernel = starKernel(cpu) & 0xfffc;
  loadFlat(cpu, kernel, kernel + 8, 0, true);
  cpu.setNextRip(cpu.get64(target));
  changeFlags(cpu, (flags & ~(cpu.u32[state.fmask >>> 2] | Flag.RF | Flag.VM)) | FLAGS_FIXED);
}

/** Outside long mode the target is in STAR, and no flags are kept. */
function syscallLegacy(cpu: Cpu, flags: number): void {
  cpu.setReg(RCX, BigInt.asUintN(32, cpu.nextRip()));
  const kernel = starKernel(cpu) & 0xfffc;
  loadFlat(cpu, kernel, kernel + 8, 0, false);
  cpu.setNextRip(BigInt(cpu.u32[state.star >>> 2]));
  changeFlags(cpu, flags & ~(Flag.VM | Flag.IF | Flag.RF));
}

export function sysret(cpu: Cpu, toLong: boolean): void {
  if (!syscallEnabled(cpu)) cpu.raise(Vector.UD);
  if (cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
  const rcx = cpu.reg(RCX);
  const user = starUser(cpu);
  if (!is64Bit(cpu)) {
    loadFlat(cpu, user, user + 8, 3, false, isAmd(cpu));
    cpu.setNextRip(BigInt.asUintN(32, rcx));
    changeFlags(cpu, cpu.readFlags() | Flag.IF);
    return;
  }
  // AMD's processors fault with the first fetch, at the new privilege
  if (toLong && !isAmd(cpu) && !isCanonical(cpu, rcx)) cpu.raise(Vector.GP, 0);
  const flags = (Number(cpu.reg(R11) & 0xffff_ffffn) & SYSRET_FLAGS) | FLAGS_FIXED;
  loadFlat(cpu, toLong ? user + 16 : user, user + 8, 3, toLong, isAmd(cpu));
  cpu.setNextRip(toLong ? rcx : BigInt.asUintN(32, rcx));
  changeFlags(cpu, flags);
}

export function sysenter(cpu: Cpu): void {
  if (isAmd(cpu) && isLongMode(cpu)) cpu.raise(Vector.UD);
  const code = cpu.u32[state.sysenterCs >>> 2] & 0xfffc;
  if (!isProtected(cpu) || code === 0) cpu.raise(Vector.GP, 0);
  const toLong = isLongMode(cpu);
  const flags = cpu.readFlags() & ~(Flag.VM | Flag.IF | Flag.RF);
  const rip = cpu.get64(state.sysenterEip);
  const rsp = cpu.get64(state.sysenterEsp);
  cpu.set32(state.systemFlags, cpu.get32(state.systemFlags) & ~Flag.VM);
  loadFlat(cpu, code, code + 8, 0, toLong);
  cpu.setReg(RSP, toLong ? rsp : BigInt.asUintN(32, rsp));
  cpu.setNextRip(toLong ? rip : BigInt.asUintN(32, rip));
  changeFlags(cpu, flags);
}

export function sysexit(cpu: Cpu, toLong: boolean): void {
  if (isAmd(cpu) && isLongMode(cpu)) cpu.raise(Vector.UD);
  const code = cpu.u32[state.sysenterCs >>> 2] & 0xfffc;
  if (!isProtected(cpu) || code === 0 || cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
  const rip = cpu.reg(RDX);
  const rsp = cpu.reg(RCX);
  if (toLong && !(isCanonical(cpu, rip) && isCanonical(cpu, rsp))) cpu.raise(Vector.GP, 0);
  const selector = code + (toLong ? 32 : 16);
  loadFlat(cpu, selector, selector + 8, 3, toLong);
  cpu.setReg(RSP, toLong ? rsp : BigInt.asUintN(32, rsp));
  cpu.setNextRip(toLong ? rip : BigInt.asUintN(32, rip));
}
