/** Both versions under the hardware sanitizer: guests that fill every register they share with the host, and memory that comes and goes. */
import { Ioctl, KvmMsrEntry, KvmMsrs } from "@mkvm/kvm-abi";
import { describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, GUEST_BYTES, TestVm } from "./test-vm.ts";

const KERNEL_GS_BASE = 0xc000_0102;
/** SYSENTER_CS, _ESP, _EIP, STAR, LSTAR, CSTAR, FMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX. */
const MSRS = [
  0x174,
  0x175,
  0x176,
  0xc000_0081,
  0xc000_0082,
  0xc000_0083,
  0xc000_0084,
  0xc000_0100,
  0xc000_0101,
  KERNEL_GS_BASE,
  0xc000_0103,
];
/** in al, 0x10; mov al, [0x300000]; out 0x10, al: again and again. */
const LOOP = [0xe4, 0x10, 0x8a, 0x04, 0x25, 0, 0, 0x30, 0, 0xe6, 0x10, 0xeb, 0xf3];
const findings = (kernel: InThreadKernel): string[] => kernel.log.filter((line) => line.includes("sanitizer"));

const cases = (["intel", "amd"] as const).flatMap((vendor) => [
  { vendor, version: "v1", module: v1 },
  { vendor, version: "v2", module: v2 },
]);

describe.each(cases)("version $version on $vendor", ({ vendor, module }) => {
  function started(): { kernel: InThreadKernel; vm: TestVm } {
    const kernel = new InThreadKernel(vendor);
    const vm = new TestVm(kernel, kernel.load("kvm", module as never), {});
    vm.load(LOOP);
    vm.startLong();
    return { kernel, vm };
  }

  test("leaves none of a guest's values in the host's registers", async () => {
    const { kernel, vm } = started();
    const bytes = new Uint8Array(KvmMsrs.sizeBytes + MSRS.length * KvmMsrEntry.sizeBytes);
    bytes.set(KvmMsrs.encode({ nmsrs: MSRS.length }));
    MSRS.forEach((index, i) => {
      bytes.set(KvmMsrEntry.encode({ index, data: BigInt(0x1000 + i) }), KvmMsrs.sizeBytes + i * KvmMsrEntry.sizeBytes);
    });
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_MSRS, bytes)).toBe(MSRS.length);
    for (let i = 0; i < 4; i++) expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(findings(kernel)).toEqual([]);
    // The mistake that it would be
    kernel.cpu.wrmsr(KERNEL_GS_BASE, 1n);
    vm.regs();
    expect(findings(kernel)).toEqual([expect.stringContaining("returns to user code with 0x1 in KERNEL_GS_BASE")]);
    kernel.log.length = 0;
    vm.close();
  });

  test("frees no table that is in use, when memory goes and comes back between two entries", async () => {
    const { kernel, vm } = started();
    for (let i = 0; i < 6; i++) {
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.setRegion({ memory_size: 0n })).toBe(0);
      expect(vm.setRegion({ memory_size: BigInt(GUEST_BYTES) })).toBe(0);
    }
    expect(findings(kernel)).toEqual([]);
    // The mistake that it would be: a page with the guest's code goes while it is mapped
    await vm.enter();
    const page = vm.memory + CODE;
    kernel.cpu.sanitizer.pagesFreed((kernel.process.memory.translate(page) - (page % 4096)) as never, 1);
    await vm.enter();
    expect(findings(kernel)[0]).toMatch(/freed page|freed since/);
    kernel.log.length = 0;
    vm.close();
  });
});
