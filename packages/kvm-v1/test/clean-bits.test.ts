/** VMCB clean bits of both versions on AMD machines: that they are set, and that the hardware sanitizer finds none that lies. */
import { type SvmVcpu, VmcbControl } from "@mkvm/kvm-core";
import { describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { TestVm } from "./test-vm.ts";

/** Exits to the test, with CR0, CR4, EFER, CR8 and a debug register changed by the guest in between, and a fault on new memory. */
const OUT = [0xe6, 0x10];
const CODE = [
  ...OUT,
  // mov rax, cr0; xor al, 2; mov cr0, rax; mov rax, cr4; xor al, 4; mov cr4, rax
  ...[0x0f, 0x20, 0xc0, 0x34, 2, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xe0, 0x34, 4, 0x0f, 0x22, 0xe0],
  ...OUT,
  // mov eax, 5; mov cr8, rax; mov dr7, rcx (of zero); cpuid; mov ecx, EFER; rdmsr; wrmsr
  ...[
    0xb8, 5, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, 0x31, 0xc9, 0x0f, 0x23, 0xf9, 0x0f, 0xa2, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32,
    0x0f, 0x30,
  ],
  // mov [0x200000], eax
  ...[0x89, 0x04, 0x25, 0, 0, 0x20, 0],
  ...OUT,
];

describe.each([
  ["v1", v1],
  ["v2", v2],
] as const)("version %s", (_name, module) => {
  test("tells the processor what has not changed, and is right", async () => {
    const kernel = new InThreadKernel("amd");
    const vm = new TestVm(kernel, kernel.load("kvm", module as never), { irqchip: true });
    vm.load([...CODE, ...CODE, 0xf4]);
    vm.startLong();
    for (let i = 0; i < 6; i++) {
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      // What user space changes between two entries
      const sregs = vm.sregs();
      sregs.gdt.limit = 0x17 + 8 * i;
      sregs.fs.base = BigInt(0x1000 * i);
      sregs.ds.limit = 0xffff_ffff - 0x1000 * (i & 1);
      vm.setSregs(sregs);
      vm.setRegs({ ...vm.regs(), rsi: BigInt(i) });
    }
    const { svm } = (kernel.file(vm.vcpu).privateData as { vendorState: { svm: SvmVcpu } }).vendorState;
    expect(svm.vmcb.word(VmcbControl.CLEAN)).not.toBe(0);
    expect(kernel.log.filter((line) => line.includes("sanitizer"))).toEqual([]);
    vm.close();
  });
});
