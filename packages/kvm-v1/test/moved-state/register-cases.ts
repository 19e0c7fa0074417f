/** Registers of a vCPU on the move: those of the architecture, model-specific ones, CPUID, time. */
import assert from "node:assert/strict";
import {
  GuestDebugFlag,
  Ioctl,
  KvmCpuid2,
  KvmCpuidEntry2,
  KvmDebugregs,
  KvmGuestDebug,
  KvmMsrList,
  KvmRegs,
  KvmSregs2,
  KvmXcrs,
  VcpuFpu,
  VcpuFpuFxsave,
} from "@mkvm/kvm-abi";
import { CODE } from "../test-vm.ts";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const IA32_TSC = 0x10;
const IA32_TSC_ADJUST = 0x3b;
/** Say what time it is, or where a page is that is written at once: cases of their own move these. */
const MSRS_WITH_EFFECTS: ReadonlySet<number> = new Set([
  IA32_TSC,
  IA32_TSC_ADJUST,
  0x6e0,
  0x11,
  0x12,
  0x4b56_4d00,
  0x4b56_4d01,
]);
/** In special registers already. */
const MSRS_ELSEWHERE: ReadonlySet<number> = new Set([0xc000_0080, 0xc000_0100, 0xc000_0101]);
const MSR_VALUES = [
  1n << 24n,
  1n,
  2n,
  6n,
  0x0606_0606_0606_0606n,
  0x800n,
  0x1234_5006n,
  0x7fff_1234_5000n,
  0xffff_f800n,
  0x1_8010n,
  0x1850n,
];

const UD = 6;
const GDT = 0x9000;
const IDT = 0xa000;
const HANDLER = 0xb000;

const emptyCpuid = (vm: MovingVm): void => {
  const table = new Uint8Array(KvmCpuid2.sizeBytes);
  vm.call(vm.vcpu, Ioctl.KVM_SET_CPUID2, table);
};

const setXcr0 = (vm: MovingVm, value: bigint): void => {
  vm.set(vm.vcpu, Ioctl.KVM_SET_XCRS, KvmXcrs, { nr_xcrs: 1, xcrs: [{ xcr: 0, reserved: 0, value }] });
};

function xsaveArea(components: bigint): Uint8Array {
  const area = new Uint8Array(4096);
  for (let at = 0; at < 416; at++) area[at] = 0x11 + (at & 0x3f);
  const view = new DataView(area.buffer);
  view.setUint16(0, 0x27f, true);
  view.setUint32(24, 0x1f00, true);
  view.setUint32(28, 0xffff, true);
  if (components & 4n) area.fill(0x5a, 576, 832);
  view.setBigUint64(512, components, true);
  return area;
}

export const registerCases: readonly MoveCase[] = [
  {
    name: "general registers",
    moves: ["vcpu.registers.regs.*"],
    async run(vm) {
      const names = Object.keys(KvmRegs.fields) as (keyof ReturnType<typeof vm.regs>)[];
      const values = Object.fromEntries(
        names.map((name, index) => [name, 0x1111_2222_3333_0000n + BigInt(index)]),
      ) as ReturnType<typeof vm.regs>;
      values.rflags = 0x20_0ad7n;
      vm.set(vm.vcpu, Ioctl.KVM_SET_REGS, KvmRegs, values);
      await vm.roundTrip(() => assert.deepEqual(vm.regs(), values));
    },
  },
  {
    name: "segments, tables and control registers",
    moves: [
      ...["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"].flatMap((segment) =>
        ["base", "limit", "selector", "type", "dpl", "db", "l", "g", "avl"].map(
          (field) => `vcpu.registers.sregs.${segment}.${field}`,
        ),
      ),
      ...["gdt.base", "gdt.limit", "idt.base", "idt.limit"].map((field) => `vcpu.registers.sregs.${field}`),
      ...["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"].map((field) => `vcpu.registers.sregs.${field}`),
    ],
    async run(vm) {
      const values = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
      const segments = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"] as const;
      segments.forEach((name, index) => {
        const { s } = values[name];
        values[name] = {
          base: 0x1000n * BigInt(index + 1),
          limit: 0xfff_ffff,
          selector: 8 * (index + 1),
          type: (12 + index) & 15,
          present: 1,
          dpl: 3,
          db: 1,
          s,
          l: 1,
          g: 1,
          avl: 1,
          unusable: 0,
          padding: 0,
        };
      });
      values.ldt.type = 5;
      values.tr.type = 3;
      values.gdt = { base: 0xffff_8000_0000_1000n, limit: 0x7f, padding: [0, 0, 0] };
      values.idt = { base: 0xffff_8000_0000_2000n, limit: 0x1ff, padding: [0, 0, 0] };
      Object.assign(values, { cr0: 0x8005_0033n, cr2: 0xdead_b000n, cr3: 0x5000n, cr4: 0x6a0n, cr8: 5n, efer: 0xd01n });
      values.apic_base = 0xfee0_0d00n;
      vm.set(vm.vcpu, Ioctl.KVM_SET_SREGS2, KvmSregs2, values);
      const kept = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
      for (const name of ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "gdt", "idt"] as const)
        assert.deepEqual(kept[name], values[name], name);
      await vm.roundTrip(() => assert.deepEqual(vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2), kept));
    },
  },
  {
    name: "segments that are not there",
    moves: ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"].flatMap((segment) =>
      ["present", "s", "unusable"].map((field) => `vcpu.registers.sregs.${segment}.${field}`),
    ),
    async run(vm) {
      const values = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
      for (const name of ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"] as const)
        Object.assign(values[name], { present: 0, unusable: 1, s: 1 - values[name].s });
      vm.set(vm.vcpu, Ioctl.KVM_SET_SREGS2, KvmSregs2, values);
      const kept = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
      assert.equal(kept.fs.unusable, 1);
      await vm.roundTrip(() => assert.deepEqual(vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2), kept));
    },
  },
  {
    name: "page-directory pointers that the processor has loaded",
    moves: ["vcpu.registers.sregs.flags", "vcpu.registers.sregs.pdptrs"],
    // Under SVM the processor reads them from memory when it needs them
    vendors: ["intel"],
    async run(vm) {
      const values = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
      // Memory has zeros there: what was loaded stays
      Object.assign(values, { cr0: 0x8000_0033n, cr3: 0x6000n, cr4: 0x20n, flags: 1n });
      values.pdptrs = [0x7001n, 0x8001n, 0x9001n, 0xa001n];
      vm.set(vm.vcpu, Ioctl.KVM_SET_SREGS2, KvmSregs2, values);
      await vm.roundTrip(() => {
        const { flags, pdptrs } = vm.get(vm.vcpu, Ioctl.KVM_GET_SREGS2, KvmSregs2);
        assert.deepEqual({ flags, pdptrs }, { flags: 1n, pdptrs: values.pdptrs });
      });
    },
  },
  {
    name: "floating-point and vector state",
    moves: ["vcpu.fpu.xsave", "vcpu.fpu.xcr0"],
    async run(vm) {
      setXcr0(vm, 7n);
      vm.call(vm.vcpu, Ioctl.KVM_SET_XSAVE, xsaveArea(7n));
      const read = (): Uint8Array => {
        const area = new Uint8Array(4096);
        vm.call(vm.vcpu, Ioctl.KVM_GET_XSAVE, area);
        return area;
      };
      const kept = read();
      assert.deepEqual(kept.subarray(576, 832), new Uint8Array(256).fill(0x5a));
      await vm.roundTrip(() => {
        assert.deepEqual(read(), kept);
        assert.equal(vm.get(vm.vcpu, Ioctl.KVM_GET_XCRS, KvmXcrs).xcrs[0]!.value, 7n);
      });
    },
  },
  {
    name: "floating-point state, by receivers that know x87 and SSE alone",
    moves: ["vcpu.fpu@1.*", "vm.shape.abi_feature_level"],
    async run(vm) {
      emptyCpuid(vm);
      setXcr0(vm, 3n);
      vm.call(vm.vcpu, Ioctl.KVM_SET_XSAVE, xsaveArea(3n));
      const read = (): Uint8Array => {
        const area = new Uint8Array(4096);
        vm.call(vm.vcpu, Ioctl.KVM_GET_XSAVE, area);
        return area;
      };
      const kept = read();
      const version = VcpuFpuFxsave.version;
      const receives = vm.pair.kvm1.transfer.receives.map((each) =>
        each.name === VcpuFpu.name ? { name: each.name, minVersion: version, maxVersion: version } : each,
      );
      for (let moves = 0; moves < 2; moves++) {
        await vm.move({ receives });
        assert.deepEqual(read(), kept);
        assert.equal(vm.get(vm.vcpu, Ioctl.KVM_GET_XCRS, KvmXcrs).xcrs[0]!.value, 3n);
      }
    },
  },
  {
    name: "every model-specific register of KVM_GET_MSR_INDEX_LIST",
    moves: ["vcpu.msrs[].index", "vcpu.msrs[].data"],
    async run(vm) {
      const list = new Uint8Array(KvmMsrList.sizeBytes + 256 * 4);
      KvmMsrList.set(list, "nmsrs", 256);
      vm.call(vm.system, Ioctl.KVM_GET_MSR_INDEX_LIST, list);
      const indices = [...new Uint32Array(list.buffer, KvmMsrList.sizeBytes, KvmMsrList.get(list, "nmsrs"))];
      const set = new Map<number, bigint>();
      const same: number[] = [];
      for (const index of indices) {
        if (MSRS_WITH_EFFECTS.has(index) || MSRS_ELSEWHERE.has(index)) continue;
        const before = vm.msr(index);
        assert(before !== undefined, `MSR 0x${index.toString(16)} is listed and cannot be read`);
        const takes = MSR_VALUES.some((value) => vm.setMsr(index, value) && vm.msr(index) !== before);
        if (takes) set.set(index, vm.msr(index)!);
        else same.push(index);
      }
      // Those that have one value only: SMI count, miscellaneous features, XSS
      assert.deepEqual(
        same.map((index) => index.toString(16)),
        ["34", "140", "da0"],
      );
      await vm.roundTrip(() => {
        for (const [index, value] of set) assert.equal(vm.msr(index), value, `MSR 0x${index.toString(16)}`);
      });
    },
  },
  {
    name: "debug registers",
    moves: ["vcpu.debug.registers.db", "vcpu.debug.registers.dr6", "vcpu.debug.registers.dr7"],
    async run(vm) {
      const values = { db: [0x1000n, 0x2000n, 0x3000n, 0x4000n], dr6: 0xffff_4ff1n, dr7: 0x402n };
      vm.set(vm.vcpu, Ioctl.KVM_SET_DEBUGREGS, KvmDebugregs, values);
      await vm.roundTrip(() => {
        const { db, dr6, dr7 } = vm.get(vm.vcpu, Ioctl.KVM_GET_DEBUGREGS, KvmDebugregs);
        assert.deepEqual({ db, dr6, dr7 }, values);
      });
    },
  },
  {
    name: "a debugger's breakpoints",
    moves: ["vcpu.debug.guest_debug_control", "vcpu.debug.guest_debug_registers"],
    async run(vm) {
      // nop; nop; in al, 0x10
      vm.load([0x90, 0x90, 0xe4, 0x10]);
      vm.startReal();
      const debugreg = [BigInt(CODE + 1), 0n, 0n, 0n, 0n, 0n, 0n, 0x402n];
      const { KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP } = GuestDebugFlag;
      const control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
      vm.set(vm.vcpu, Ioctl.KVM_SET_GUEST_DEBUG, KvmGuestDebug, { control, arch: { debugreg } });
      await vm.roundTrip(() => undefined);
      assert.equal(await vm.enter(), "KVM_EXIT_DEBUG");
      assert.equal(vm.regs().rip, BigInt(CODE + 1));
    },
  },
  {
    name: "the CPUID table",
    moves: ["function", "index", "flags", "eax", "ebx", "ecx", "edx"].map((field) => `vcpu.cpuid[].${field}`),
    async run(vm) {
      const table = new Uint8Array(KvmCpuid2.tailOffset(2));
      KvmCpuid2.set(table, "nent", 2);
      const entry = { function: 0x4000_0070, index: 3, flags: 1, eax: 11, ebx: 12, ecx: 13, edx: 14 };
      KvmCpuidEntry2.write(table, { function: 0x8000_0000, eax: 0x8000_0001 }, KvmCpuid2.tailOffset(0));
      KvmCpuidEntry2.write(table, entry, KvmCpuid2.tailOffset(1));
      vm.call(vm.vcpu, Ioctl.KVM_SET_CPUID2, table);
      await vm.roundTrip(() => {
        const read = new Uint8Array(table.length);
        KvmCpuid2.set(read, "nent", 2);
        vm.call(vm.vcpu, Ioctl.KVM_GET_CPUID2, read);
        assert.deepEqual(read, table);
      });
    },
  },
  {
    name: "which instructions the guest lacks by its CPUID table",
    moves: ["ebx", "edx"].map((field) => `vcpu.cpuid[].${field}`),
    async run(vm) {
      vm.write64(GDT + 8, 0x0020_9b00_0000_0000n);
      vm.write64(IDT + UD * 16, BigInt(HANDLER) | (8n << 16n) | (0x8e00n << 32n));
      vm.load([0xb0, UD, 0xe6, 0x10], HANDLER); // mov al, 6; out 0x10, al
      const told = async (code: readonly number[]): Promise<number> => {
        vm.load([...code, 0xb0, 0, 0xe6, 0x10]);
        vm.startLong({ rax: 2n, rbx: BigInt(GDT) });
        const sregs = vm.sregs();
        sregs.gdt = { base: BigInt(GDT), limit: 0xf, padding: [0, 0, 0] };
        sregs.idt = { base: BigInt(IDT), limit: 0xff, padding: [0, 0, 0] };
        vm.setSregs(sregs);
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        return vm.io.data[0]!;
      };
      const rdtscp = [0x0f, 0x01, 0xf9];
      const invpcid = [0x66, 0x0f, 0x38, 0x82, 0x03];
      await vm.roundTrip(async () => assert.deepEqual([await told(rdtscp), await told(invpcid)], [0, 0]));
      emptyCpuid(vm);
      await vm.roundTrip(async () => assert.deepEqual([await told(rdtscp), await told(invpcid)], [UD, UD]));
    },
  },
  {
    name: "the time-stamp counter and its adjustment",
    moves: ["vcpu.tsc.offset", "vcpu.tsc.adjust"],
    async run(vm) {
      assert(vm.setMsr(IA32_TSC, 0x1234_5678_9abcn) && vm.setMsr(IA32_TSC_ADJUST, 0x77n));
      // The host's counter stands still while no guest runs
      await vm.roundTrip(() => {
        assert.equal(vm.msr(IA32_TSC), 0x1234_5678_9abcn);
        assert.equal(vm.msr(IA32_TSC_ADJUST), 0x77n);
      });
    },
  },
];
