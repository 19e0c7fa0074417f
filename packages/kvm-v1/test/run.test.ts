import { ExitReason, Ioctl, KvmDirtyLog, KvmRun } from "@mkvm/kvm-abi";
import { describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, GUEST_BYTES, TestVm } from "./test-vm.ts";

const modules = [
  { name: "v1", module: v1, parameters: {} },
  { name: "v1 without A/D bits", module: v1, parameters: { ept_ad: false } },
  { name: "v1 on AMD", module: v1, parameters: {}, vendor: "amd" as const },
  { name: "v2", module: v2, parameters: {} },
  { name: "v2 on AMD", module: v2, parameters: {}, vendor: "amd" as const },
  { name: "v2 with small pages", module: v2, parameters: { huge_pages: false, halt_poll_ns: 0 } },
];

describe.each(modules)("KVM_RUN of $name", ({ module, parameters, vendor }) => {
  const start = (options: { irqchip?: boolean; pit?: boolean; flags?: number } = {}): TestVm => {
    const kernel = new InThreadKernel(vendor);
    return new TestVm(kernel, kernel.load("kvm", module, parameters), options);
  };

  test("OUT and IN in real mode", async () => {
    const vm = start();
    // mov al, 'x'; out 0x42, al; in ax, dx; mov [0x500], ax; hlt
    vm.load([0xb0, 0x78, 0xe6, 0xe9, 0xed, 0xa3, 0x00, 0x05, 0xf4]);
    vm.startReal({ rdx: 0x1234n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ isIn: false, port: 0xe9, size: 1, count: 1, data: Uint8Array.of(0x78) });
    // RIP moves on at the next entry only
    expect(vm.regs().rip).toBe(BigInt(CODE + 2));
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ isIn: true, port: 0x1234, size: 2 });
    vm.io.data.set([0xcd, 0xab]);
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    expect(vm.u32(0x500) & 0xffff).toBe(0xabcd);
    expect(vm.regs().rip).toBe(BigInt(CODE + 9));
    vm.close();
  });

  test("REP OUTSB hands over the string at once, REP INSB stores it", async () => {
    const vm = start();
    // cld; rep outsb; rep insb would need registers in between: mov di, 0x700; mov cx, 3; rep insb; hlt
    vm.load([0xfc, 0xf3, 0x6e, 0xbf, 0x00, 0x07, 0xb9, 0x03, 0x00, 0xf3, 0x6c, 0xf4]);
    vm.load([0x61, 0x62, 0x63, 0x64], 0x600);
    vm.startReal({ rdx: 0x3f8n, rsi: 0x600n, rcx: 4n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ isIn: false, port: 0x3f8, size: 1, count: 4, data: Uint8Array.of(0x61, 0x62, 0x63, 0x64) });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ isIn: true, count: 3 });
    vm.io.data.set([1, 2, 3]);
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    expect(vm.u32(0x700)).toBe(0x030201);
    expect(vm.regs()).toMatchObject({ rcx: 0n, rdi: 0x703n, rsi: 0x604n });
    vm.close();
  });

  test("a REP OUTSW that crosses a page comes in two exits", async () => {
    const vm = start();
    vm.load([0xfc, 0xf3, 0x6f, 0xf4]);
    vm.load([1, 0, 2, 0, 3, 0, 4, 0], 0x1ffc);
    vm.startReal({ rdx: 0x3f8n, rsi: 0x1ffcn, rcx: 4n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ size: 2, count: 2, data: Uint8Array.of(1, 0, 2, 0) });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io).toMatchObject({ size: 2, count: 2, data: Uint8Array.of(3, 0, 4, 0) });
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    vm.close();
  });

  test("MMIO writes and reads of 64-bit code", async () => {
    const vm = start();
    // mov [rbx], rax; mov ecx, [rbx+8]; mov [0x500], ecx; hlt
    vm.load([0x48, 0x89, 0x03, 0x8b, 0x4b, 0x08, 0x89, 0x0c, 0x25, 0x00, 0x05, 0x00, 0x00, 0xf4]);
    vm.startLong({ rbx: 0x100_0000n, rax: 0x1122_3344_5566_7788n });
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    expect(vm.mmio).toMatchObject({ address: 0x100_0000, length: 8, isWrite: true });
    expect([...vm.mmio.data]).toEqual([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    expect(vm.mmio).toMatchObject({ address: 0x100_0008, length: 4, isWrite: false });
    vm.mmio.data.set([0xef, 0xbe, 0xad, 0xde]);
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    expect(vm.u32(0x500)).toBe(0xdead_beef);
    vm.close();
  });

  test("reads of a read-only slot come from memory, writes exit", async () => {
    const vm = start();
    const rom = vm.kernel.mmap(4096);
    vm.kernel.bank.u8.set([0x5a], rom);
    const region = { slot: 1, flags: 2, guest_phys_addr: 0x50_0000n, memory_size: 4096n, userspace_addr: BigInt(rom) };
    expect(vm.setRegion(region)).toBe(0);
    // mov al, [rbx]; mov [rbx], al; hlt
    vm.load([0x8a, 0x03, 0x88, 0x03, 0xf4]);
    vm.startLong({ rbx: 0x50_0000n });
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    expect(vm.mmio).toMatchObject({ address: 0x50_0000, length: 1, isWrite: true, data: Uint8Array.of(0x5a) });
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    vm.close();
  });

  test("PIT ticks wake a halted real-mode guest through the 8259", async () => {
    const vm = start({ irqchip: true, pit: true });
    const [low, high] = [0xa9, 0x04]; // 1193: about 1 ms
    vm.load([
      ...[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21], // ICW1 to ICW4
      ...[0xb0, 0xfe, 0xe6, 0x21], // only IRQ 0
      ...[0xb0, 0x34, 0xe6, 0x43, 0xb0, low, 0xe6, 0x40, 0xb0, high, 0xe6, 0x40], // channel 0, mode 2
      0xfb, // sti
      0xf4, // hlt
      ...[0x80, 0x3e, 0x00, 0x05, 0x05], // cmp byte [0x500], 5
      ...[0x72, 0xf8], // jb hlt
      ...[0xe6, 0xe9], // out 0xe9, al
    ]);
    vm.load([0xfe, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], 0x9000); // inc byte [0x500]; EOI; iret
    vm.load([0x00, 0x90, 0x00, 0x00], 0x20 * 4);
    vm.startReal();
    const before = vm.kernel.cpu.rdtsc();
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.u32(0x500)).toBe(5);
    const ms = (vm.kernel.cpu.rdtsc() - before) / vm.kernel.cpu.tscKhz;
    expect(ms).toBeGreaterThan(4.9);
    expect(ms).toBeLessThan(5.2);
    vm.close();
  });

  test("a periodic LAPIC timer interrupts busy 64-bit code", async () => {
    const vm = start({ irqchip: true });
    // IDT entry 0x30 at 0x6000
    vm.write64(0x6000 + 0x30 * 16, 0x0000_8e00_0008_9000n);
    vm.write64(0x6000 + 0x30 * 16 + 8, 0n);
    vm.write64(0x5008, 0x00af_9b00_0000_ffffn);
    vm.write64(0x5010, 0x00cf_9300_0000_ffffn);
    const store = (offset: number, value: number): number[] => [
      ...[0xc7, 0x83, offset & 0xff, offset >> 8, 0, 0], // mov dword [rbx+offset], value
      ...[value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >>> 24) & 0xff],
    ];
    vm.load([
      ...store(0xf0, 0x1ff),
      ...store(0x3e0, 0xb),
      ...store(0x320, 0x2_0030),
      ...store(0x380, 100_000),
      0xfb, // sti
      ...[0x83, 0x3c, 0x25, 0x00, 0x05, 0x00, 0x00, 0x03], // cmp dword [0x500], 3
      ...[0x72, 0xf6], // jb
      ...[0xe6, 0xe9],
    ]);
    // inc dword [0x500]; mov dword [rbx+0xb0], 0; iretq
    vm.load([0xff, 0x04, 0x25, 0x00, 0x05, 0x00, 0x00, ...store(0xb0, 0), 0x48, 0xcf], 0x9000);
    vm.startLong({ rbx: 0xfee0_0000n });
    const sregs = vm.sregs();
    sregs.idt = { base: 0x6000n, limit: 0xfff, padding: [0, 0, 0] };
    sregs.gdt = { base: 0x5000n, limit: 0x17, padding: [0, 0, 0] };
    vm.setSregs(sregs);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.u32(0x500)).toBe(3);
    vm.close();
  });

  test("dirty pages are logged, cleared, and logged again", async () => {
    const vm = start({ flags: 1 });
    // mov [rbx], eax; out 0xe9, al; mov [rcx], eax; out 0xe9, al; mov [rbx], eax; out 0xe9, al
    vm.load([0x89, 0x03, 0xe6, 0xe9, 0x89, 0x01, 0xe6, 0xe9, 0x89, 0x03, 0xe6, 0xe9]);
    vm.startLong({ rbx: 0x10_0000n, rcx: 0x20_3000n });
    const dirty = (): number[] => {
      const bitmap = vm.kernel.mmap(GUEST_BYTES / 4096 / 8);
      const request = KvmDirtyLog.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) });
      expect(vm.kernel.ioctl(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, request)).toBe(0);
      const pages: number[] = [];
      // Above the guest's page tables, which count as written where EPT has accessed and dirty bits
      for (let page = 0x10; page < GUEST_BYTES / 4096; page++) {
        if (vm.kernel.bank.u8[bitmap + (page >> 3)]! & (1 << (page & 7))) pages.push(page);
      }
      return pages;
    };
    await vm.enter();
    expect(dirty()).toContain(0x100);
    await vm.enter();
    expect(dirty()).toEqual([0x203]);
    await vm.enter();
    expect(dirty()).toEqual([0x100]);
    expect(dirty()).toEqual([]);
    vm.close();
  });

  test("a slot that is deleted is gone at once, a slot that moves takes its memory along", async () => {
    const vm = start();
    const page = vm.kernel.mmap(4096);
    const region = { slot: 1, guest_phys_addr: 0x50_0000n, memory_size: 4096n, userspace_addr: BigInt(page) };
    expect(vm.setRegion(region)).toBe(0);
    // mov [rbx], al; out 0xe9, al; mov [rbx], al; mov [rcx], al; hlt
    vm.load([0x88, 0x03, 0xe6, 0xe9, 0x88, 0x03, 0x88, 0x01, 0xf4]);
    vm.startLong({ rbx: 0x50_0000n, rcx: 0x60_0008n, rax: 0x77n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.kernel.bank.u8[page]).toBe(0x77);
    expect(vm.setRegion({ ...region, guest_phys_addr: 0x60_0000n })).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    expect(vm.mmio.address).toBe(0x50_0000);
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    expect(vm.kernel.bank.u8[page + 8]).toBe(0x77);
    vm.close();
  });

  test("a triple fault is KVM_EXIT_SHUTDOWN, an invalid state KVM_EXIT_FAIL_ENTRY with the control structure in the log", async () => {
    const vm = start();
    // lidt of nothing, then int3, in 64-bit mode
    vm.load([0x0f, 0x01, 0x1c, 0x25, 0x00, 0x05, 0x00, 0x00, 0xcc]);
    vm.startLong();
    expect(await vm.enter()).toBe("KVM_EXIT_SHUTDOWN");
    vm.startLong();
    const sregs = vm.sregs();
    if (vendor === "amd") sregs.cs.db = 1;
    else Object.assign(sregs.ss, { present: 1, type: 9 });
    vm.setSregs(sregs);
    expect(await vm.enter()).toBe("KVM_EXIT_FAIL_ENTRY");
    expect(vm.kernel.log.join("\n")).toMatch(
      vendor === "amd"
        ? /VMRUN does not take the VMCB: .*EXITCODE=0xffffffffffffffff .*CS=/
        : /VM entry failed, ENTRY_FAILURE_GUEST_STATE: .*GUEST_SS_ACCESS_RIGHTS=/,
    );
    vm.close();
  });

  test("KVM_INTERRUPT waits for the window, NMIs do not", async () => {
    const vm = start();
    vm.load([0x90, 0xe6, 0xe9, 0xfb, 0x90, 0x90, 0xe6, 0xea, 0xf4]);
    vm.load([0xfe, 0x06, 0x00, 0x05, 0xcf], 0x9000); // interrupt: inc byte [0x500]
    vm.load([0xfe, 0x06, 0x01, 0x05, 0xcf], 0x9100); // NMI: inc byte [0x501]
    vm.load([0x00, 0x90, 0x00, 0x00], 0x21 * 4);
    vm.load([0x00, 0x91, 0x00, 0x00], 2 * 4);
    vm.startReal();
    expect(vm.kernel.ioctl(vm.vcpu, Ioctl.KVM_INTERRUPT, Uint8Array.of(0x21, 0, 0, 0))).toBe(0);
    expect(vm.kernel.ioctl(vm.vcpu, Ioctl.KVM_INTERRUPT, Uint8Array.of(0x22, 0, 0, 0))).toBe(-17);
    expect(vm.kernel.ioctl(vm.vcpu, Ioctl.KVM_NMI)).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io.port).toBe(0xe9);
    expect(vm.u32(0x500) & 0xffff).toBe(0x0100);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.io.port).toBe(0xea);
    expect(vm.u32(0x500) & 0xffff).toBe(0x0101);
    vm.close();
  });

  test("request_interrupt_window comes back when the guest turns interrupts on", async () => {
    const vm = start();
    vm.load([0x90, 0xfb, 0x90, 0x90, 0xf4]);
    vm.startReal();
    vm.run[KvmRun.offsets.request_interrupt_window] = 1;
    expect(await vm.enter()).toBe("KVM_EXIT_IRQ_WINDOW_OPEN");
    expect(vm.run[KvmRun.offsets.ready_for_interrupt_injection]).toBe(1);
    vm.run[KvmRun.offsets.request_interrupt_window] = 0;
    expect(await vm.enter()).toBe("KVM_EXIT_HLT");
    vm.close();
  });

  test("a signal ends a halt with EINTR, work of the kernel with ERESTARTSYS, and KVM_RUN goes on afterwards", async () => {
    const vm = start({ irqchip: true });
    vm.load([0xfb, 0xf4, 0xe6, 0xe9]);
    vm.load([0xcf], 0x9000);
    vm.load([0x00, 0x90, 0x00, 0x00], 2 * 4);
    vm.startReal();
    vm.kernel.onIdle = () => {
      vm.kernel.signal = true;
    };
    expect(await vm.kernel.run(vm.vcpu, Ioctl.KVM_RUN)).toBe(-4);
    expect(vm.exitReason).toBe("KVM_EXIT_INTR");
    vm.kernel.signal = false;
    vm.kernel.onIdle = () => {
      vm.kernel.work = true;
    };
    expect(await vm.kernel.run(vm.vcpu, Ioctl.KVM_RUN)).toBe(-512);
    vm.kernel.work = false;
    vm.kernel.onIdle = undefined;
    vm.run[KvmRun.offsets.immediate_exit] = 1;
    expect(await vm.kernel.run(vm.vcpu, Ioctl.KVM_RUN)).toBe(-4);
    vm.run[KvmRun.offsets.immediate_exit] = 0;
    expect(vm.kernel.ioctl(vm.vcpu, Ioctl.KVM_NMI)).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    vm.close();
  });

  test("INIT and SIPI start a second vCPU in real mode", async () => {
    const vm = start({ irqchip: true });
    const second = vm.createVcpu(1);
    // ICR: INIT, then SIPI with vector 9, to APIC 1; then out
    const icr = (low: number): number[] => [
      ...[0xc7, 0x83, 0x00, 0x03, 0, 0, low & 0xff, (low >> 8) & 0xff, (low >> 16) & 0xff, 0],
    ];
    vm.load([...[0xc7, 0x83, 0x10, 0x03, 0, 0, 0, 0, 0, 1], ...icr(0x4500), ...icr(0x4609), 0xe6, 0xe9]);
    vm.load([0xb0, 0x2a, 0xe6, 0xeb], 0x9000);
    vm.startLong({ rbx: 0xfee0_0000n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    const run = vm.kernel.mapRun(second);
    expect(await vm.kernel.run(second, Ioctl.KVM_RUN)).toBe(0);
    expect(new DataView(run.buffer, run.byteOffset).getUint32(8, true)).toBe(ExitReason.KVM_EXIT_IO);
    expect(run[4096]).toBe(0x2a);
    vm.kernel.close(second);
    vm.close();
  });

  test("closing gives everything back, and exit leaves VAC as it was", async () => {
    const kernel = new InThreadKernel();
    const instance = kernel.load("kvm", module, parameters);
    for (let round = 0; round < 3; round++) {
      const vm = new TestVm(kernel, instance, { irqchip: true, pit: true });
      vm.load([0xe6, 0xe9]);
      vm.startReal();
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      // The VM goes before its vCPU
      kernel.close(vm.fd);
      kernel.close(vm.vcpu);
      kernel.close(vm.system);
      expect(kernel.pagesOut).toBe(0);
      expect(kernel.vac.loadedVmcss()).toEqual([]);
      expect(kernel.vac.virtualizationUsers()).toEqual([]);
    }
    instance.exit();
    expect(kernel.vac.registerOwner("kvm")).toBeGreaterThan(0);
  });
});
