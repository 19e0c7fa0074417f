/** Loads of control registers and EFER with the checks of the CPU itself; what a hypervisor masks was masked before. */
import type { Cpu } from "../cpu.ts";
import { CS, state } from "../cpu-state.ts";
import { Access, Cr0, Cr4, Efer, Vector } from "./bits.ts";
import { accessOf } from "./descriptors.ts";
import { READ, translatePhysical } from "./paging.ts";
import { switchProcessContext } from "./process-contexts.ts";
import { isLongMode } from "./processor-mode.ts";

const has = (value: bigint, bit: number): boolean => (Number(value & 0xffff_ffffn) & bit) !== 0;

/** True when PAE paging with its PDPTE registers is in use under these values. */
export function usesPdptes(cr0: bigint, cr4: bigint, efer: bigint): boolean {
  return has(cr0, Cr0.PG) && has(cr4, Cr4.PAE) && !has(efer, Efer.LME);
}

/** The four PDPTEs at CR3, undefined when one has reserved bits set (#GP at the load). */
function readPdptes(cpu: Cpu, cr3: bigint): bigint[] | undefined {
  const start = Number(cr3 & 0xffff_ffe0n);
  const beyond = -1n << BigInt(cpu.model.physicalAddressBits);
  const entries: bigint[] = [];
  for (let i = 0; i < 4; i++) {
    const entry = cpu.view.getBigUint64(translatePhysical(cpu, start + i * 8, READ), true);
    if ((entry & 1n) !== 0n && (entry & (0x1e6n | BigInt.asUintN(64, beyond))) !== 0n) return undefined;
    entries.push(entry);
  }
  return entries;
}

/** Loads the PDPTE registers if these values use them; #GP(0) for reserved bits, before anything has changed. */
function loadPdptes(cpu: Cpu, cr0: bigint, cr3: bigint, cr4: bigint, efer: bigint): void {
  if (!usesPdptes(cr0, cr4, efer)) return;
  const entries = readPdptes(cpu, cr3);
  if (entries === undefined) cpu.raise(Vector.GP, 0);
  for (let i = 0; i < 4; i++) cpu.set64(state.pdpte + i * 8, entries[i]);
}

/** Loads the PDPTE registers from memory as they lie there, as VMRUN does. */
export function reloadPdptes(cpu: Cpu): void {
  const start = Number(cpu.get64(state.cr3) & 0xffff_ffe0n);
  for (let i = 0; i < 4; i++)
    cpu.set64(state.pdpte + i * 8, cpu.view.getBigUint64(translatePhysical(cpu, start + i * 8, READ), true));
}

export function writeCr0(cpu: Cpu, value: bigint): void {
  if (value >> 32n !== 0n) cpu.raise(Vector.GP, 0);
  const next = (value & cpu.model.cr0Allowed) | BigInt(Cr0.ET);
  const old = cpu.get64(state.cr0);
  if (has(next, Cr0.PG) && !has(next, Cr0.PE)) cpu.raise(Vector.GP, 0);
  if (has(next, Cr0.NW) && !has(next, Cr0.CD)) cpu.raise(Vector.GP, 0);
  const cr4 = cpu.get64(state.cr4);
  let efer = cpu.get64(state.efer);
  if (has(next, Cr0.PG) && !has(old, Cr0.PG) && has(efer, Efer.LME)) {
    if (!has(cr4, Cr4.PAE) || (accessOf(cpu, CS) & Access.long) !== 0) cpu.raise(Vector.GP, 0);
    efer |= BigInt(Efer.LMA);
  }
  if (!has(next, Cr0.PG) && has(old, Cr0.PG)) {
    if (has(cr4, Cr4.PCIDE)) cpu.raise(Vector.GP, 0);
    if (cpu.u32[state.codeSize >>> 2] === 64) cpu.raise(Vector.GP, 0);
    efer &= ~BigInt(Efer.LMA);
  }
  const changed = next ^ old;
  if (has(changed, Cr0.PG | Cr0.CD | Cr0.NW)) loadPdptes(cpu, next, cpu.get64(state.cr3), cr4, efer);
  cpu.set64(state.cr0, next);
  cpu.set64(state.efer, efer);
  if (has(changed, Cr0.PG | Cr0.PE | Cr0.WP)) {
    cpu.flushTlb(false);
    cpu.updateSegments();
  }
}

/** With CR4.PCIDE: translations of the process-context identifier may stay. */
const NO_FLUSH = 1n << 63n;

/** MOV to CR3: translations of pages that are not global are dropped, of the new process-context identifier where there are any. */
export function writeCr3(cpu: Cpu, value: bigint): void {
  const hasIdentifiers = has(cpu.get64(state.cr4), Cr4.PCIDE);
  const given = hasIdentifiers ? value & ~NO_FLUSH : value;
  const cr3 = isLongMode(cpu) ? given : BigInt.asUintN(32, given);
  if (cr3 >> BigInt(cpu.model.physicalAddressBits) !== 0n) cpu.raise(Vector.GP, 0);
  loadPdptes(cpu, cpu.get64(state.cr0), cr3, cpu.get64(state.cr4), cpu.get64(state.efer));
  cpu.set64(state.cr3, cr3);
  if (hasIdentifiers) switchProcessContext(cpu, (value & NO_FLUSH) !== 0n);
  else cpu.flushTlb(true);
}

export function writeCr4(cpu: Cpu, value: bigint): void {
  if ((value & ~cpu.model.cr4Allowed) !== 0n) cpu.raise(Vector.GP, 0);
  const old = cpu.get64(state.cr4);
  const changed = value ^ old;
  if (isLongMode(cpu) && (!has(value, Cr4.PAE) || has(changed, Cr4.LA57))) cpu.raise(Vector.GP, 0);
  if (has(value & changed, Cr4.PCIDE) && (!isLongMode(cpu) || (cpu.get64(state.cr3) & 0xfffn) !== 0n)) cpu.raise(Vector.GP, 0);
  if (has(changed, Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP)) {
    loadPdptes(cpu, cpu.get64(state.cr0), cpu.get64(state.cr3), value, cpu.get64(state.efer));
  }
  cpu.set64(state.cr4, value);
  if (has(changed, Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.PCIDE | Cr4.SMEP | Cr4.SMAP | Cr4.PKE)) cpu.flushTlb(false);
  if (has(changed, Cr4.DE)) cpu.debugStateChanged();
}

/** MOV to CR8: the task priority, 4 bits. */
export function writeCr8(cpu: Cpu, value: bigint): void {
  if (value >> 4n !== 0n) cpu.raise(Vector.GP, 0);
  cpu.set64(state.cr8, value);
}

/** False: #GP(0). LMA is the CPU's own and keeps its value. */
export function writeEfer(cpu: Cpu, value: bigint): boolean {
  if ((value & ~(cpu.model.eferAllowed | BigInt(Efer.LMA))) !== 0n) return false;
  const old = cpu.get64(state.efer);
  const next = (value & ~BigInt(Efer.LMA)) | (old & BigInt(Efer.LMA));
  const changed = next ^ old;
  if (has(changed, Efer.LME) && has(cpu.get64(state.cr0), Cr0.PG)) return false;
  cpu.set64(state.efer, next);
  if (has(changed, Efer.NXE)) cpu.flushTlb(false);
  return true;
}
