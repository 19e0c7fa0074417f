/** MSRs whose whole state is in the vCPU: those of the VMCS, the local APIC, the TSC and kvmclock are the module's own. */
import { Msr } from "./arch/msr-index.ts";

interface Row {
  readonly index: number;
  readonly reset: bigint;
  /** A guest's write: "keep" stores it, "drop" accepts and forgets it, "refuse" is #GP. Default: refuse all. */
  readonly write?: (value: bigint) => "keep" | "drop" | "refuse";
  /** User space may set a value that a guest cannot. */
  readonly hostSets?: boolean;
  /** In KVM_GET_MSR_INDEX_LIST. */
  readonly listed?: boolean;
}

const MTRR_TYPES: ReadonlySet<number> = new Set([0, 1, 4, 5, 6]);
const VARIABLE_MTRRS = 8;
const MCE_BANKS = 10;
const MISC_ENABLE_RESET = 0x1801n; // fast strings; no BTS, no PEBS

const isMtrrType = (value: bigint) => MTRR_TYPES.has(Number(value & 0xffn));
const all8AreTypes = (value: bigint) => {
  for (let shift = 0n; shift < 64n; shift += 8n) if (!isMtrrType(value >> shift)) return false;
  return true;
};
const keepIf = (test: (value: bigint) => boolean) => (value: bigint) => (test(value) ? "keep" : "refuse") as "keep" | "refuse";
/** HWCR, as Linux has it for guests: cache and MONITOR disables are taken and forgotten, McStatusWrEn and TscFreqSel kept. */
const HWCR_FORGOTTEN = 0x148n;
const HWCR_KEPT = (1n << 18n) | (1n << 24n);
const writeHwcr = (value: bigint) => {
  if ((value & ~(HWCR_FORGOTTEN | HWCR_KEPT)) !== 0n) return "refuse";
  return (value & HWCR_FORGOTTEN) === 0n ? "keep" : "drop";
};
const zeroOnly = (value: bigint) => (value === 0n ? "drop" : "refuse") as "drop" | "refuse";

function rows(archCapabilities = 0n): Row[] {
  const table: Row[] = [
    { index: Msr.IA32_P5_MC_ADDR, reset: 0n },
    { index: Msr.IA32_P5_MC_TYPE, reset: 0n },
    { index: Msr.IA32_PLATFORM_ID, reset: 0n },
    { index: Msr.EBL_CR_POWERON, reset: 0n },
    { index: 0x34, reset: 0n, listed: true }, // MSR_SMI_COUNT
    { index: Msr.IA32_FEATURE_CONTROL, reset: 0n, write: keepIf((value) => value >> 1n === 0n), listed: true },
    { index: Msr.IA32_BIOS_UPDT_TRIG, reset: 0n, write: () => "drop" },
    { index: Msr.IA32_BIOS_SIGN_ID, reset: 1n << 32n, write: () => "drop", hostSets: true, listed: true },
    { index: 0xc1, reset: 0n, write: zeroOnly }, // P6 performance counters and their event selects: off
    { index: 0xc2, reset: 0n, write: zeroOnly },
    { index: 0x186, reset: 0n, write: zeroOnly },
    { index: 0x187, reset: 0n, write: zeroOnly },
    { index: Msr.MSR_FSB_FREQ, reset: 3n },
    { index: Msr.MSR_PLATFORM_INFO, reset: 0n, hostSets: true, listed: true },
    { index: Msr.IA32_MTRRCAP, reset: 0x500n | BigInt(VARIABLE_MTRRS) }, // fixed ranges, write-combining
    { index: Msr.IA32_ARCH_CAPABILITIES, reset: archCapabilities, hostSets: true, listed: true },
    // IA32_XSS: there are no supervisor components
    { index: Msr.IA32_XSS, reset: 0n, write: zeroOnly, listed: true },
    { index: Msr.MISC_FEATURES_ENABLES, reset: 0n, write: zeroOnly, listed: true },
    { index: Msr.IA32_MCG_CAP, reset: BigInt(MCE_BANKS), hostSets: true },
    { index: Msr.IA32_MCG_STATUS, reset: 0n, write: keepIf((value) => value >> 3n === 0n), listed: true },
    { index: Msr.IA32_PERF_STATUS, reset: 1000n | (4n << 40n) },
    { index: Msr.IA32_PERF_CTL, reset: 0n, write: zeroOnly },
    { index: Msr.IA32_MISC_ENABLE, reset: MISC_ENABLE_RESET, write: () => "keep", listed: true },
    { index: Msr.MSR_LASTBRANCHFROMIP, reset: 0n },
    { index: Msr.MSR_LASTBRANCHTOIP, reset: 0n },
    { index: Msr.MSR_LASTINTFROMIP, reset: 0n },
    { index: Msr.MSR_LASTINTTOIP, reset: 0n },
    { index: Msr.K7_HWCR, reset: 0n, write: writeHwcr, listed: true },
    { index: Msr.AMD64_NB_CFG, reset: 0n, write: () => "drop" },
    // Of AMD's chipset and work-around registers, which kernels read and set unasked: zero, and writes as Linux takes them
    { index: 0xc001_0010, reset: 0n }, // SYSCFG
    { index: 0xc001_0055, reset: 0n }, // interrupt pending
    { index: 0xc001_0058, reset: 0n, write: zeroOnly }, // MMIO configuration base
    { index: 0xc001_0112, reset: 0n }, // TSEG
    { index: 0xc001_0113, reset: 0n },
    { index: 0xc001_1022, reset: 0n, write: () => "drop" }, // DC_CFG
    { index: 0xc001_1023, reset: 0n, write: () => "drop" }, // TW_CFG
    { index: 0xc001_102a, reset: 0n, write: () => "drop" }, // BU_CFG2
    { index: 0xc001_102c, reset: 0n, write: () => "drop" }, // EX_CFG
    { index: 0x1fc, reset: 0n, write: () => "keep" }, // MSR_POWER_CTL
    { index: 0x606, reset: 0n }, // RAPL: unit, package, DRAM, cores
    { index: 0x611, reset: 0n },
    { index: 0x619, reset: 0n },
    { index: 0x639, reset: 0n },
    {
      index: Msr.IA32_MTRR_DEF_TYPE,
      reset: 0n,
      write: keepIf((value) => !(value & ~0xcffn) && isMtrrType(value)),
      listed: true,
    },
  ];
  for (let i = 0; i < VARIABLE_MTRRS; i++) {
    table.push({
      index: Msr.IA32_MTRR_PHYSBASE0 + 2 * i,
      reset: 0n,
      write: keepIf((value) => isMtrrType(value) && !(value & 0xf00n) && value >> 52n === 0n),
      listed: true,
    });
    table.push({
      index: Msr.IA32_MTRR_PHYSBASE0 + 2 * i + 1,
      reset: 0n,
      write: keepIf((value) => !(value & 0x7ffn) && value >> 52n === 0n),
      listed: true,
    });
  }
  const fixed: number[] = [Msr.IA32_MTRR_FIX64K_00000, Msr.IA32_MTRR_FIX16K_80000, Msr.IA32_MTRR_FIX16K_A0000];
  for (let index: number = Msr.IA32_MTRR_FIX4K_C0000; index <= Msr.IA32_MTRR_FIX4K_F8000; index++) fixed.push(index);
  for (const index of fixed) table.push({ index, reset: 0n, write: keepIf(all8AreTypes), listed: true });
  for (let bank = 0; bank < MCE_BANKS; bank++) {
    const at = Msr.IA32_MC0_CTL + 4 * bank;
    const allOrNone = (value: bigint) => value === 0n || value === 0xffff_ffff_ffff_ffffn;
    table.push({ index: at, reset: 0xffff_ffff_ffff_ffffn, write: keepIf(allOrNone), hostSets: true });
    table.push({ index: at + 1, reset: 0n, write: keepIf((value) => value === 0n), hostSets: true }); // status
    table.push({ index: at + 2, reset: 0n, write: keepIf((value) => value === 0n), hostSets: true }); // address
    table.push({ index: at + 3, reset: 0n, write: keepIf((value) => value === 0n), hostSets: true }); // miscellaneous
  }
  return table;
}

/** Of KVM_GET_MSR_INDEX_LIST, ascending: those of the store. A module adds those that it keeps elsewhere. */
export const MSR_INDEX_LIST: readonly number[] = rows()
  .filter((row) => row.listed)
  .map((row) => row.index)
  .sort((a, b) => a - b);

export interface MsrStore {
  /** undefined: no such MSR here. */
  read(index: number): bigint | undefined;
  /** "unknown": not in this store; "refused": #GP. `byHost`: KVM_SET_MSRS, which may set some that a guest only reads. */
  write(index: number, value: bigint, byHost: boolean): "ok" | "unknown" | "refused";
  /** Ascending index, all that are not as after reset. */
  save(): { index: number; data: bigint }[];
  restore(values: readonly { index: number; data: bigint }[]): string | undefined;
  reset(): void;
}

/** `archCapabilities`: the hardware's IA32_ARCH_CAPABILITIES, which tells guests what they need not work around. */
export function createMsrStore(options: { archCapabilities?: bigint | undefined } = {}): MsrStore {
  const byIndex = new Map(rows(options.archCapabilities).map((row) => [row.index, row]));
  const changed = new Map<number, bigint>();
  const put = (row: Row, value: bigint) => {
    if (value === row.reset) changed.delete(row.index);
    else changed.set(row.index, value);
  };
  return {
    read(index) {
      const row = byIndex.get(index);
      return row && (changed.get(index) ?? row.reset);
    },
    write(index, value, byHost) {
      const row = byIndex.get(index);
      if (!row) return "unknown";
      if (byHost && (row.hostSets || value === (changed.get(index) ?? row.reset))) {
        put(row, value);
        return "ok";
      }
      const verdict = row.write?.(value) ?? "refuse";
      if (verdict === "refuse") return "refused";
      if (verdict === "keep") put(row, value);
      return "ok";
    },
    save: () => [...changed].map(([index, data]) => ({ index, data })).sort((a, b) => a.index - b.index),
    restore(values) {
      for (const { index } of values) if (!byIndex.has(index)) return `MSR 0x${index.toString(16)} is not known here`;
      changed.clear();
      for (const { index, data } of values) put(byIndex.get(index)!, data);
      return undefined;
    },
    reset: () => changed.clear(),
  };
}
