/** NMIs of the host that come while a guest runs are the kernel's, not the guest's. */
import { expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, TestVm } from "./test-vm.ts";

test.each([
  { name: "v1", module: v1, vendor: "intel" as const },
  { name: "v1 on AMD", module: v1, vendor: "amd" as const },
  { name: "v2", module: v2, vendor: "intel" as const },
  { name: "v2 on AMD", module: v2, vendor: "amd" as const },
])("$name hands NMIs to the kernel, and its guest goes on", async ({ module, vendor }) => {
  const kernel = new InThreadKernel(vendor);
  let taken = 0;
  kernel.cpu.nmiHandler = () => {
    taken++;
  };
  const vm = new TestVm(kernel, kernel.load("kvm", module, {}));
  // inc ax; hlt
  vm.load([0x40, 0xf4]);
  vm.startReal();
  kernel.cpu.sendNmi(0);
  expect(await vm.enter()).toBe("KVM_EXIT_HLT");
  expect([taken, kernel.cpu.nmiPending(), vm.regs().rax, vm.regs().rip]).toEqual([1, false, 1n, BigInt(CODE + 2)]);
  vm.close();
});
