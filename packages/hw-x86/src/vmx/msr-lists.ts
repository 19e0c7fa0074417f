/** MSR areas that VM entry and exit load and store: 16 bytes an entry: number, reserved, value. Source: Intel SDM Vol. 3C, Loading MSRs. */
import { state } from "../engine/cpu-state.ts";
import { isLinearAddress } from "../engine/system/linear-address.ts";
import { Msr } from "../msr.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { isPat } from "../root-msrs.ts";

/** Guest MSRs in the state block, whether shared with root mode or switched by the VMCS. */
const GUEST = new Map<number, number>([
  [Msr.STAR, state.star],
  [Msr.LSTAR, state.lstar],
  [Msr.CSTAR, state.cstar],
  [Msr.FMASK, state.fmask],
  [Msr.KERNEL_GS_BASE, state.kernelGsBase],
  [Msr.TSC_AUX, state.tscAux],
  [Msr.SYSENTER_CS, state.sysenterCs],
  [Msr.SYSENTER_ESP, state.sysenterEsp],
  [Msr.SYSENTER_EIP, state.sysenterEip],
  [Msr.PAT, state.pat],
  [Msr.EFER, state.efer],
  [Msr.MISC_ENABLE, state.miscEnable],
]);

const ADDRESSES = new Set<number>([Msr.LSTAR, Msr.CSTAR, Msr.KERNEL_GS_BASE, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP]);

/** x2APIC registers and the bases that the VMCS holds may not be in a load list. */
function isLoadable(index: number, reserved: number): boolean {
  return reserved === 0 && index !== Msr.FS_BASE && index !== Msr.GS_BASE && index >>> 8 !== 8;
}

function entryAt(cpu: RootCpu, address: number): DataView | undefined {
  const bank = cpu.memory.holding(address, 16);
  return bank === undefined ? undefined : new DataView(bank.memory.buffer, address % 0x1_0000_0000, 16);
}

function writeGuest(cpu: RootCpu, engine: GuestEngine, index: number, value: bigint): boolean {
  const where = GUEST.get(index);
  if (where === undefined) return cpu.counters.writeMsr(index, value) ?? false;
  if (ADDRESSES.has(index) && !isLinearAddress(engine.model, value)) return false;
  if (index === Msr.PAT && !isPat(Number(value & 0xffff_ffffn), Number(value >> 32n))) return false;
  if (index === Msr.EFER) {
    // Paging decides LMA, and LME cannot change under it
    const fixed = 0x500n;
    const now = engine.get64(state.efer);
    if ((value & ~engine.model.eferAllowed & ~0x400n) !== 0n || (value & fixed) !== (now & fixed)) return false;
  }
  engine.set64(where, value);
  return true;
}

/** Loads MSRs on VM entry. 0, or the number (from 1) of the entry that cannot be loaded. */
export function loadOnEntry(cpu: RootCpu, engine: GuestEngine, address: number, count: number): number {
  for (let i = 0; i < count; i++) {
    const entry = entryAt(cpu, address + i * 16);
    if (entry === undefined) return i + 1;
    const index = entry.getUint32(0, true);
    if (!isLoadable(index, entry.getUint32(4, true)) || !writeGuest(cpu, engine, index, entry.getBigUint64(8, true)))
      return i + 1;
  }
  return 0;
}

/** Stores guest MSRs on VM exit; false: VMX abort. */
export function storeOnExit(cpu: RootCpu, engine: GuestEngine, address: number, count: number): boolean {
  for (let i = 0; i < count; i++) {
    const entry = entryAt(cpu, address + i * 16);
    if (entry === undefined || entry.getUint32(4, true) !== 0) return false;
    const index = entry.getUint32(0, true);
    if (index === Msr.TSC) {
      entry.setBigUint64(8, BigInt(cpu.rdtsc()), true);
      continue;
    }
    const where = GUEST.get(index);
    const value = where === undefined ? (cpu.msrs.read(index) ?? cpu.counters.readMsr(index)) : engine.get64(where);
    if (value === undefined) return false;
    entry.setBigUint64(8, value, true);
  }
  return true;
}

/** Loads root mode's MSRs on VM exit; false: VMX abort. */
export function loadOnExit(cpu: RootCpu, address: number, count: number): boolean {
  for (let i = 0; i < count; i++) {
    const entry = entryAt(cpu, address + i * 16);
    if (entry === undefined) return false;
    const index = entry.getUint32(0, true);
    const value = entry.getBigUint64(8, true);
    if (!isLoadable(index, entry.getUint32(4, true))) return false;
    if (!cpu.msrs.write(index, value) && cpu.counters.writeMsr(index, value) !== true) return false;
  }
  return true;
}
