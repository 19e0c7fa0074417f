import type { LogicalCpu } from "@mkvm/hw-x86";

/** A logical CPU with SVM that records what is done to it. */
export interface FakeSvmCpu extends LogicalCpu {
  readonly log: string[];
  readonly msrs: Map<number, bigint>;
  /** CPUID leaves that are not zero. */
  readonly leaves: Map<number, { eax: number; ebx: number; ecx: number; edx: number }>;
}

export const EFER = 0xc000_0080;
export const TSC_RATIO = 0xc000_0104;
export const VM_CR = 0xc001_0114;
export const VM_HSAVE_PA = 0xc001_0117;

export function fakeSvmCpu(id: number, asids = 8): FakeSvmCpu {
  const log: string[] = [];
  const msrs = new Map<number, bigint>([
    [EFER, 0xd01n],
    [TSC_RATIO, 1n << 32n],
    [VM_CR, 0n],
    [VM_HSAVE_PA, 0n],
  ]);
  const leaf = (eax: number, ebx: number, ecx: number) => ({ eax, ebx, ecx, edx: 0 });
  const leaves = new Map([
    [0x8000_0000, leaf(0x8000_001f, 0, 0)],
    [0x8000_0001, leaf(0, 0, 4)],
    [0x8000_000a, leaf(1, asids, 0)],
  ]);
  const cpu = {
    id,
    vendor: "amd",
    log,
    msrs,
    leaves,
    cpuid: (index: number) => leaves.get(index) ?? leaf(0, 0, 0),
    rdmsr: (index: number) => msrs.get(index),
    wrmsr(index: number, value: bigint) {
      if (!msrs.has(index) || value === 0xbadn) return false;
      log.push(`wrmsr 0x${index.toString(16)} 0x${value.toString(16)}`);
      msrs.set(index, value);
      return true;
    },
    svm: {
      stgi() {
        log.push("stgi");
        return 0;
      },
    },
  };
  return cpu as unknown as FakeSvmCpu;
}
