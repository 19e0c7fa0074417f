/**
 * The model-specific registers that the CPU itself holds (Intel SDM Vol. 4, Model-Specific Registers). What guests read and
 * write is mostly decided by their hypervisor; this is what lies underneath, and what entry and exit lists load and store.
 */
import type { Cpu, CpuModel } from "../cpu.ts";
import { FS, GS, segmentOffset, state } from "../cpu-state.ts";
import { isLinearAddress } from "./linear-address.ts";
import { writeEfer } from "./registers.ts";
import { updateSegment } from "./segmentation.ts";

export const Msr = {
  TSC: 0x10,
  APIC_BASE: 0x1b,
  FEATURE_CONTROL: 0x3a,
  BIOS_SIGN_ID: 0x8b,
  MTRRCAP: 0xfe,
  ARCH_CAPABILITIES: 0x10a,
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MCG_CAP: 0x179,
  MCG_STATUS: 0x17a,
  MISC_ENABLE: 0x1a0,
  DEBUGCTL: 0x1d9,
  LAST_BRANCH_FROM: 0x1db,
  LAST_BRANCH_TO: 0x1dc,
  LAST_EXCEPTION_FROM: 0x1dd,
  LAST_EXCEPTION_TO: 0x1de,
  PAT: 0x277,
  MTRR_DEF_TYPE: 0x2ff,
  XSS: 0xda0,
  EFER: 0xc000_0080,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  FMASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
  HWCR: 0xc001_0015,
  NB_CFG: 0xc001_001f,
  DE_CFG: 0xc001_1029,
} as const;

/** Registers that are a field of the state block and nothing more: field, and what may be written. */
const fields = new Map<number, { offset: number; accepts: (value: bigint, model: CpuModel) => boolean }>();
const anyValue = (): boolean => true;
const anyLinearAddress = (value: bigint, model: CpuModel): boolean => isLinearAddress(model, value);
const upTo32Bits = (value: bigint): boolean => value >> 32n === 0n;
/** Memory types UC, WC, WT, WP, WB and UC- in each of eight bytes. */
function isPat(value: bigint): boolean {
  for (let byte = 0n; byte < 64n; byte += 8n) {
    if (![0n, 1n, 4n, 5n, 6n, 7n].includes((value >> byte) & 0xffn)) return false;
  }
  return true;
}
/**
 * LBR and BTF. Intel's processors have branch records in stacks that differ from model to model, and this machine has none; its performance
 * counters come with bits that freeze them, and branch records, on their interrupt.
 */
const DEBUGCTL_WRITABLE = { intel: 0x1802n, amd: 3n } as const;
fields.set(Msr.DEBUGCTL, {
  offset: state.debugctl,
  accepts: (value, { vendor }) => (value & ~DEBUGCTL_WRITABLE[vendor]) === 0n,
});
/** AMD's branch records, which are read only. */
const branchRecords = new Map<number, number>([
  [Msr.LAST_BRANCH_FROM, state.branchFrom],
  [Msr.LAST_BRANCH_TO, state.branchTo],
  [Msr.LAST_EXCEPTION_FROM, state.exceptionFrom],
  [Msr.LAST_EXCEPTION_TO, state.exceptionTo],
]);
fields.set(Msr.APIC_BASE, { offset: state.apicBase, accepts: (value) => (value & ~0xf_ffff_ffff_fd00n) === 0n });
fields.set(Msr.SYSENTER_CS, { offset: state.sysenterCs, accepts: upTo32Bits });
fields.set(Msr.SYSENTER_ESP, { offset: state.sysenterEsp, accepts: anyLinearAddress });
fields.set(Msr.SYSENTER_EIP, { offset: state.sysenterEip, accepts: anyLinearAddress });
fields.set(Msr.MISC_ENABLE, { offset: state.miscEnable, accepts: anyValue });
fields.set(Msr.PAT, { offset: state.pat, accepts: isPat });
fields.set(Msr.STAR, { offset: state.star, accepts: anyValue });
fields.set(Msr.LSTAR, { offset: state.lstar, accepts: anyLinearAddress });
fields.set(Msr.CSTAR, { offset: state.cstar, accepts: anyLinearAddress });
fields.set(Msr.FMASK, { offset: state.fmask, accepts: upTo32Bits });
fields.set(Msr.KERNEL_GS_BASE, { offset: state.kernelGsBase, accepts: anyLinearAddress });
fields.set(Msr.TSC_AUX, { offset: state.tscAux, accepts: upTo32Bits });

/** Locked, VMX outside SMX. */
const FEATURE_CONTROL_VALUE = 5n;
/** Enabled, write-back everywhere: there are no ranges to set. */
const MTRR_DEF_TYPE_VALUE = 0x806n;
/**
 * The side channels that this machine has not: RDCL_NO, IBRS_ALL off, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
 * SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
 */
export const ARCH_CAPABILITIES_VALUE = [0, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27].reduce(
  (all, bit) => all | (1n << BigInt(bit)),
  0n,
);

/** Registers that always read the same; writing the same value is allowed, nothing else. */
const constants = new Map<number, bigint>([
  [Msr.FEATURE_CONTROL, FEATURE_CONTROL_VALUE],
  [Msr.BIOS_SIGN_ID, 0x1n << 32n],
  [Msr.MTRRCAP, 0n],
  [Msr.MTRR_DEF_TYPE, MTRR_DEF_TYPE_VALUE],
  [Msr.ARCH_CAPABILITIES, ARCH_CAPABILITIES_VALUE],
  [Msr.MCG_CAP, 0n],
  [Msr.MCG_STATUS, 0n],
  // There are no supervisor state components
  [Msr.XSS, 0n],
]);
/** LFENCE serialises. */
const DE_CFG_VALUE = 2n;
/** The same for AMD's processors, which lack Intel's own. Source: AMD64 APM Vol. 2, MSR Cross-Reference. */
const amdConstants = new Map<number, bigint>([
  ...[...constants].filter(([index]) => index !== Msr.FEATURE_CONTROL && index !== Msr.ARCH_CAPABILITIES),
  [Msr.HWCR, 0n],
  [Msr.NB_CFG, 0n],
  [Msr.DE_CFG, DE_CFG_VALUE],
]);
const constantsOf = { intel: constants, amd: amdConstants } as const;
/** Value of a register that is the same in root mode and in guests; undefined: not one of these. */
export const constantMsr = (index: number, vendor: CpuModel["vendor"]): bigint | undefined => constantsOf[vendor].get(index);
const isMissing = (cpu: Cpu, index: number): boolean => cpu.model.vendor === "amd" && index === Msr.MISC_ENABLE;
const writableConstants: readonly number[] = [Msr.BIOS_SIGN_ID, Msr.MTRR_DEF_TYPE, Msr.MCG_STATUS, Msr.XSS];

/** undefined: #GP(0). */
export function readMsr(cpu: Cpu, index: number): bigint | undefined {
  const field = fields.get(index);
  if (field !== undefined) return isMissing(cpu, index) ? undefined : cpu.get64(field.offset);
  switch (index) {
    case Msr.TSC:
      return cpu.guest.guestTsc().big;
    case Msr.EFER:
      return cpu.get64(state.efer);
    case Msr.FS_BASE:
      return cpu.get64(segmentOffset(FS));
    case Msr.GS_BASE:
      return cpu.get64(segmentOffset(GS));
    default: {
      const record = cpu.model.vendor === "amd" ? branchRecords.get(index) : undefined;
      if (record !== undefined) return cpu.get64(record);
      return constantMsr(index, cpu.model.vendor) ?? cpu.guest.counters?.readMsr(index);
    }
  }
}

/** False: #GP(0). */
export function writeMsr(cpu: Cpu, index: number, value: bigint): boolean {
  const field = fields.get(index);
  if (field !== undefined) {
    if (isMissing(cpu, index) || !field.accepts(value, cpu.model)) return false;
    cpu.set64(field.offset, value);
    // Branches are recorded in single steps
    if (index === Msr.DEBUGCTL && (value & 1n) !== 0n) cpu.requestStop();
    return true;
  }
  switch (index) {
    case Msr.EFER:
      return writeEfer(cpu, value);
    case Msr.FS_BASE:
    case Msr.GS_BASE: {
      if (!isLinearAddress(cpu.model, value)) return false;
      const segment = index === Msr.FS_BASE ? FS : GS;
      cpu.set64(segmentOffset(segment), value);
      updateSegment(cpu, segment);
      return true;
    }
    default:
      if (writableConstants.includes(index)) return constantMsr(index, cpu.model.vendor) === value || value === 0n;
      return cpu.guest.counters?.writeMsr(index, value) ?? false;
  }
}
