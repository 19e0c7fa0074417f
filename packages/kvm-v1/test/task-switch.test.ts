/** Hardware task switches of guests, which both vendors' processors leave to the module. */
import { describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, TestVm } from "./test-vm.ts";

const GDT = 0x1_0000;
const IDT = 0x1_1000;
const TSS = 0x1_2000;
const OTHER_TSS = 0x1_3000;
const OTHER_CODE = 0x1_4000;
const OTHER_STACK = 0x1_6000;
const KERNEL_CODE = 0x08;
const KERNEL_DATA = 0x10;
const TASK = 0x18;
const OTHER = 0x20;
const NT = 0x4000n;
const IRET = 0xcf;
const OUT = [0xe6, 0x10];
const far = (opcode: number, selector: number): number[] => [opcode, 0, 0, 0, 0, selector, 0];

describe.each(["intel", "amd"] as const)("on a machine of vendor %s", (vendor) => {
  describe.each([
    ["v1", v1],
    ["v2", v2],
  ] as const)("%s", (name, module) => {
    function start(...code: number[]): TestVm {
      const kernel = new InThreadKernel(vendor);
      const vm = new TestVm(kernel, kernel.load(name, module), { irqchip: true });
      const descriptor = (selector: number, base: number, limit: number, rights: bigint): void =>
        vm.write64(GDT + selector, (rights << 40n) | (BigInt(base) << 16n) | BigInt(limit));
      vm.write64(GDT + KERNEL_CODE, 0x00cf_9b00_0000_ffffn);
      vm.write64(GDT + KERNEL_DATA, 0x00cf_9300_0000_ffffn);
      descriptor(TASK, TSS, 0x67, 0x8bn);
      descriptor(OTHER, OTHER_TSS, 0x67, 0x89n);
      const word = (at: number, value: number): void =>
        vm.load(
          [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff),
          at,
        );
      const task: [number, number][] = [
        [0x20, OTHER_CODE],
        [0x24, 2],
        [0x28, 0x77],
        [0x38, OTHER_STACK],
        [0x48, KERNEL_DATA],
        [0x4c, KERNEL_CODE],
        [0x50, KERNEL_DATA],
        [0x54, KERNEL_DATA],
        [0x60, 0],
      ];
      for (const [offset, value] of task) word(OTHER_TSS + offset, value);
      vm.load([...OUT, IRET, 0xeb, 0xfb], OTHER_CODE);
      vm.load(code);
      const sregs = vm.sregs();
      const flat = {
        base: 0n,
        limit: 0xffff_ffff,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
      };
      sregs.cs = { ...flat, selector: KERNEL_CODE, type: 11 };
      const data = { ...flat, selector: KERNEL_DATA, type: 3 };
      Object.assign(sregs, { ds: data, es: data, fs: data, gs: data, ss: data });
      sregs.tr = { ...flat, base: BigInt(TSS), limit: 0x67, selector: TASK, type: 11, s: 0, g: 0, db: 0 };
      sregs.gdt.base = BigInt(GDT);
      sregs.gdt.limit = 0x27;
      sregs.idt.base = BigInt(IDT);
      sregs.idt.limit = 0x7ff;
      sregs.cr0 = 0x31n;
      vm.setSregs(sregs);
      vm.setRegs({ rip: BigInt(CODE), rsp: 0x7000n, rax: 5n });
      return vm;
    }

    test("CALL and IRET go to another task and back, twice", async () => {
      const vm = start(...far(0x9a, OTHER), ...far(0x9a, OTHER), 0xe6, 0x11);
      for (const round of [1, 2]) {
        expect(await vm.enter()).toBe("KVM_EXIT_IO");
        expect(vm.io.port).toBe(0x10);
        const { rax, rsp, rflags } = vm.regs();
        expect({ rax, rsp }).toEqual({ rax: 0x77n, rsp: BigInt(OTHER_STACK) });
        expect(rflags & NT).toBe(NT);
        const { tr, cr0 } = vm.sregs();
        expect(tr).toMatchObject({ selector: OTHER, base: BigInt(OTHER_TSS), type: 11 });
        expect(cr0 & 8n).toBe(8n);
        expect(vm.u32(TSS + 0x20)).toBe(CODE + 7 * round);
        expect(vm.u32(OTHER_TSS) & 0xffff).toBe(TASK);
      }
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.io.port).toBe(0x11);
      expect(vm.regs().rax).toBe(5n);
      expect(vm.sregs().tr.selector).toBe(TASK);
      expect((vm.u32(GDT + OTHER + 4) >>> 8) & 15).toBe(9);
    });

    test("task gates take exceptions with their error code, and INT n", async () => {
      // mov ax, 0x40; mov ds, ax (beyond the table); int 0x30
      const vm = start(0x66, 0xb8, 0x40, 0, 0x8e, 0xd8, 0xcd, 0x30);
      for (const vector of [13, 0x30]) vm.write64(IDT + vector * 8, (0x8500n << 32n) | (BigInt(OTHER) << 16n));
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.regs().rsp).toBe(BigInt(OTHER_STACK - 4));
      expect(vm.u32(OTHER_STACK - 4)).toBe(0x40);
      expect(vm.u32(TSS + 0x20)).toBe(CODE + 4);
      // The handler drops the code and steps over the instruction
      vm.load([0x83, 0x05, 0x20, 0x20, 0x01, 0, 2, 0x58, IRET], OTHER_CODE + 2);
      vm.load([...OUT, 0xeb, 0xfc], OTHER_CODE + 11);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.u32(TSS + 0x20)).toBe(CODE + 8);
      expect(vm.regs().rsp).toBe(BigInt(OTHER_STACK));
    });

    test("faults of the switch are the guest's", async () => {
      const vm = start(...far(0xea, OTHER));
      // A code segment that is none, and a handler for #TS in the new task
      vm.load([KERNEL_DATA, 0], OTHER_TSS + 0x4c);
      vm.write64(
        IDT + 10 * 8,
        (BigInt(OTHER_CODE >>> 16) << 48n) | (0x8e00n << 32n) | (BigInt(KERNEL_CODE) << 16n) | BigInt(OTHER_CODE & 0xffff),
      );
      const reason = await vm.enter();
      // With no stack segment yet, delivery cannot but fail: the processor shuts down
      expect(reason).toBe("KVM_EXIT_SHUTDOWN");
      const other = start(...far(0xea, OTHER));
      other.load([0x38, 0], OTHER_TSS + 0x54);
      other.write64(
        IDT + 10 * 8,
        (BigInt(OTHER_CODE >>> 16) << 48n) | (0x8e00n << 32n) | (BigInt(KERNEL_CODE) << 16n) | BigInt(OTHER_CODE & 0xffff),
      );
      expect(await other.enter()).toBe("KVM_EXIT_IO");
      expect(other.u32(OTHER_STACK - 16)).toBe(0x38);
      expect(other.u32(OTHER_STACK - 12)).toBe(OTHER_CODE);
    });
  });
});
