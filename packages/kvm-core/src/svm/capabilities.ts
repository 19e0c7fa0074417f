/** What a processor's SVM offers. Source: AMD64 APM Vol. 3, CPUID Fn8000_000A SVM Features. */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { Cr4 } from "../arch/registers.ts";

export interface SvmCapabilities {
  /** TLB_CONTROL can flush one guest's translations alone. */
  readonly flushByAsid: boolean;
  /** DebugCtl is the guest's own, and with it single steps on branches. */
  readonly branchRecords: boolean;
  /** The VMCB can say which of its fields have not changed. */
  readonly cleanBits: boolean;
  /** Of nested page tables: they have the paging mode of the host. */
  readonly nestedLevels: 4 | 5;
}

const NESTED_PAGING = 1 << 0;
const BRANCH_RECORDS = 1 << 1;
const NEXT_RIP = 1 << 3;
const CLEAN_BITS = 1 << 5;
const FLUSH_BY_ASID = 1 << 6;
const DECODE_ASSISTS = 1 << 7;

/** Reads CPUID; a string names what is missing. */
export function probeSvm(cpu: LogicalCpu): SvmCapabilities | string {
  if ((cpu.cpuid(0x8000_0001, 0).ecx & (1 << 2)) === 0) return "the processor has no SVM (CPUID Fn8000_0001_ECX[SVM])";
  const { edx } = cpu.cpuid(0x8000_000a, 0);
  if ((edx & NESTED_PAGING) === 0) return "nested paging is missing (CPUID Fn8000_000A_EDX[NP])";
  if ((edx & NEXT_RIP) === 0) return "the next RIP at #VMEXIT is missing (CPUID Fn8000_000A_EDX[NRIPS])";
  if ((edx & DECODE_ASSISTS) === 0) return "decode assists are missing (CPUID Fn8000_000A_EDX[DecodeAssists])";
  return {
    flushByAsid: (edx & FLUSH_BY_ASID) !== 0,
    branchRecords: (edx & BRANCH_RECORDS) !== 0,
    cleanBits: (edx & CLEAN_BITS) !== 0,
    nestedLevels: (cpu.cr4 & Cr4.LA57) !== 0n ? 5 : 4,
  };
}
