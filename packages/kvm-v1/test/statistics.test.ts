/** Every statistic that a version counts, moved by the thing that it counts; the others, that they stay where they are. */
import { Ioctl, type KernelModule, KvmCpuid2, KvmDirtyLog, KvmLapicState, KvmRun, type ModuleInstance } from "@mkvm/kvm-abi";
import {
  handleVmxExit,
  type Row,
  type StatisticsTable,
  VCPU_TABLE,
  VcpuCounters,
  VcpuStat,
  VM_TABLE,
  type VmCounters,
  VmStat,
  type VmxExit,
  type VmxExitHost,
} from "@mkvm/kvm-core";
import { describe, expect, test } from "vitest";
import { HaltPolling } from "../../kvm-v2/src/halt-polling.ts";
import v2 from "../../kvm-v2/src/index.ts";
import { Vcpu as VcpuV2 } from "../../kvm-v2/src/vcpu.ts";
import v1 from "../src/index.ts";
import { Vcpu as VcpuV1 } from "../src/vcpu.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { GUEST_BYTES, TestVm } from "./test-vm.ts";

type Options = { irqchip?: boolean; pit?: boolean; flags?: number };

/** What a row counts in one version, and why not. */
function neverIn(version: 1 | 2, row: Row): string | undefined {
  return row.never ?? (version === 1 ? row.neverInV1 : row.neverInV2);
}

/** 8259 with only IRQ 0, at vector 0x20. */
const PIC_SET_UP = [
  ...[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21],
  ...[0xb0, 0xfe, 0xe6, 0x21],
];
/** PIT channel 0, about 1 ms. */
const PIT_SET_UP = [0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40];
const OUT = [0xe6, 0xe9];
const little = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
const HLT = 0xf4;

/** Instructions of 64-bit code at privilege 0 and the exit that they take. */
const EXITING: Record<string, readonly number[]> = {
  cpuid: [0x0f, 0xa2],
  rdmsr: [0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32], // IA32_APIC_BASE
  wrmsr: [0xb9, 0x77, 0x02, 0, 0, 0xb8, 6, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30], // IA32_PAT
  vmcall: [0x0f, 0x01, 0xc1],
  // mov rax, cr4; or eax, OSXSAVE; mov cr4, rax; mov eax, 7; xor edx, edx; xsetbv
  xsetbv: [...[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 4, 0, 0x0f, 0x22, 0xe0], ...[0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x01, 0xd1]],
  cr_access: [0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x40, 0x0f, 0x22, 0xc0], // CR0.CD
  invd: [0x0f, 0x08],
  wbinvd: [0x0f, 0x09],
  monitor: [0x0f, 0x01, 0xc8],
  mwait: [0x0f, 0x01, 0xc9],
  rdpmc: [0x0f, 0x33],
  vmclear: [0x66, 0x0f, 0xc7, 0x33],
  vmlaunch: [0x0f, 0x01, 0xc2],
  vmptrld: [0x0f, 0xc7, 0x33],
  vmptrst: [0x0f, 0xc7, 0x3b],
  vmread: [0x0f, 0x78, 0xc8],
  vmresume: [0x0f, 0x01, 0xc3],
  vmwrite: [0x0f, 0x79, 0xc8],
  vmxoff: [0x0f, 0x01, 0xc4],
  vmxon: [0xf3, 0x0f, 0xc7, 0x33],
  invept: [0x66, 0x0f, 0x38, 0x80, 0x0b],
  invvpid: [0x66, 0x0f, 0x38, 0x81, 0x0b],
};

/** Instructions that exit where the guest's CPUID has none of them. */
const UNDEFINED = [
  ["rdrand", "intel", [0x0f, 0xc7, 0xf0]],
  ["rdseed", "intel", [0x0f, 0xc7, 0xf8]],
  ["rdtscp", "amd", [0x0f, 0x01, 0xf9]],
  ["invpcid", "amd", [0x66, 0x0f, 0x38, 0x82, 0x03]],
] as const;

describe.each([
  { version: 1 as const, module: v1 as KernelModule<never, never> },
  { version: 2 as const, module: v2 as KernelModule<never, never> },
])("version $version", ({ version, module }) => {
  let kernel: InThreadKernel;
  let instance: ModuleInstance;
  const moved = new Set<string>();

  /** Everything below is done once; the tests look at what moved. */
  const start = (
    options: Options = {},
    parameters: Record<string, boolean | number> = {},
    vendor: "intel" | "amd" = "intel",
  ): TestVm => {
    kernel = new InThreadKernel(vendor);
    instance = kernel.load("kvm", module as never, { exit_latency: true, ...parameters });
    return new TestVm(kernel, instance, options);
  };
  const vcpuOf = (vm: TestVm): VcpuV1 | VcpuV2 => kernel.file(vm.vcpu).privateData as VcpuV1;
  const note = (table: StatisticsTable, { words }: { words: Float64Array }): void => {
    for (const row of table.rows) {
      const at = table.word[row.name]!;
      if (words.subarray(at, at + row.words).some((value) => value !== 0)) moved.add(row.name);
      if (words.subarray(at, at + row.words).some((value) => value < 0)) throw new Error(`${row.name} is below 0`);
    }
  };
  const look = (vm: TestVm): { vm: VmCounters; vcpu: VcpuCounters } => {
    const vcpu = vcpuOf(vm);
    expect(vcpu instanceof VcpuV1 || vcpu instanceof VcpuV2).toBe(true);
    note(VM_TABLE, vcpu.vm.statistics);
    note(VCPU_TABLE, vcpu.statistics);
    return { vm: vcpu.vm.statistics, vcpu: vcpu.statistics };
  };

  test("port I/O, with what leads to it: pages, tables, state on and off the CPU", async () => {
    const vm = start();
    vm.load([...OUT, ...OUT]);
    vm.startReal();
    await vm.enter();
    await vm.enter();
    const { vcpu, vm: counted } = look(vm);
    expect(vcpu.words[VcpuStat.io_exits]).toBe(2);
    expect(vcpu.words[VcpuStat.exit_io_instruction]).toBe(2);
    expect(vcpu.words[VcpuStat.exits]).toBe(2 + vcpu.words[VcpuStat.pf_taken]!);
    expect(vcpu.words[VcpuStat.exit_ept_violation]).toBe(vcpu.words[VcpuStat.pf_fixed]);
    expect(vcpu.words[VcpuStat.guest_instructions]).toBe(kernel.cpu.retiredInstructions());
    expect(vcpu.words[VcpuStat.host_state_reload]).toBe(2);
    expect(counted.words[version === 1 ? VmStat.pages_4k : VmStat.pages_2m]).toBeGreaterThan(0);
    expect(counted.words[VmStat.mmu_cache_miss]).toBe(counted.words[VmStat.mmu_table_pages]);
  });

  test("MMIO: to user space, and an instruction that the emulator does not know", async () => {
    const vm = start();
    vm.load([0x89, 0x03, 0xd9, 0x03]); // mov [rbx], eax; fld dword [rbx]
    vm.startLong({ rbx: 0x100_0000n });
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    expect(await vm.enter()).toBe("KVM_EXIT_INTERNAL_ERROR");
    const { words } = look(vm).vcpu;
    expect([
      words[VcpuStat.mmio_exits],
      words[VcpuStat.insn_emulation],
      words[VcpuStat.insn_emulation_fail],
      words[VcpuStat.pf_emulate],
    ]).toEqual([1, 2, 1, 2]);
  });

  test.each(Object.entries(EXITING))("exit_%s", async (name, code) => {
    const vm = start();
    vm.load([...code, HLT]);
    vm.startLong({ rbx: 0x10_0000n, rcx: 0n });
    await vm.enter();
    await vm.enter();
    look(vm);
    expect(moved).toContain(`exit_${name}`);
    const { words } = look(vm).vcpu;
    if (name === "vmcall") expect(words[VcpuStat.hypercalls]).toBe(1);
  });

  test.each(UNDEFINED)("exit_%s, where the guest's CPUID is empty", async (name, vendor, code) => {
    const vm = start({}, {}, vendor);
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_CPUID2, new Uint8Array(KvmCpuid2.sizeBytes))).toBe(0);
    vm.load([...code, HLT]);
    vm.startLong();
    // There is no handler for #UD
    expect(await vm.enter()).toBe("KVM_EXIT_SHUTDOWN");
    expect(look(vm).vcpu.words[VcpuStat[`exit_${name}`]]).toBe(1);
  });

  test("a task switch, a triple fault, an entry that fails", async () => {
    const vm = start();
    vm.load([0xea, 0, 0, 0, 0, 8, 0]); // jmp far 8:0, to a TSS
    vm.write64(0x5008, 0x0000_8900_6000_0067n);
    vm.startLong();
    const sregs = vm.sregs();
    sregs.cr0 = 0x33n;
    sregs.cr4 = 0x600n;
    sregs.efer = 0n;
    sregs.cs = { ...sregs.cs, l: 0, db: 1 };
    sregs.gdt = { base: 0x5000n, limit: 0x17, padding: [0, 0, 0] };
    vm.setSregs(sregs);
    // The new task has nothing in its TSS, and there is no handler for what it faults with
    expect(await vm.enter()).toBe("KVM_EXIT_SHUTDOWN");
    vm.startLong();
    vm.load([0x0f, 0x01, 0x1c, 0x25, 0x00, 0x05, 0x00, 0x00, 0xcc]); // lidt of nothing; int3
    expect(await vm.enter()).toBe("KVM_EXIT_SHUTDOWN");
    const wrong = vm.sregs();
    wrong.ss.type = 9;
    vm.setSregs(wrong);
    expect(await vm.enter()).toBe("KVM_EXIT_FAIL_ENTRY");
    await vm.kernel.run(vm.vcpu, Ioctl.KVM_RUN);
    const { words } = look(vm).vcpu;
    expect(words[VcpuStat.exit_task_switch]).toBe(1);
    expect(words[VcpuStat.exit_triple_fault]).toBe(2);
    expect(words[VcpuStat.exit_entry_failure_guest_state]).toBe(2);
  });

  test("halts, and the timer's interrupts that end them", async () => {
    const vm = start({ irqchip: true, pit: true });
    vm.load([...PIC_SET_UP, ...PIT_SET_UP, 0xfb, HLT, 0x80, 0x3e, 0x00, 0x05, 0x05, 0x72, 0xf8, ...OUT]);
    vm.load([0xfe, 0x06, 0x00, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xcf], 0x9000); // inc byte [0x500]; EOI; iret
    vm.load([0x00, 0x90, 0x00, 0x00], 0x20 * 4);
    vm.startReal();
    await vm.enter();
    const { words } = look(vm).vcpu;
    expect(words[VcpuStat.halt_exits]).toBe(5);
    expect(words[VcpuStat.exit_hlt]).toBe(5);
    expect(words[VcpuStat.halt_wakeup]).toBe(5);
    // More where a page of the guest's was not mapped yet when the interrupt was on its way
    expect(words[VcpuStat.irq_injections]).toBeGreaterThanOrEqual(5);
    expect(words[VcpuStat.req_event]).toBe(5);
    const waits = words.subarray(VcpuStat.halt_wait_hist, VcpuStat.halt_wait_hist + 32);
    // Each halt is a little less than the millisecond of the timer
    expect(waits[20]).toBe(5);
    expect(words[VcpuStat.halt_wait_ns]).toBeGreaterThan(4.9e6);
    expect(words[VcpuStat.halt_wait_ns]).toBeLessThan(5e6);
    const interrupts = words.subarray(VcpuStat.interrupt_latency, VcpuStat.interrupt_latency + 32);
    expect(interrupts.reduce((sum, each) => sum + each)).toBe(5);
  });

  test("blocking, while the vCPU waits, and a signal that ends the wait", async () => {
    const vm = start({ irqchip: true });
    vm.load([HLT]);
    vm.startReal();
    kernel.onIdle = () => {
      expect(look(vm).vcpu.words[VcpuStat.blocking]).toBe(1);
      kernel.signal = true;
    };
    expect(await kernel.run(vm.vcpu, Ioctl.KVM_RUN)).toBe(-4);
    const { words } = look(vm).vcpu;
    expect(words[VcpuStat.blocking]).toBe(0);
    expect(words[VcpuStat.signal_exits]).toBe(1);
    expect(words[VcpuStat.halt_wakeup]).toBe(0);
  });

  test("windows for interrupts and NMIs, and their injection", async () => {
    const vm = start();
    vm.load([0x90, ...OUT, 0xfb, 0x90, 0x90, ...OUT, HLT]);
    vm.load([0xfe, 0x06, 0x00, 0x05, 0xcf], 0x9000);
    vm.load([0x00, 0x90, 0x00, 0x00], 0x21 * 4);
    vm.load([0x00, 0x90, 0x00, 0x00], 2 * 4);
    vm.startReal();
    kernel.ioctl(vm.vcpu, Ioctl.KVM_INTERRUPT, Uint8Array.of(0x21, 0, 0, 0));
    kernel.ioctl(vm.vcpu, Ioctl.KVM_NMI);
    kernel.ioctl(vm.vcpu, Ioctl.KVM_NMI);
    await vm.enter();
    await vm.enter();
    vm.run[KvmRun.offsets.request_interrupt_window] = 1;
    expect(await vm.enter()).toBe("KVM_EXIT_IRQ_WINDOW_OPEN");
    const { words } = look(vm).vcpu;
    expect(words[VcpuStat.nmi_injections]).toBeGreaterThanOrEqual(2);
    expect(words[VcpuStat.irq_injections]).toBe(1);
    expect(words[VcpuStat.nmi_window_exits]).toBe(words[VcpuStat.exit_nmi_window]);
    expect(words[VcpuStat.irq_window_exits]).toBe(words[VcpuStat.exit_interrupt_window]);
    expect(words[VcpuStat.nmi_window_exits]).toBeGreaterThan(0);
    expect(words[VcpuStat.irq_window_exits]).toBeGreaterThan(0);
    expect(words[VcpuStat.request_irq_exits]).toBe(1);
  });

  test("slices that end at an interrupt, and at another exit", async () => {
    const vm = start();
    vm.load([0x66, 0xb9, 0x00, 0x00, 0x08, 0x00, 0x66, 0x49, 0x75, 0xfc, ...OUT, ...OUT]); // 512 Ki rounds of dec, jnz
    vm.startReal();
    kernel.stopAt(Number.POSITIVE_INFINITY); // programs the timer, which ends slices
    await vm.enter();
    const { words } = look(vm).vcpu;
    expect(words[VcpuStat.irq_exits]).toBeGreaterThan(3);
    expect(words[VcpuStat.irq_exits]).toBe(words[VcpuStat.exit_external_interrupt]);
    expect(words[VcpuStat.preemption_reported]).toBeGreaterThan(3);
    expect(words[VcpuStat.preemption_other]).toBe(0);
    kernel.sliceTicks = 0;
    await vm.enter();
    expect(look(vm).vcpu.words[VcpuStat.preemption_other]).toBe(1);
  });

  test("PAUSE, where the VM has another vCPU: the vCPU gives way when there is somebody to give way to", async () => {
    const vm = start();
    vm.load([0xf3, 0x90, 0xf3, 0x90, ...OUT, 0xf3, 0x90, ...OUT]);
    vm.startReal();
    vm.createVcpu(1);
    await vm.enter();
    const { words } = look(vm).vcpu;
    expect([words[VcpuStat.exit_pause], words[VcpuStat.directed_yield_attempted]]).toEqual([2, 2]);
    expect(words[VcpuStat.directed_yield_successful]).toBe(0);
    kernel.alone = false;
    await vm.enter();
    expect(words[VcpuStat.directed_yield_successful]).toBe(1);
    expect(look(vm).vcpu.words[VcpuStat.exit_pause]).toBe(3);
    const single = start();
    single.load([0xf3, 0x90, ...OUT]);
    single.startReal();
    await single.enter();
    expect(look(single).vcpu.words[VcpuStat.exit_pause]).toBe(0);
  });

  test("dirty logging: pages that become writable again, and the flushes that it takes", async () => {
    const vm = start({ flags: 1 }, version === 2 ? { pml: false } : {});
    vm.load([0xa0, 0x00, 0x05, 0xa2, 0x00, 0x05, ...OUT, 0xa2, 0x00, 0x05, ...OUT]); // mov al, [0x500]; mov [0x500], al
    vm.startReal();
    await vm.enter();
    const bitmap = kernel.mmap(GUEST_BYTES / 4096 / 8);
    kernel.ioctl(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, KvmDirtyLog.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) }));
    await vm.enter();
    const { vcpu, vm: counted } = look(vm);
    expect(vcpu.words[VcpuStat.pf_fast]).toBe(2);
    expect(vcpu.words[VcpuStat.pf_fixed]).toBe(vcpu.words[VcpuStat.pf_taken]);
    expect(counted.words[VmStat.remote_tlb_flush]).toBe(counted.words[VmStat.remote_tlb_flush_requests]);
    expect(counted.words[VmStat.remote_tlb_flush]).toBe(1);
  });

  test("a violation at a page that is mapped already", async () => {
    const vm = start();
    vm.load([...OUT]);
    vm.startReal();
    await vm.enter();
    const vcpu = vcpuOf(vm);
    const exit: VmxExit = {
      reason: 48,
      qualification: 2,
      instructionLength: 0,
      instructionInformation: 0,
      interruptionInformation: 0,
      vectoringInformation: 0,
      guestPhysicalAddress: 0x8000,
    };
    const host: Pick<VmxExitHost, "memoryFault"> = { memoryFault: (gpa, write) => vcpu.vm.mmu.fault(gpa, write) };
    const pages = vcpu.vm.statistics.words[VmStat.pages_4k]! + vcpu.vm.statistics.words[VmStat.pages_2m]!;
    expect(handleVmxExit(vcpu, exit, host as VmxExitHost)).toBe("resume");
    expect(look(vm).vcpu.words[VcpuStat.pf_spurious]).toBe(1);
    expect(vcpu.vm.statistics.words[VmStat.pages_4k]! + vcpu.vm.statistics.words[VmStat.pages_2m]!).toBe(pages);
  });

  test("the local APIC in the processor's hands", async () => {
    if (version === 1) return;
    const vm = start({ irqchip: true });
    const store = (address: number, value: number): number[] => [0xbb, ...little(address), 0xc7, 0x03, ...little(value)];
    const vector = 0x41;
    vm.load([
      // The current count; SVR; a pin with the vector, and its EOI
      ...[0xbb, ...little(0xfee0_0390), 0x8b, 0x03],
      ...store(0xfee0_00f0, 0x1ff),
      ...[...store(0xfec0_0000, 0x10), ...store(0xfec0_0010, vector)],
      ...store(0xfee0_00b0, 0),
      ...OUT,
    ]);
    vm.startLong();
    const state = new Uint8Array(KvmLapicState.sizeBytes);
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_LAPIC, state)).toBe(0);
    state[0x120] = 1 << (vector & 31);
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_LAPIC, state)).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    const { words } = look(vm).vcpu;
    expect([words[VcpuStat.exit_apic_access], words[VcpuStat.exit_apic_write], words[VcpuStat.exit_virtualized_eoi]]).toEqual([
      1, 1, 1,
    ]);
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_LAPIC, state)).toBe(0);
    expect(state[0x120]).toBe(0);
  });

  test("a log of modified pages that is full", async () => {
    if (version === 1) return;
    const vm = start();
    // mov edi, 0x100000; L: mov [rdi], al; add rdi, 0x1000; cmp rdi, 0x3ff000; jb L
    const all = [
      ...[0xbf, 0, 0, 0x10, 0, 0x88, 0x07, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0],
      ...[0x48, 0x81, 0xff, 0, 0xf0, 0x3f, 0, 0x72, 0xee, ...OUT],
    ];
    vm.load([...all, ...all]);
    vm.startLong();
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.setRegion({ memory_size: 0x40_0000n, flags: 1 })).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(look(vm).vcpu.words[VcpuStat.exit_pml_full]).toBe(1);
  });

  test("slots that come and go leave no pages behind", async () => {
    const vm = start({}, version === 2 ? { huge_pages: false } : {});
    const memory = kernel.mmap(0x40_0000);
    const region = { slot: 1, guest_phys_addr: 0x80_0000n, memory_size: 0x40_0000n, userspace_addr: BigInt(memory) };
    expect(vm.setRegion(region)).toBe(0);
    vm.load([0x88, 0x03, ...OUT]);
    vm.startLong({ rbx: 0x90_0000n });
    await vm.enter();
    const { words } = look(vm).vm;
    const pages = words[VmStat.pages_4k]!;
    const tables = words[VmStat.mmu_table_pages]!;
    expect(vm.setRegion({ ...region, memory_size: 0n })).toBe(0);
    look(vm);
    expect(words[VmStat.pages_4k]).toBe(pages - 1);
    expect(words[VmStat.mmu_shadow_zapped]).toBe(version === 1 ? 0 : 1);
    expect(words[VmStat.mmu_table_pages]).toBe(version === 1 ? tables : tables - 1);
  });

  test("polling, on a clock that goes on", async () => {
    if (version === 1) return;
    let now = 0;
    const parts = {
      clock: { monotonicNs: () => now },
      scheduler: {
        handleInterrupts: () => undefined,
        singleTaskRunning: () => true,
        yield: async () => {
          now += 1000;
        },
      },
    };
    const counters = new VcpuCounters(1, 0, parts.clock as never, false);
    const polling = new HaltPolling(parts as never, 30_000, counters);
    polling.learn(20_000);
    expect(await polling.poll(() => now === 3000)).toBe(true);
    expect(await polling.poll(() => false)).toBe(false);
    note(VCPU_TABLE, counters);
    const { words } = counters;
    expect([words[VcpuStat.halt_attempted_poll], words[VcpuStat.halt_successful_poll]]).toEqual([2, 1]);
    expect([words[VcpuStat.halt_poll_success_ns], words[VcpuStat.halt_poll_fail_ns]]).toEqual([3000, 10_000]);
    expect([words[VcpuStat.halt_poll_success_hist + 12], words[VcpuStat.halt_poll_fail_hist + 14]]).toEqual([1, 1]);
  });

  test("every row has moved above, but for those that say why they cannot", () => {
    const rows: readonly Row[] = [...VM_TABLE.rows, ...VCPU_TABLE.rows];
    const still = rows.filter((row) => !moved.has(row.name) && neverIn(version, row) === undefined);
    expect(still.map((row) => row.name)).toEqual([]);
    const wrong = rows.filter((row) => moved.has(row.name) && neverIn(version, row) !== undefined);
    expect(wrong.map((row) => row.name)).toEqual([]);
  });
});
