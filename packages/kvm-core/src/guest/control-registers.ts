/** MOV to control registers, XSETBV and EFER by the architecture's rules (SDM 3A, "Control Registers"). false: #GP(0). */
import { Cr0, Cr4, Efer, SegmentRegister } from "../arch/registers.ts";
import { findCpuid } from "../cpuid-table.ts";
import { readPdptrs, usesPdptrs } from "./paging.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const CR0_DEFINED = Object.values(Cr0).reduce((all, bit) => all | bit, 0n);

/** CR4 bits that the guest's CPUID leaves reserved. */
export function reservedCr4(vcpu: VcpuParts): bigint {
  const leaf1 = findCpuid(vcpu.cpuid, 1, 0);
  const leaf7 = findCpuid(vcpu.cpuid, 7, 0);
  let allowed = Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT;
  const allow = (word: number | undefined, bit: number, flag: bigint): void => {
    if (word !== undefined && (word & (1 << bit)) !== 0) allowed |= flag;
  };
  allow(leaf1?.edx, 1, Cr4.VME | Cr4.PVI);
  allow(leaf1?.ecx, 26, Cr4.OSXSAVE);
  allow(leaf1?.ecx, 17, Cr4.PCIDE);
  allow(leaf7?.ebx, 0, Cr4.FSGSBASE);
  allow(leaf7?.ebx, 7, Cr4.SMEP);
  allow(leaf7?.ebx, 20, Cr4.SMAP);
  allow(leaf7?.ecx, 2, Cr4.UMIP);
  allow(leaf7?.ecx, 3, Cr4.PKE);
  allow(leaf7?.ecx, 16, Cr4.LA57);
  return ~allowed & 0xffff_ffff_ffff_ffffn;
}

export function moveToCr0(vcpu: VcpuParts, requested: bigint): boolean {
  if (requested >> 32n !== 0n) return false;
  const value = (requested & CR0_DEFINED) | Cr0.ET;
  const old = vcpu.cr0;
  if ((value & Cr0.NW) !== 0n && (value & Cr0.CD) === 0n) return false;
  if ((value & Cr0.PG) !== 0n && (value & Cr0.PE) === 0n) return false;
  const turnsOn = (value & ~old & Cr0.PG) !== 0n;
  const turnsOff = (old & ~value & Cr0.PG) !== 0n;
  if (turnsOn && (vcpu.efer & Efer.LME) !== 0n) {
    if ((vcpu.cr4 & Cr4.PAE) === 0n) return false;
    if ((vcpu.segment(SegmentRegister.CS).access & 0x2000) !== 0) return false;
  } else if (
    usesPdptrs({ cr0: value, cr4: vcpu.cr4, efer: vcpu.efer }) &&
    ((old ^ value) & (Cr0.PG | Cr0.CD | Cr0.NW)) !== 0n
  ) {
    const pdptrs = readPdptrs(vcpu, vcpu.cr3);
    if (pdptrs === undefined) return false;
    vcpu.cr0 = value;
    vcpu.pdptrs = pdptrs;
    vcpu.requestTlbFlush();
    return true;
  }
  if (turnsOff && (vcpu.cr4 & Cr4.PCIDE) !== 0n) return false;
  if (turnsOn && (vcpu.efer & Efer.LME) !== 0n) vcpu.efer = vcpu.efer | Efer.LMA;
  if (turnsOff && (vcpu.efer & Efer.LMA) !== 0n) {
    // In 64-bit mode paging cannot be turned off
    if ((vcpu.segment(SegmentRegister.CS).access & 0x2000) !== 0) return false;
    vcpu.efer = vcpu.efer & ~Efer.LMA;
  }
  vcpu.cr0 = value;
  if (((old ^ value) & (Cr0.PG | Cr0.WP)) !== 0n) vcpu.requestTlbFlush();
  return true;
}

export function moveToCr3(vcpu: VcpuParts, requested: bigint): boolean {
  const longMode = (vcpu.efer & Efer.LMA) !== 0n;
  const noFlush = (vcpu.cr4 & Cr4.PCIDE) !== 0n && (requested & (1n << 63n)) !== 0n;
  const value = noFlush ? requested & ~(1n << 63n) : requested;
  if (longMode && value >> BigInt(vcpu.vm.physicalBits) !== 0n) return false;
  if (usesPdptrs(vcpu)) {
    const pdptrs = readPdptrs(vcpu, value);
    if (pdptrs === undefined) return false;
    vcpu.pdptrs = pdptrs;
  }
  vcpu.cr3 = longMode ? value : value & 0xffff_ffffn;
  if (!noFlush) vcpu.requestTlbFlush();
  return true;
}

export function moveToCr4(vcpu: VcpuParts, value: bigint): boolean {
  if ((value & reservedCr4(vcpu)) !== 0n) return false;
  const old = vcpu.cr4;
  const changed = old ^ value;
  const { efer } = vcpu;
  if ((efer & Efer.LMA) !== 0n) {
    if ((value & Cr4.PAE) === 0n) return false;
    if ((changed & Cr4.LA57) !== 0n) return false;
  } else if (usesPdptrs({ cr0: vcpu.cr0, cr4: value, efer })) {
    if ((changed & (Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP)) !== 0n) {
      const pdptrs = readPdptrs(vcpu, vcpu.cr3);
      if (pdptrs === undefined) return false;
      vcpu.pdptrs = pdptrs;
    }
  }
  if ((value & ~old & Cr4.PCIDE) !== 0n && ((efer & Efer.LMA) === 0n || (vcpu.cr3 & 0xfffn) !== 0n)) return false;
  vcpu.cr4 = value;
  if ((changed & (Cr4.PAE | Cr4.PSE | Cr4.PGE | Cr4.SMEP | Cr4.SMAP | Cr4.PKE | Cr4.PCIDE | Cr4.LA57)) !== 0n)
    vcpu.requestTlbFlush();
  return true;
}

/** WRMSR to IA32_EFER by the guest. */
export function writeEfer(vcpu: VcpuParts, value: bigint, byHost: boolean): boolean {
  const extended = findCpuid(vcpu.cpuid, 0x8000_0001, 0);
  let allowed = Efer.LMA;
  const allow = (bit: number, flag: bigint): void => {
    if (byHost || (extended !== undefined && (extended.edx & (1 << bit)) !== 0)) allowed |= flag;
  };
  allow(11, Efer.SCE);
  allow(29, Efer.LME);
  allow(20, Efer.NXE);
  if ((value & ~allowed) !== 0n) return false;
  const old = vcpu.efer;
  if (!byHost && (vcpu.cr0 & Cr0.PG) !== 0n && ((old ^ value) & Efer.LME) !== 0n) return false;
  const installed = byHost ? value : (value & ~Efer.LMA) | (old & Efer.LMA);
  vcpu.efer = installed;
  if (((old ^ installed) & Efer.NXE) !== 0n) vcpu.requestTlbFlush();
  return true;
}

/** XCR0 values that the guest's CPUID (leaf 0xd) allows; x87 and SSE where it has none. */
export function allowedXcr0(vcpu: VcpuParts): bigint {
  const leaf = findCpuid(vcpu.cpuid, 0xd, 0);
  return leaf === undefined ? 3n : (BigInt(leaf.edx >>> 0) << 32n) | BigInt(leaf.eax >>> 0);
}

export function setXcr(vcpu: VcpuParts, index: number, value: bigint): boolean {
  if (index !== 0) return false;
  if ((value & 1n) === 0n) return false;
  if ((value & 6n) === 4n) return false;
  if ((value & ~allowedXcr0(vcpu)) !== 0n) return false;
  vcpu.xcr0 = value;
  return true;
}
