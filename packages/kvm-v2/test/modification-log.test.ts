/** Dirty logs by the processor's log of modified pages: the same bitmaps as by write protection, with fewer exits, at the same time. */
import { Ioctl, KvmDirtyLog, KvmUserspaceMemoryRegion } from "@mkvm/kvm-abi";
import { VcpuStat } from "@mkvm/kvm-core";
import { describe, expect, test } from "vitest";
import { InThreadKernel } from "../../kvm-v1/test/in-thread-kernel.ts";
import { TestVm } from "../../kvm-v1/test/test-vm.ts";
import v2 from "../src/index.ts";
import type { Vcpu } from "../src/vcpu.ts";

const LOGGED = 1;
const OUT = [0xe6, 0x10];
/** mov edi, first; L: mov [rdi], al; add rdi, step; cmp rdi, end; jb L; out */
const little = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
const writes = (first: number, step: number, end: number): number[] => [
  0xbf,
  ...little(first),
  ...[0x88, 0x07, 0x48, 0x81, 0xc7, ...little(step)],
  ...[0x48, 0x81, 0xff, ...little(end), 0x72, 0xee],
  ...OUT,
];
const PROGRAM = [
  ...writes(0x10_0000, 0x1000, 0x3f_f000),
  ...writes(0x10_0000, 0x1000, 0x3f_f000),
  ...writes(0x20_0000, 0x1000, 0x20_4000),
];

interface Round {
  readonly pages: readonly number[];
  readonly tsc: number;
}

/** Runs the program with a look at the log after each part. `late`: logging begins behind the first part. */
async function run(
  parameters: Record<string, boolean>,
  late: boolean,
): Promise<{ rounds: Round[]; exits: number[]; kernel: InThreadKernel }> {
  const kernel = new InThreadKernel("intel");
  const vm = new TestVm(kernel, kernel.load("kvm", v2 as never, parameters), { flags: late ? 0 : LOGGED });
  vm.load(PROGRAM);
  vm.startLong();
  const bitmap = kernel.mmap(0x1000);
  const { words } = (kernel.file(vm.vcpu).privateData as Vcpu).statistics;
  const rounds: Round[] = [];
  for (let part = 0; part < 3; part++) {
    expect(await vm.enter(), kernel.log.join("\n")).toBe("KVM_EXIT_IO");
    if (late && part === 0) {
      const region = { memory_size: 0x40_0000n, userspace_addr: BigInt(vm.memory), flags: LOGGED };
      expect(kernel.ioctl(vm.fd, Ioctl.KVM_SET_USER_MEMORY_REGION, KvmUserspaceMemoryRegion.encode(region))).toBe(0);
      continue;
    }
    const request = KvmDirtyLog.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) });
    expect(kernel.ioctl(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, request)).toBe(0);
    const pages: number[] = [];
    for (let page = 0; page < 1024; page++)
      if ((((kernel.bank.u8[bitmap + (page >>> 3)] as number) >>> (page & 7)) & 1) !== 0) pages.push(page);
    rounds.push({ pages, tsc: kernel.cpu.rdtsc() });
  }
  const exits = [words[VcpuStat.exit_ept_violation]!, words[VcpuStat.exit_pml_full]!];
  vm.close();
  expect(kernel.pagesOut).toBe(0);
  return { rounds, exits, kernel };
}

describe.each([
  ["from the start", false],
  ["from the middle on", true],
] as const)("a slot that is logged %s", (_when, late) => {
  test("has the same dirty pages and the same time by either way", async () => {
    const logged = await run({}, late);
    const protectedOnes = await run({ pml: false }, late);
    expect(logged.rounds).toEqual(protectedOnes.rounds);
    const last = logged.rounds.at(-1)!.pages;
    for (const page of [0x200, 0x201, 0x202, 0x203]) expect(last).toContain(page);
    expect(last).not.toContain(0x204);
    const [violations, full] = logged.exits as [number, number];
    // 767 pages that are mapped already
    expect(full).toBe(1);
    expect(protectedOnes.exits[1]).toBe(0);
    // What was mapped stays writable: each first write of a part is an exit only where it is protected
    expect(violations).toBeLessThan(protectedOnes.exits[0]!);
  });
});
