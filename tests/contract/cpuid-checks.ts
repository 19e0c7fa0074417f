/**
 * What follows the guest's CPUID: without their bit instructions are undefined, as far as the processor lets a KVM see to it, and MSRs are
 * not there.
 */
import assert from "node:assert/strict";
import { Ioctl, KvmCpuid2, KvmCpuidEntry2, KvmRegs, type KvmSegment, KvmSregs, KvmXcrs, type StructValue } from "@mkvm/kvm-abi";
import { BenchVm, type Calls, CODE, ok, STACK } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const HLT = 0xf4;
const UD = 6;
const GP = 13;
const TABLES = 0x1_0000;
const IDT = 0x1_4000;
const GDT = 0x1_5000;
const HANDLERS = 0x1_6000;
/** 64 bytes each, at an address that is a multiple of 64: what INVPCID reads and XSAVES writes. */
const DATA = 0x1_8000;
const X87 = 1n;
const [PAE, OSXSAVE] = [0x20n, 1n << 18n];
const GENUINE_INTEL = 0x756e_6547;

/** Leaf, subleaf, register and bit. */
type FeatureBit = readonly [leaf: number, subleaf: number, register: "eax" | "ebx" | "ecx" | "edx", bit: number];
const RDTSCP: FeatureBit = [0x8000_0001, 0, "edx", 27];
const RDPID: FeatureBit = [7, 0, "ecx", 22];
const INVPCID: FeatureBit = [7, 0, "ebx", 10];
const XSAVES: FeatureBit = [0xd, 1, "eax", 3];
const RDRAND: FeatureBit = [1, 0, "ecx", 30];
const RDSEED: FeatureBit = [7, 0, "ebx", 18];
const ARCH_CAPABILITIES: FeatureBit = [7, 0, "edx", 29];

type Entry = StructValue<(typeof KvmCpuidEntry2)["fields"]>;

async function supported(calls: Calls, vm: BenchVm): Promise<Entry[]> {
  const table = new Uint8Array(KvmCpuid2.tailOffset(128));
  KvmCpuid2.set(table, "nent", 128);
  ok(await calls.call(vm.systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table));
  const result = calls.result(table.length);
  return Array.from({ length: KvmCpuid2.get(result, "nent") }, (_, i) => KvmCpuidEntry2.read(result, KvmCpuid2.tailOffset(i)));
}

const hasBit = (table: readonly Entry[], [leaf, subleaf, register, bit]: FeatureBit): boolean =>
  table.some((entry) => entry.function === leaf && entry.index === subleaf && ((entry[register] >>> bit) & 1) !== 0);

function without(table: readonly Entry[], bits: readonly FeatureBit[]): Entry[] {
  const result = table.map((entry) => ({ ...entry }));
  for (const [leaf, subleaf, register, bit] of bits) {
    assert(hasBit(result, [leaf, subleaf, register, bit]), `the processor lacks bit ${bit} of leaf ${leaf}`);
    const entry = result.find((each) => each.function === leaf && each.index === subleaf)!;
    entry[register] = (entry[register] & ~(1 << bit)) >>> 0;
  }
  return result;
}

const segment = (selector: number, type: number, l: number): StructValue<(typeof KvmSegment)["fields"]> => ({
  ...{ base: 0n, limit: 0xffff_ffff, selector, type, present: 1, dpl: 0, db: 1 - l, s: 1, l, g: 1 },
  ...{ avl: 0, unusable: 0, padding: 0 },
});

/**
 * Executes the instruction in 64-bit mode at CPL 0, in a VM of its own whose CPUID is without the bits: undefined, or the vector of the
 * exception that it was. RBX points to 4 KiB of zeros, RAX is 2.
 */
async function execute(calls: Calls, code: readonly number[], bits: readonly FeatureBit[]): Promise<number | undefined> {
  const vm = await BenchVm.create(calls);
  const entries = without(await supported(calls, vm), bits);
  const table = new Uint8Array(KvmCpuid2.tailOffset(entries.length));
  KvmCpuid2.set(table, "nent", entries.length);
  entries.forEach((entry, i) => {
    KvmCpuidEntry2.write(table, entry, KvmCpuid2.tailOffset(i));
  });
  ok(await calls.call(vm.vcpuFd, Ioctl.KVM_SET_CPUID2, table));
  const word = (at: number, value: bigint): void => calls.sys.memory.view.setBigUint64(vm.ram + at, value, true);
  word(TABLES, BigInt(TABLES + 0x1000) | 3n);
  word(TABLES + 0x1000, BigInt(TABLES + 0x2000) | 3n);
  word(TABLES + 0x2000, 0x83n);
  word(GDT + 8, 0x0020_9b00_0000_0000n);
  for (let vector = 0; vector < 32; vector++) {
    const handler = HANDLERS + vector * 16;
    word(IDT + vector * 16, BigInt(handler & 0xffff) | (8n << 16n) | (0x8e00n << 32n) | (BigInt(handler >> 16) << 48n));
    vm.put(handler, 0xb0, vector, 0xe6, 0x10, HLT); // mov al, vector; out 0x10, al; hlt
  }
  vm.code(...code, 0xb0, 0xff, 0xe6, 0x10, HLT);
  const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
  const data = segment(0x10, 3, 0);
  Object.assign(sregs, { cs: segment(8, 11, 1), ds: data, es: data, ss: data, fs: data, gs: data });
  Object.assign(sregs, { gdt: { base: BigInt(GDT), limit: 0x17 }, idt: { base: BigInt(IDT), limit: 0x1ff } });
  Object.assign(sregs, { cr0: 0x8001_0033n, cr3: BigInt(TABLES), cr4: PAE | OSXSAVE, efer: 0x500n });
  ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
  const xcrs = { nr_xcrs: 1, xcrs: [{ xcr: 0, reserved: 0, value: X87 }] };
  ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_XCRS, KvmXcrs, xcrs));
  const registers = { rip: BigInt(CODE), rsp: BigInt(STACK), rflags: 2n, rax: 2n, rbx: BigInt(DATA) };
  ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, registers));
  await vm.exit("KVM_EXIT_IO");
  const said = Number((await vm.regs()).rax & 0xffn);
  return said === 0xff ? undefined : said;
}

interface Case {
  readonly name: string;
  readonly code: readonly number[];
  readonly bits: readonly FeatureBit[];
  /** VMX can take it from the guest, SVM can. */
  readonly takenBy: { readonly vmx: boolean; readonly svm: boolean };
}
const RDTSCP_CODE = [0x0f, 0x01, 0xf9];
const RDPID_CODE = [0xf3, 0x0f, 0xc7, 0xf8];
// biome-ignore format: a case a line
const CASES: readonly Case[] = [
  { name: "RDTSCP", code: RDTSCP_CODE, bits: [RDTSCP, RDPID], takenBy: { vmx: true, svm: true } },
  // Under VMX the two have one control
  { name: "RDTSCP, with RDPID", code: RDTSCP_CODE, bits: [RDTSCP], takenBy: { vmx: false, svm: true } },
  { name: "RDPID", code: RDPID_CODE, bits: [RDTSCP, RDPID], takenBy: { vmx: true, svm: false } },
  { name: "RDPID, with RDTSCP", code: RDPID_CODE, bits: [RDPID], takenBy: { vmx: false, svm: false } },
  { name: "INVPCID", code: [0x66, 0x0f, 0x38, 0x82, 0x03], bits: [INVPCID], takenBy: { vmx: true, svm: true } }, // invpcid rax, [rbx]
  { name: "XSAVES", code: [0x0f, 0xc7, 0x2b], bits: [XSAVES], takenBy: { vmx: true, svm: false } }, // xsaves [rbx]
  // xsavec [rbx]; xrstors [rbx]
  { name: "XRSTORS", code: [0x0f, 0xc7, 0x23, 0x0f, 0xc7, 0x1b], bits: [XSAVES], takenBy: { vmx: true, svm: false } },
  { name: "RDRAND", code: [0x0f, 0xc7, 0xf0], bits: [RDRAND], takenBy: { vmx: true, svm: false } },
  { name: "RDSEED", code: [0x0f, 0xc7, 0xf8], bits: [RDSEED], takenBy: { vmx: true, svm: false } },
];

/** MSRs that come with a feature: their number, and the bits of those that each is enough. */
const MSRS: readonly (readonly [name: string, index: number, bits: readonly FeatureBit[]])[] = [
  ["IA32_TSC_AUX", 0xc000_0103, [RDTSCP, RDPID]],
  ["IA32_XSS", 0xda0, [XSAVES]],
  ["IA32_ARCH_CAPABILITIES", 0x10a, [ARCH_CAPABILITIES]],
];
/** mov ecx, index; rdmsr */
const rdmsr = (index: number): number[] => [0xb9, ...[0, 8, 16, 24].map((shift) => (index >>> shift) & 0xff), 0x0f, 0x32];

const msrChecks = MSRS.map(
  ([name, index, bits]): Check => ({
    name: `without its CPUID bit an MSR is not there: ${name}`,
    async run(calls) {
      const vm = await BenchVm.create(calls);
      const table = await supported(calls, vm);
      if (!bits.some((bit) => hasBit(table, bit))) {
        // As IA32_ARCH_CAPABILITIES on AMD's processors
        assert.equal(await execute(calls, rdmsr(index), []), GP);
        return;
      }
      assert.equal(await execute(calls, rdmsr(index), []), undefined);
      for (const bit of bits) {
        const others = bits.filter((each) => each !== bit);
        assert.equal(await execute(calls, rdmsr(index), others), undefined);
      }
      assert.equal(await execute(calls, rdmsr(index), bits), GP);
    },
  }),
);

const instructionChecks = CASES.map(
  ({ name, code, bits, takenBy }): Check => ({
    name: `without its CPUID bit an instruction is undefined: ${name}`,
    async run(calls) {
      const vm = await BenchVm.create(calls);
      const isIntel = (await supported(calls, vm))[0]?.ebx === GENUINE_INTEL;
      assert.equal(await execute(calls, code, []), undefined);
      assert.equal(await execute(calls, code, bits), (isIntel ? takenBy.vmx : takenBy.svm) ? UD : undefined);
    },
  }),
);

export const cpuidChecks: readonly Check[] = [...instructionChecks, ...msrChecks];
