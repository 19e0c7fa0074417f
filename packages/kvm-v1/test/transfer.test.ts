import {
  differenceOf,
  Ioctl,
  KvmDirtyLog,
  KvmPitConfig,
  KvmVcpuEvents,
  type ModuleInstance,
  type Section,
  VmShape,
} from "@mkvm/kvm-abi";
import { beforeEach, describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, TestVm } from "./test-vm.ts";

let kernel: InThreadKernel;
let kvm1: ModuleInstance;
let kvm2: ModuleInstance;

/** The protocol of a move; what was sent. */
async function move(vm: TestVm, from: ModuleInstance, to: ModuleInstance): Promise<Section[]> {
  const file = kernel.file(vm.fd);
  const incoming = await to.transfer.prepare(kernel.process, from.transfer.describe(file, to.transfer.receives));
  if (typeof incoming === "string") throw new Error(incoming);
  const sections = from.transfer.save(file, to.transfer.receives);
  expect(differenceOf(sections, from.transfer.save(file, to.transfer.receives))).toBeUndefined();
  expect(incoming.restore(sections)).toBeUndefined();
  expect(differenceOf(sections, incoming.save())).toBeUndefined();
  const changed = [...from.transfer.filesOf(file), kernel.file(vm.system)].map((each) => ({
    each: kernel.file([vm.fd, vm.vcpu, vm.system].find((fd) => kernel.file(fd) === each)!),
    ...incoming.commit(from.transfer.roleOf(each)),
  }));
  from.transfer.releaseMoved(file)?.();
  for (const { each, operations, privateData } of changed) Object.assign(each, { operations, privateData });
  return sections;
}

async function thereAndBack(vm: TestVm): Promise<void> {
  const there = await move(vm, kvm1, kvm2);
  const back = await move(vm, kvm2, kvm1);
  expect(differenceOf(there, back)).toBeUndefined();
}

const options = { irqchip: true, pit: true };

describe.each(["intel", "amd"] as const)("on a machine of vendor %s", (vendor) => {
  beforeEach(() => {
    kernel = new InThreadKernel(vendor);
    kvm1 = kernel.load("kvm1", v1);
    kvm2 = kernel.load("kvm2", v2);
  });

  describe("a VM moves from v1 to v2 and back", () => {
    test("with an IN at user space", async () => {
      const vm = new TestVm(kernel, kvm1, options);
      vm.load([0xed, 0xa3, 0x00, 0x05, 0xe6, 0xe9]); // in ax, dx; mov [0x500], ax; out
      vm.startReal({ rdx: 0x1234n });
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      vm.io.data.set([0xcd, 0xab]);
      await move(vm, kvm1, kvm2);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.u32(0x500)).toBe(0xabcd);
    });

    test("in the middle of REP INSB", async () => {
      const vm = new TestVm(kernel, kvm1);
      vm.load([0xfc, 0xf3, 0x6c, 0xf4]);
      vm.startReal({ rdx: 0x1234n, rdi: 0x1ffen, rcx: 4n });
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      vm.io.data.set([1, 2]);
      await move(vm, kvm1, kvm2);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.io).toMatchObject({ isIn: true, count: 2 });
      vm.io.data.set([3, 4]);
      await move(vm, kvm2, kvm1);
      expect(await vm.enter()).toBe("KVM_EXIT_HLT");
      expect([...kernel.bank.u8.subarray(vm.memory + 0x1ffe, vm.memory + 0x2002)]).toEqual([1, 2, 3, 4]);
    });

    test("with an MMIO read, and with an MMIO write, at user space", async () => {
      const vm = new TestVm(kernel, kvm1);
      // mov ecx, [rbx]; mov [rbx+8], ecx; hlt
      vm.load([0x8b, 0x0b, 0x89, 0x4b, 0x08, 0xf4]);
      vm.startLong({ rbx: 0x100_0000n });
      expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
      vm.mmio.data.set([1, 2, 3, 4]);
      await move(vm, kvm1, kvm2);
      expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
      expect(vm.mmio).toMatchObject({ address: 0x100_0008, isWrite: true, data: Uint8Array.of(1, 2, 3, 4) });
      await move(vm, kvm2, kvm1);
      expect(await vm.enter()).toBe("KVM_EXIT_HLT");
      expect(vm.regs().rip).toBe(BigInt(CODE + 6));
    });

    test("halted, with the timer that is to wake it", async () => {
      const vm = new TestVm(kernel, kvm1, options);
      vm.load([
        ...[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21], // 8259
        ...[0xb0, 0xfe, 0xe6, 0x21, 0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40], // PIT, 1 ms
        ...[0xfb, 0xf4, 0xe6, 0xe9],
      ]);
      vm.load([0xfe, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], 0x9000);
      vm.load([0x00, 0x90, 0x00, 0x00], 0x20 * 4);
      vm.startReal();
      const start = kernel.cpu.rdtsc();
      // `run` comes back at the halt; the kernel wants the task out before time passes
      const halted = kernel.run(vm.vcpu, Ioctl.KVM_RUN);
      kernel.work = true;
      expect(await halted).toBe(-512);
      kernel.work = false;
      await thereAndBack(vm);
      await move(vm, kvm1, kvm2);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.u32(0x500)).toBe(1);
      const ms = (kernel.cpu.rdtsc() - start) / kernel.cpu.tscKhz;
      expect(ms).toBeGreaterThan(0.99);
      expect(ms).toBeLessThan(1.05);
    });

    test("at many instructions, and ends the same", async () => {
      const program = [
        ...[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21],
        ...[0xb0, 0xfe, 0xe6, 0x21, 0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x00, 0xe6, 0x40, 0xb0, 0x01, 0xe6, 0x40],
        0xfb,
        ...[0x66, 0x0f, 0x31, 0x66, 0xa3, 0x10, 0x05], // rdtsc; mov [0x510], eax
        ...[0x66, 0x69, 0xdb, 0x0d, 0x66, 0x19, 0x00], // imul ebx, ebx, 1664525
        ...[0x66, 0x43], // inc ebx
        ...[0x80, 0x3e, 0x00, 0x05, 0x20], // cmp byte [0x500], 32
        ...[0x72, 0xe9], // jb rdtsc
        ...[0x66, 0x89, 0x1e, 0x20, 0x05, 0xe6, 0xe9], // mov [0x520], ebx; out
      ];
      const result = async (moves: number): Promise<{ ebx: number; tsc: number; instructions: number; moved: number }> => {
        kernel = new InThreadKernel(vendor);
        kvm1 = kernel.load("kvm1", v1);
        kvm2 = kernel.load("kvm2", v2);
        const vm = new TestVm(kernel, kvm1, options);
        vm.load(program);
        vm.load([0xfe, 0x06, 0x00, 0x05, 0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf], 0x9000);
        vm.load([0x00, 0x90, 0x00, 0x00], 0x20 * 4);
        vm.startReal({ rbx: 1n });
        let [from, to] = [kvm1, kvm2];
        let moved = 0;
        for (;;) {
          kernel.stopAt(moved < moves ? kernel.cpu.retiredInstructions() + 97 + moved : Number.POSITIVE_INFINITY);
          const status = await kernel.run(vm.vcpu, Ioctl.KVM_RUN);
          if (status === 0) break;
          expect(status).toBe(-512);
          await move(vm, from, to);
          [from, to] = [to, from];
          moved++;
        }
        expect(vm.exitReason).toBe("KVM_EXIT_IO");
        return { ebx: vm.u32(0x520), tsc: vm.u32(0x510), instructions: kernel.cpu.retiredInstructions(), moved };
      };
      const still = await result(0);
      const moved = await result(150);
      expect(moved.moved).toBeGreaterThan(100);
      expect(moved).toMatchObject({ ebx: still.ebx, tsc: still.tsc, instructions: still.instructions });
    });

    test("with events, debug registers, floating point and MSRs set by user space", async () => {
      const vm = new TestVm(kernel, kvm1, options);
      vm.load([0xe6, 0xe9]);
      vm.startReal();
      const events = KvmVcpuEvents.encode({
        exception: { injected: 1, nr: 14, has_error_code: 1, pending: 0, error_code: 6 },
        nmi: { injected: 0, pending: 1, masked: 1, pad: 0 },
        interrupt: { injected: 0, nr: 0, soft: 0, shadow: 2 },
        flags: 5,
      });
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_VCPU_EVENTS, events)).toBe(0);
      const fpu = new Uint8Array(416).fill(0x11, 0, 128).fill(0x22, 152, 408);
      new DataView(fpu.buffer).setUint32(408, 0x1f80, true);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_FPU, fpu)).toBe(0);
      const msrs = new Uint8Array(8 + 4 * 16);
      const view = new DataView(msrs.buffer);
      view.setUint32(0, 4, true);
      [0xc000_0081, 0xc000_0102, 0x174, 0x2ff].forEach((index, at) => {
        view.setUint32(8 + at * 16, index, true);
        view.setBigUint64(16 + at * 16, at === 3 ? 0xc06n : BigInt(0x1000 + at), true);
      });
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_MSRS, msrs)).toBe(4);
      const debug = new Uint8Array(128);
      new DataView(debug.buffer).setBigUint64(8, 0x4321n, true);
      new DataView(debug.buffer).setBigUint64(32, 0xffff_0ff0n, true);
      new DataView(debug.buffer).setBigUint64(40, 0x400n, true);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_DEBUGREGS, debug)).toBe(0);
      await move(vm, kvm1, kvm2);
      const after = new Uint8Array(KvmVcpuEvents.sizeBytes);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_VCPU_EVENTS, after)).toBe(0);
      expect(KvmVcpuEvents.read(after)).toMatchObject({
        exception: { injected: 1, nr: 14, error_code: 6 },
        nmi: { pending: 1, masked: 1 },
        // SVM has one shadow for both
        interrupt: { shadow: vendor === "amd" ? 3 : 2 },
      });
      const readBack = new Uint8Array(416);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_FPU, readBack)).toBe(0);
      expect(readBack.subarray(152, 408)).toEqual(fpu.subarray(152, 408));
      const values = msrs.slice();
      for (let at = 0; at < 4; at++) new DataView(values.buffer).setBigUint64(16 + at * 16, 0n, true);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_MSRS, values)).toBe(4);
      expect(values).toEqual(msrs);
      await move(vm, kvm2, kvm1);
    });

    test("with its dirty log, and with slots that changed after prepare", async () => {
      const vm = new TestVm(kernel, kvm1, { flags: 1 });
      vm.load([0x89, 0x03, 0xe6, 0xe9, 0x89, 0x01, 0xe6, 0xe9]); // mov [rbx], eax; out; mov [rcx], eax; out
      vm.startLong({ rbx: 0x10_0000n, rcx: 0x50_0000n });
      await vm.enter();
      const file = kernel.file(vm.fd);
      const incoming = await kvm2.transfer.prepare(kernel.process, kvm1.transfer.describe(file, kvm2.transfer.receives));
      if (typeof incoming === "string") throw new Error(incoming);
      const page = kernel.mmap(4096);
      expect(vm.setRegion({ slot: 3, guest_phys_addr: 0x50_0000n, memory_size: 4096n, userspace_addr: BigInt(page) })).toBe(0);
      const sections = kvm1.transfer.save(file, kvm2.transfer.receives);
      expect(incoming.restore(sections)).toBeUndefined();
      expect(differenceOf(sections, incoming.save())).toBeUndefined();
      incoming.abort();
      await move(vm, kvm1, kvm2);
      const bitmap = kernel.mmap(4096);
      const request = KvmDirtyLog.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) });
      expect(kernel.ioctl(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, request)).toBe(0);
      expect(kernel.bank.u8[bitmap + 0x100 / 8]! & 1).toBe(1);
      kernel.bank.view.setUint32(page, 0, true);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(kernel.bank.view.getUint32(page, true)).toBe(Number(vm.regs().rax & 0xffff_ffffn));
    });

    test("before it has a vCPU", async () => {
      const file = kernel.file(kernel.ioctl(kernel.open(kvm1), Ioctl.KVM_CREATE_VM));
      const incoming = await kvm2.transfer.prepare(kernel.process, kvm1.transfer.describe(file, kvm2.transfer.receives));
      if (typeof incoming === "string") throw new Error(incoming);
      const sections = kvm1.transfer.save(file, kvm2.transfer.receives);
      expect(incoming.restore(sections)).toBeUndefined();
      expect(differenceOf(sections, incoming.save())).toBeUndefined();
      incoming.abort();
    });

    test("while its VMM is at making it: it got interrupt controllers, a PIT and a vCPU after prepare", async () => {
      for (const [from, to] of [
        [kvm1, kvm2],
        [kvm2, kvm1],
      ] as const) {
        const fd = kernel.ioctl(kernel.open(from), Ioctl.KVM_CREATE_VM);
        const file = kernel.file(fd);
        const incoming = await to.transfer.prepare(kernel.process, from.transfer.describe(file, to.transfer.receives));
        if (typeof incoming === "string") throw new Error(incoming);
        expect(kernel.ioctl(fd, Ioctl.KVM_CREATE_IRQCHIP)).toBe(0);
        expect(kernel.ioctl(fd, Ioctl.KVM_CREATE_PIT2, KvmPitConfig.encode({ flags: 1 }))).toBe(0);
        expect(kernel.ioctl(fd, Ioctl.KVM_CREATE_VCPU, 0)).toBeGreaterThan(0);
        const sections = from.transfer.save(file, to.transfer.receives);
        expect(incoming.restore(sections)).toBeUndefined();
        expect(differenceOf(sections, incoming.save())).toBeUndefined();
        incoming.abort();
      }
    });

    test("without its statistics, when the receiver takes none; and not with half of them", async () => {
      const vm = new TestVm(kernel, kvm1, options);
      vm.load([0xe6, 0xe9]);
      vm.startReal();
      await vm.enter();
      const file = kernel.file(vm.fd);
      const receives = kvm2.transfer.receives.filter(({ name }) => !name.endsWith(".statistics"));
      const description = kvm1.transfer.describe(file, receives);
      const incoming = await kvm2.transfer.prepare(kernel.process, description);
      if (typeof incoming === "string") throw new Error(incoming);
      const sections = kvm1.transfer.save(file, receives);
      expect(sections.map(({ name }) => name)).toEqual(description.sections.map(({ name }) => name));
      expect(sections.filter(({ name }) => name.endsWith(".statistics"))).toEqual([]);
      expect(incoming.restore(sections)).toBeUndefined();
      expect(differenceOf(sections, incoming.save())).toBeUndefined();
      incoming.abort();
      const again = await kvm2.transfer.prepare(kernel.process, kvm1.transfer.describe(file, kvm2.transfer.receives));
      if (typeof again === "string") throw new Error(again);
      const cut = kvm1.transfer
        .save(file, kvm2.transfer.receives)
        .map((section) =>
          section.name === "vcpu.statistics" ? { ...section, bytes: section.bytes.subarray(0, -8) } : section,
        );
      expect(again.restore(cut)).toMatch(/vcpu.statistics\[0\] has \d+ bytes where/);
      again.abort();
    });

    test("a move that is aborted, or refused, leaves everything as it was", async () => {
      const vm = new TestVm(kernel, kvm1, options);
      vm.load([0xe6, 0xe9, 0xe6, 0xea]);
      vm.startReal();
      await vm.enter();
      const file = kernel.file(vm.fd);
      const pages = kernel.pagesOut;
      const description = kvm1.transfer.describe(file, kvm2.transfer.receives);
      const unknown = { name: "vm.from-the-future", instance: 0, version: 1, required: true };
      expect(
        await kvm2.transfer.prepare(kernel.process, { ...description, sections: [...description.sections, unknown] }),
      ).toMatch(/vm.from-the-future/);
      const small = kernel.load("small", v2, { max_vcpus: 1 });
      const shape = VmShape.encode(0, { abi_feature_level: 1, vcpu_count: 2, tsc_khz: kernel.cpu.tscKhz });
      expect(
        await small.transfer.prepare(kernel.process, {
          ...description,
          early: [shape, ...description.early.filter((section) => section.name !== "vm.shape")],
        }),
      ).toMatch(/has 2 vCPUs, max_vcpus of small is 1/);
      expect(kernel.pagesOut).toBe(pages);
      const incoming = await kvm2.transfer.prepare(kernel.process, description);
      if (typeof incoming === "string") throw new Error(incoming);
      expect(kernel.pagesOut).toBeGreaterThan(pages);
      const sections = kvm1.transfer.save(file, kvm2.transfer.receives);
      const broken = sections.map((section) =>
        section.name === "vcpu.registers" ? { ...section, bytes: section.bytes.subarray(0, 40) } : section,
      );
      expect(incoming.restore(broken)).toMatch(/vcpu.registers/);
      incoming.abort();
      expect(kernel.pagesOut).toBe(pages);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.io.port).toBe(0xea);
      await thereAndBack(vm);
      vm.close();
      expect(kernel.pagesOut).toBe(0);
      expect(kernel.vac.virtualizationUsers()).toEqual([]);
    });
  });
});
