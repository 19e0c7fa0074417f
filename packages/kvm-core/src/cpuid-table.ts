import type { KvmCpuidEntry2, StructValue } from "@mkvm/kvm-abi";

export type CpuidEntry = StructValue<(typeof KvmCpuidEntry2)["fields"]>;
export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}
/** CPUID of the hardware. */
export type HardwareCpuid = (leaf: number, subleaf: number) => CpuidResult;

/** KVM_GET_SUPPORTED_CPUID. */
export type SupportedCpuid = (hardware: HardwareCpuid) => CpuidEntry[];

/** Registers that change what CPUID answers. */
export interface CpuidState {
  readonly apicId: number;
  readonly cr4: bigint;
  readonly xcr0: bigint;
  readonly apicEnabled: boolean;
}
/** CPUID as the guest with this table executes it; with Intel's rule for leaves beyond the last. */
export type ExecuteCpuid = (table: readonly CpuidEntry[], state: CpuidState, leaf: number, subleaf: number) => CpuidResult;
/** The entry of a leaf, exactly; undefined when the table has none. */
export type FindCpuid = (table: readonly CpuidEntry[], leaf: number, subleaf: number) => CpuidEntry | undefined;
