/** CPUID of guests. Source: Intel SDM Vol. 2A, CPUID; Linux, Documentation/virt/kvm/x86/cpuid.rst. */
import { CpuidFlag, type KvmCpuidEntry2, type StructValue } from "@mkvm/kvm-abi";
import { Cr4 } from "./arch/registers.ts";

export type CpuidEntry = StructValue<(typeof KvmCpuidEntry2)["fields"]>;
export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}
/** CPUID of the hardware. */
export type HardwareCpuid = (leaf: number, subleaf: number) => CpuidResult;

export const KVM_CPUID_SIGNATURE = 0x4000_0000;
export const KVM_CPUID_FEATURES = 0x4000_0001;
/** Features of leaf 0x40000001 that work. */
export const KvmFeature = {
  CLOCKSOURCE: 1 << 0,
  NOP_IO_DELAY: 1 << 1,
  CLOCKSOURCE2: 1 << 3,
  CLOCKSOURCE_STABLE_BIT: 1 << 24,
} as const;

const bits = (...numbers: number[]) => numbers.reduce((all, bit) => (all | (1 << bit)) >>> 0, 0);

const Leaf1Ecx = { x2apic: bits(21), tscDeadline: bits(24), xsave: bits(26), osxsave: bits(27), hypervisor: bits(31) } as const;
const LEAF1_EDX_APIC = bits(9);
const LEAF7_EBX_TSC_ADJUST = bits(1);
const LEAF7_ECX_PKU = bits(3);
const LEAF7_ECX_OSPKE = bits(4);
/** What the processor has and a guest of this KVM does not: debug store, MONITOR, VMX, SMX, power states, thermal control, ... */
const HIDDEN_LEAF1_ECX = bits(2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18, 27);
const HIDDEN_LEAF1_EDX = bits(18, 21, 22, 29, 31);
/** SGX, MPX, processor trace. */
const HIDDEN_LEAF7_EBX = bits(2, 14, 25);
const HIDDEN_LEAF7_ECX = bits(4);
/** Speculation controls, whose MSRs are not offered. IA32_ARCH_CAPABILITIES is: it spares guests their work-arounds. */
const HIDDEN_LEAF7_EDX = bits(26, 27, 28, 31);
/** SVM, and the performance counters of cores, of the northbridge and of the last cache. */
const HIDDEN_EXT1_ECX = bits(2, 23, 24, 28);

const { KVM_CPUID_FLAG_SIGNIFCANT_INDEX: INDEXED } = CpuidFlag;

/** Bytes of "KVMKVMKVM\0\0\0" as EBX, ECX, EDX have them. */
const SIGNATURE = { ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x0000_004d } as const;

/** KVM_GET_SUPPORTED_CPUID: what the hardware has, less what does not work in a guest, with what KVM emulates. */
export function supportedCpuid(hardware: HardwareCpuid): CpuidEntry[] {
  const table: CpuidEntry[] = [];
  const add = (leaf: number, index: number, flags: number, result: CpuidResult) => {
    const { eax, ebx, ecx, edx } = result;
    table.push({
      function: leaf,
      index,
      flags,
      eax: eax >>> 0,
      ebx: ebx >>> 0,
      ecx: ecx >>> 0,
      edx: edx >>> 0,
      padding: [0, 0, 0],
    });
  };
  const nothing = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  const basic = hardware(0, 0);
  const maxBasic = Math.min(Math.max(basic.eax, 0xd), 0x1f);
  add(0, 0, 0, { ...basic, eax: maxBasic });
  for (let leaf = 1; leaf <= maxBasic; leaf++) {
    const has = leaf <= basic.eax ? hardware(leaf, 0) : nothing;
    switch (leaf) {
      case 1:
        add(leaf, 0, 0, {
          eax: has.eax,
          ebx: has.ebx & 0x0000_ffff, // the APIC id and the number of siblings are user space's to fill in
          ecx: (has.ecx & ~HIDDEN_LEAF1_ECX) | Leaf1Ecx.x2apic | Leaf1Ecx.tscDeadline | Leaf1Ecx.hypervisor,
          edx: has.edx & ~HIDDEN_LEAF1_EDX,
        });
        break;
      case 2:
        add(leaf, 0, 0, has);
        break;
      case 4:
        addIndexed(leaf, (result) => (result.eax & 0x1f) !== 0);
        break;
      case 6:
        add(leaf, 0, 0, { ...nothing, eax: 4 }); // the APIC timer never stops
        break;
      case 7:
        add(leaf, 0, INDEXED, {
          eax: 0,
          ebx: (has.ebx & ~HIDDEN_LEAF7_EBX) | LEAF7_EBX_TSC_ADJUST,
          ecx: has.ecx & ~HIDDEN_LEAF7_ECX,
          edx: has.edx & ~HIDDEN_LEAF7_EDX,
        });
        break;
      case 0xb:
      case 0x1f:
        add(leaf, 0, INDEXED, nothing); // topology is user space's to fill in
        break;
      case 0xd:
        addXsave(has);
        break;
      case 3:
      case 5:
      case 8:
      case 9:
      case 0xa:
        add(leaf, 0, 0, nothing); // serial number, MONITOR, direct cache access, performance counters: not in a guest
        break;
      default:
    }
  }
  add(KVM_CPUID_SIGNATURE, 0, 0, { eax: KVM_CPUID_FEATURES, ...SIGNATURE });
  const { CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT } = KvmFeature;
  add(KVM_CPUID_FEATURES, 0, 0, { ...nothing, eax: CLOCKSOURCE | NOP_IO_DELAY | CLOCKSOURCE2 | CLOCKSOURCE_STABLE_BIT });

  const maxExtended = Math.min(hardware(0x8000_0000, 0).eax >>> 0, 0x8000_0008);
  for (let leaf = 0x8000_0000; leaf <= maxExtended; leaf++) {
    const has = hardware(leaf, 0);
    if (leaf === 0x8000_0000) add(leaf, 0, 0, { ...has, eax: maxExtended });
    else if (leaf === 0x8000_0001) add(leaf, 0, 0, { ...has, ecx: has.ecx & ~HIDDEN_EXT1_ECX });
    else if (leaf === 0x8000_0007) add(leaf, 0, 0, { ...nothing, edx: has.edx & bits(8) });
    else if (leaf === 0x8000_0008) add(leaf, 0, 0, { ...nothing, eax: has.eax & 0xffff });
    else add(leaf, 0, 0, has);
  }
  return table;

  function addIndexed(leaf: number, exists: (result: CpuidResult) => boolean): void {
    for (let index = 0; ; index++) {
      const result = hardware(leaf, index);
      add(leaf, index, INDEXED, result);
      if (!exists(result) || index > 31) return;
    }
  }
  function addXsave(has: CpuidResult): void {
    add(0xd, 0, INDEXED, has);
    if (has.eax === 0) return;
    const one = hardware(0xd, 1);
    add(0xd, 1, INDEXED, { eax: one.eax, ebx: 0, ecx: 0, edx: 0 }); // no supervisor components
    for (let index = 2; index < 32; index++) if (has.eax & (1 << index)) add(0xd, index, INDEXED, hardware(0xd, index));
  }
}

/** What of a vCPU changes what CPUID answers. */
export interface CpuidState {
  readonly cr4: bigint;
  readonly xcr0: bigint;
  /** undefined: in user space, and taken for enabled. */
  readonly lapic: { readonly enabled: boolean } | undefined;
}

/** The entry of a leaf, exactly; undefined when the table has none. */
export function findCpuid(table: readonly CpuidEntry[], leaf: number, subleaf: number): CpuidEntry | undefined {
  for (let index = 0; index < table.length; index++) {
    const entry = table[index]!;
    if (entry.function === leaf >>> 0 && (!(entry.flags & INDEXED) || entry.index === subleaf >>> 0)) return entry;
  }
  return undefined;
}

/** Bytes of an XSAVE area for the components of `xcr0`. */
function xsaveBytes(table: readonly CpuidEntry[], xcr0: bigint, compacted: boolean): number {
  let end = 576;
  for (let index = 2; index < 63; index++) {
    if (!(xcr0 & (1n << BigInt(index)))) continue;
    const component = findCpuid(table, 0xd, index);
    if (!component) continue;
    end = compacted ? end + component.eax : Math.max(end, component.ebx + component.eax);
  }
  return end;
}

/** The answer of a leaf that is beyond the last of its range: Intel's processors give that of the last basic leaf. */
function beyondLast(table: readonly CpuidEntry[], leaf: number, subleaf: number): CpuidEntry | undefined {
  const basic = findCpuid(table, 0, 0);
  const isIntel = basic?.ebx === 0x756e_6547; // "Genu"
  if (!basic || !isIntel) return undefined;
  const base = leaf >= 0x4000_0000 && leaf < 0x5000_0000 ? leaf & 0xffff_ff00 : leaf & 0xc000_0000;
  const range = findCpuid(table, base >>> 0, 0);
  if (range && leaf <= range.eax) return undefined;
  return findCpuid(table, basic.eax, subleaf);
}

const NOTHING: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
/** The last answer that was not an entry as it stands. */
const adjusted: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/** CPUID as the guest with this table executes it; leaf and subleaf unsigned. The result is shared: copy what is to be kept. */
export function executeCpuid(
  table: readonly CpuidEntry[],
  state: CpuidState,
  leaf: number,
  subleaf: number,
): Readonly<CpuidResult> {
  const entry = findCpuid(table, leaf, subleaf);
  if (!entry && (leaf === 0xb || leaf === 0x1f)) {
    // Beyond the last level: the level number comes back, and the x2APIC id is that of level 0
    const first = findCpuid(table, leaf, 0);
    if (first) return { eax: 0, ebx: 0, ecx: subleaf & 0xff, edx: first.edx };
  }
  const from = entry ?? beyondLast(table, leaf, subleaf);
  if (!from) return NOTHING;
  let { ebx, ecx, edx } = from;
  switch (from.function) {
    case 1:
      // Without XSAVE CR4.OSXSAVE cannot be set
      if (ecx & Leaf1Ecx.xsave) ecx = (ecx & ~Leaf1Ecx.osxsave) | (state.cr4 & Cr4.OSXSAVE ? Leaf1Ecx.osxsave : 0);
      if (state.lapic?.enabled === false) edx &= ~LEAF1_EDX_APIC;
      break;
    case 7:
      if (from.index === 0 && ecx & LEAF7_ECX_PKU) ecx = (ecx & ~LEAF7_ECX_OSPKE) | (state.cr4 & Cr4.PKE ? LEAF7_ECX_OSPKE : 0);
      break;
    case 0xd:
      if (from.index === 0 && from.eax !== 0) ebx = xsaveBytes(table, state.xcr0, false);
      else if (from.index === 1 && from.eax & bits(1, 3)) ebx = xsaveBytes(table, state.xcr0, true);
      break;
    default:
      return from;
  }
  adjusted.eax = from.eax;
  adjusted.ebx = ebx >>> 0;
  adjusted.ecx = ecx >>> 0;
  adjusted.edx = edx >>> 0;
  return adjusted;
}
