/** Control and debug registers, MSRs, CPUID, time-stamp counter, and other state of the CPU as instructions reach it. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { gprOffset, RAX, RBX, RCX, RDX, state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { op } from "../operation.ts";
import { Cr0, Cr4, Flag, Vector } from "./bits.ts";
import { Dr6, Dr7, settledDr6, settledDr7 } from "./breakpoints.ts";
import { currentCpuid } from "./cpuid.ts";
import {
  argument,
  operandAddress,
  operandSegment,
  registerNumber,
  setResult,
  uncheckedOperandAddress,
} from "./helper-operands.ts";
import { isLinearAddress } from "./linear-address.ts";
import { Msr, readMsr, writeMsr } from "./msrs.ts";
import { forgetProcessContext, forgetProcessContexts } from "./process-contexts.ts";
import { cplOf, is64Bit, isProtected } from "./processor-mode.ts";
import { writeCr0, writeCr3, writeCr4, writeCr8 } from "./registers.ts";
import { linear } from "./segmentation.ts";
import { identifierOf } from "./translation-caches.ts";

const low32 = (value: bigint): number => Number(value & 0xffff_ffffn);
const cr4Has = (cpu: Cpu, bit: number): boolean => (cpu.u32[state.cr4 >>> 2] & bit) !== 0;

/** Registers of the local APIC in x2APIC mode, which the processor has for guests only. */
const isX2apic = (index: number): boolean => index >>> 8 === 8;

function requireSupervisor(cpu: Cpu): void {
  if (cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
}

/** Bits 31:0 of a general register, the others cleared. */
function setLow(cpu: Cpu, register: number, value: number): void {
  const at = gprOffset(register) >>> 2;
  cpu.u32[at] = value;
  cpu.u32[at + 1] = 0;
}

/** EDX:EAX, the upper halves of both cleared. */
function setPair(cpu: Cpu, value: bigint): void {
  cpu.setReg(RAX, BigInt.asUintN(32, value));
  cpu.setReg(RDX, BigInt.asUintN(64, value) >> 32n);
}

/** SGDT, SIDT, SLDT, STR and SMSW, which tell user code where the kernel is: not with CR4.UMIP. */
export function checkUserMode(cpu: Cpu): void {
  if (cr4Has(cpu, Cr4.UMIP)) requireSupervisor(cpu);
}

const controlRegisters: Readonly<Record<number, number>> = {
  0: state.cr0,
  2: state.cr2,
  3: state.cr3,
  4: state.cr4,
  8: state.cr8,
};

function checkControlRegister(cpu: Cpu, cr: number): number {
  const offset = controlRegisters[cr];
  if (offset === undefined || (cr === 8 && !is64Bit(cpu))) cpu.raise(Vector.UD);
  requireSupervisor(cpu);
  return offset;
}

/**
 * Number of the debug register after the checks of CR4.DE, privilege and general detect. Exits by VMX come before all of them, those by
 * SVM after.
 */
function checkDebugRegister(cpu: Cpu, dr: number, field: number, isRead: boolean): number {
  const isFirst = cpu.model.vendor === "intel";
  if (dr > 7) cpu.raise(Vector.UD);
  if (isFirst) cpu.guest.moveDr(dr, registerNumber(cpu, field), isRead);
  if ((dr === 4 || dr === 5) && cr4Has(cpu, Cr4.DE)) cpu.raise(Vector.UD);
  requireSupervisor(cpu);
  if ((cpu.u32[(state.dr + 56) >>> 2] & Dr7.GD) !== 0) cpu.raise(Vector.DB, undefined, BigInt(Dr6.BD));
  if (!isFirst) cpu.guest.moveDr(dr, registerNumber(cpu, field), isRead);
  return dr === 4 || dr === 5 ? dr + 2 : dr;
}

function checkTsc(cpu: Cpu): void {
  if (cr4Has(cpu, Cr4.TSD)) requireSupervisor(cpu);
}
function setTsc(cpu: Cpu): void {
  const { low, high } = cpu.guest.guestTsc();
  setLow(cpu, RAX, low);
  setLow(cpu, RDX, high);
}

export const registerHelpers: HelperTable = {
  /** Number of the register, field of the operation that holds the general register. Result 0: the value. */
  readControl(cpu, cr, field) {
    const offset = checkControlRegister(cpu, cr);
    const value = cpu.get64(offset);
    setResult(cpu, cpu.guest.readCr(cr, registerNumber(cpu, field), value));
  },
  writeControl(cpu, cr, field) {
    const offset = checkControlRegister(cpu, cr);
    const given = is64Bit(cpu) ? argument(cpu) : BigInt.asUintN(32, argument(cpu));
    const value = cpu.guest.writeCr(cr, registerNumber(cpu, field), given);
    if (cr === 2) cpu.set64(offset, value);
    else if (cr === 0) writeCr0(cpu, value);
    else if (cr === 3) writeCr3(cpu, value);
    else if (cr === 4) writeCr4(cpu, value);
    else {
      writeCr8(cpu, value);
      if (cpu.guest.windowOpened()) cpu.requestStop();
    }
    cpu.guest.registerWritten(cr, value);
  },
  readDebug(cpu, dr, field) {
    const index = checkDebugRegister(cpu, dr, field, true);
    setResult(cpu, cpu.get64(state.dr + index * 8));
  },
  writeDebug(cpu, dr, field) {
    const index = checkDebugRegister(cpu, dr, field, false);
    const value = is64Bit(cpu) ? argument(cpu) : BigInt.asUintN(32, argument(cpu));
    if (index >= 6) {
      if (value >> 32n !== 0n) cpu.raise(Vector.GP, 0);
      const settled = index === 6 ? settledDr6(Number(value)) : settledDr7(Number(value));
      cpu.set64(state.dr + index * 8, BigInt(settled));
    } else cpu.set64(state.dr + index * 8, value);
    cpu.debugStateChanged();
  },
  clearTaskSwitched(cpu) {
    requireSupervisor(cpu);
    if (cpu.guest.clts()) cpu.set32(state.cr0, cpu.get32(state.cr0) & ~Cr0.TS);
  },
  /** LMSW: value, and whether the operand is in memory (its effective address in argument 0). */
  loadMachineStatus(cpu, value, inMemory) {
    requireSupervisor(cpu);
    const address = inMemory !== 0 ? linear(cpu, operandSegment(cpu), argument(cpu), 2, false) : undefined;
    writeCr0(cpu, cpu.guest.lmsw(value & 0xffff, address));
  },
  /** SMSW; result 0: CR0 as the guest reads it. It has no exit, and a privilege check with CR4.UMIP only. */
  storeMachineStatus(cpu) {
    checkUserMode(cpu);
    setResult(cpu, cpu.guest.readCr(0, -1, cpu.get64(state.cr0)));
  },

  invalidatePage(cpu) {
    requireSupervisor(cpu);
    // INVLPG checks neither limit nor canonical form: an address that cannot be mapped has no translation to drop.
    const address = uncheckedOperandAddress(cpu);
    cpu.guest.invlpg(address);
    if (isLinearAddress(cpu.model, address)) cpu.flushPage(address);
  },
  /** INVPCID: its type; effective address of the descriptor in argument 0. */
  invalidateProcessContext(cpu, type) {
    cpu.guest.requireEnabled("INVPCID");
    requireSupervisor(cpu);
    cpu.guest.invpcid(cpu.reg(registerNumber(cpu, op.a)), uncheckedOperandAddress(cpu));
    if (type < 0 || type > 3) cpu.raise(Vector.GP, 0);
    const context = cpu.readLinear(operandAddress(cpu, 0, 16, false), 8);
    const address = cpu.readLinear(operandAddress(cpu, 8, 8, false), 8);
    if (context >> 12n !== 0n) cpu.raise(Vector.GP, 0);
    if (type < 2 && context !== 0n && !cr4Has(cpu, Cr4.PCIDE)) cpu.raise(Vector.GP, 0);
    const identifier = BigInt(identifierOf(cpu));
    if (type === 0) {
      if (!isLinearAddress(cpu.model, address)) cpu.raise(Vector.GP, 0);
      if (context === identifier) cpu.flushPage(address as Gva);
      else forgetProcessContext(cpu, Number(context));
    } else if (type === 1 && context !== identifier) forgetProcessContext(cpu, Number(context));
    else if (type === 3) forgetProcessContexts(cpu);
    else cpu.flushTlb(type === 1);
  },
  /** CLAC, at CPL 0. */
  clearAccessFlag(cpu) {
    cpu.setFlags(cpu.readFlags() & ~Flag.AC);
  },
  invalidateCaches(cpu, writeBack) {
    requireSupervisor(cpu);
    if (writeBack !== 0) cpu.guest.wbinvd();
    else cpu.guest.invd();
  },

  readMsr(cpu) {
    requireSupervisor(cpu);
    const index = cpu.u32[(state.gpr >>> 2) + 2 * RCX];
    if (cpu.guest.rdmsr(index)) return;
    const value = (isX2apic(index) ? cpu.guest.apic.readMsr(index) : undefined) ?? readMsr(cpu, index);
    if (value === undefined) return cpu.raise(Vector.GP, 0);
    setPair(cpu, value);
  },
  writeMsr(cpu) {
    requireSupervisor(cpu);
    const index = cpu.u32[(state.gpr >>> 2) + 2 * RCX];
    if (cpu.guest.wrmsr(index)) return;
    const value = (BigInt(low32(cpu.reg(RDX))) << 32n) | BigInt(low32(cpu.reg(RAX)));
    const isAccepted = (isX2apic(index) ? cpu.guest.apic.writeMsr(index, value) : undefined) ?? writeMsr(cpu, index, value);
    if (!isAccepted) cpu.raise(Vector.GP, 0);
    if (index === Msr.EFER) cpu.guest.registerWritten("efer", cpu.get64(state.efer));
  },
  cpuid(cpu) {
    if (cpu.guest.cpuid()) return;
    const { eax, ebx, ecx, edx } = currentCpuid(cpu, low32(cpu.reg(RAX)), low32(cpu.reg(RCX)));
    setLow(cpu, RAX, eax);
    setLow(cpu, RBX, ebx);
    setLow(cpu, RCX, ecx);
    setLow(cpu, RDX, edx);
  },
  readTsc(cpu) {
    checkTsc(cpu);
    if (cpu.guest.rdtsc()) return;
    setTsc(cpu);
  },
  readTscAndAux(cpu) {
    cpu.guest.requireEnabled("RDTSCP");
    checkTsc(cpu);
    if (cpu.guest.rdtscp()) return;
    setTsc(cpu);
    setLow(cpu, RCX, cpu.get32(state.tscAux));
  },
  readPerformanceCounter(cpu) {
    if (isProtected(cpu) && !cr4Has(cpu, Cr4.PCE)) requireSupervisor(cpu);
    if (cpu.guest.rdpmc()) return;
    const value = cpu.guest.counters?.readCounter(low32(cpu.reg(RCX)));
    if (value === undefined) return cpu.raise(Vector.GP, 0);
    setPair(cpu, value);
  },
  halt(cpu) {
    requireSupervisor(cpu);
    if (cpu.guest.hlt()) return;
    cpu.set32(state.activity, 1);
    cpu.requestStop();
  },
  pause(cpu) {
    cpu.guest.pause();
  },
  /** MONITOR arms nothing: MWAIT may return at once, and here it does. */
  monitor(cpu) {
    if (cplOf(cpu) !== 0) cpu.raise(Vector.UD);
    if (low32(cpu.reg(RCX)) !== 0) cpu.raise(Vector.GP, 0);
    const segment = operandSegment(cpu);
    const mask = is64Bit(cpu) ? 0xffff_ffff_ffff_ffffn : 0xffff_ffffn;
    cpu.readLinear(linear(cpu, segment, cpu.reg(RAX) & mask, 1, false), 1);
    cpu.guest.monitor();
  },
  mwait(cpu) {
    if (cplOf(cpu) !== 0) cpu.raise(Vector.UD);
    if ((low32(cpu.reg(RCX)) & ~1) !== 0) cpu.raise(Vector.GP, 0);
    cpu.guest.mwait();
  },
  /** LGDT (0), LIDT (1): bytes of the base 4 or 8 (3: 16-bit operand, 24 bits of base); effective address in argument 0. */
  loadTable(cpu, isIdt, baseBytes) {
    requireSupervisor(cpu);
    cpu.guest.descriptorTable(isIdt !== 0 ? "LIDT" : "LGDT");
    const limit = Number(cpu.readLinear(operandAddress(cpu, 0, 2, false), 2));
    const wide = baseBytes === 8;
    let base = cpu.readLinear(operandAddress(cpu, 2, wide ? 8 : 4, false), wide ? 8 : 4);
    if (baseBytes === 3) base &= 0xff_ffffn;
    if (wide && !isLinearAddress(cpu.model, base)) cpu.raise(Vector.GP, 0);
    cpu.set64(isIdt !== 0 ? state.idtrBase : state.gdtrBase, base);
    cpu.set32(isIdt !== 0 ? state.idtrLimit : state.gdtrLimit, limit);
  },
  /** SGDT (0), SIDT (1): bytes of the base 4 or 8. */
  storeTable(cpu, isIdt, baseBytes) {
    checkUserMode(cpu);
    cpu.guest.descriptorTable(isIdt !== 0 ? "SIDT" : "SGDT");
    const bytes = baseBytes === 8 ? 8 : 4;
    const limitAddress = operandAddress(cpu, 0, 2, true);
    const baseAddress = operandAddress(cpu, 2, bytes, true);
    cpu.probeWrite(limitAddress, 2);
    cpu.probeWrite(baseAddress, bytes);
    cpu.writeLinear(limitAddress, 2, BigInt(cpu.u32[(isIdt !== 0 ? state.idtrLimit : state.gdtrLimit) >>> 2] & 0xffff));
    cpu.writeLinear(baseAddress, bytes, cpu.get64(isIdt !== 0 ? state.idtrBase : state.gdtrBase));
  },
};
