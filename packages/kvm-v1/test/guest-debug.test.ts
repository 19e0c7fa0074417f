/** KVM_SET_GUEST_DEBUG of both versions, on both vendors' machines. */
import {
  Errno,
  GuestDebugFlag as Flag,
  Ioctl,
  KvmDebugExitArch,
  KvmDebugregs,
  KvmGuestDebug,
  KvmRegs,
  KvmRun,
  type ModuleInstance,
} from "@mkvm/kvm-abi";
import { beforeEach, describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { CODE, TestVm } from "./test-vm.ts";

const BS = 0x4000n;
const BD = 0x2000n;
const DR6_FIXED = 0xffff_0ff0n;
const TF = 0x100n;
const DB = 1;
const BP = 3;
const HLT = 0xf4;
const CPUID = [0x0f, 0xa2];
const { KVM_GUESTDBG_ENABLE: ENABLE, KVM_GUESTDBG_SINGLESTEP: STEP } = Flag;
const STEPS = ENABLE | STEP;

describe.each(["intel", "amd"] as const)("on a machine of vendor %s", (vendor) => {
  describe.each([
    ["v1", v1],
    ["v2", v2],
  ] as const)("%s", (name, module) => {
    let kernel: InThreadKernel;
    let instance: ModuleInstance;
    let vm: TestVm;

    beforeEach(() => {
      kernel = new InThreadKernel(vendor);
      instance = kernel.load(name, module);
      vm = new TestVm(kernel, instance, { irqchip: true });
    });

    function debug(control: number, registers: Partial<Record<number, number>> = {}): number {
      const debugreg = Array.from({ length: 8 }, (_, index) => BigInt(registers[index] ?? 0));
      return kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_GUEST_DEBUG, KvmGuestDebug.encode({ control, arch: { debugreg } }));
    }
    function start(...code: number[]): void {
      vm.load(code);
      vm.startReal();
    }
    function cause(): { exception: number; pc: number; dr6: bigint } {
      const { exception, pc, dr6 } = KvmDebugExitArch.read(vm.run, KvmRun.fields.exit.members.debug.offsets.arch);
      return { exception, pc: Number(pc) - CODE, dr6: dr6 ^ DR6_FIXED };
    }
    async function stops(): Promise<ReturnType<typeof cause>> {
      expect(await vm.enter()).toBe("KVM_EXIT_DEBUG");
      return cause();
    }
    const regs = () => {
      const bytes = new Uint8Array(KvmRegs.sizeBytes);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_REGS, bytes)).toBe(0);
      return KvmRegs.read(bytes);
    };
    const debugregs = () => {
      const bytes = new Uint8Array(KvmDebugregs.sizeBytes);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_DEBUGREGS, bytes)).toBe(0);
      return KvmDebugregs.read(bytes);
    };

    test("steps, over instructions that exit too, and hides TF", async () => {
      // nop; cpuid; out 0x10, al; pushf; pop ax; sti; hlt
      start(0x90, ...CPUID, 0xe6, 0x10, 0xf8, 0x90, HLT);
      debug(STEPS);
      expect(await stops()).toEqual({ exception: DB, pc: 1, dr6: BS });
      expect(regs().rflags & TF).toBe(0n);
      expect(await stops()).toEqual({ exception: DB, pc: 3, dr6: BS });
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(await stops()).toEqual({ exception: DB, pc: 5, dr6: BS });
      expect(debugregs()).toMatchObject({ dr6: DR6_FIXED, dr7: 0x400n });
      debug(0);
      vm.load([0xe6, 0x11], CODE + 5);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(regs().rflags & TF).toBe(0n);
    });

    test("leaves single steps on branches to the guest", async () => {
      // wrmsr DEBUGCTL, BTF; set TF by popf; nop; nop; jmp over a nop; hlt
      const wrmsr = [0x66, 0xb9, 0xd9, 1, 0, 0, 0x66, 0xb8, 2, 0, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30];
      start(...wrmsr, 0x9c, 0x58, 0x0d, 0, 1, 0x50, 0x9d, 0x90, 0x90, 0xeb, 1, 0x90, HLT);
      vm.load([0x00, 0x70, 0, 0], DB * 4);
      vm.load([0xe6, 0x22], 0x7000);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.io.port).toBe(0x22);
      expect(vm.u32(Number(regs().rsp) & 0xffff) & 0xffff).toBe(CODE + wrmsr.length + 12);
    });

    test("steps over HLT", async () => {
      start(HLT, 0x90);
      debug(STEPS);
      expect(await stops()).toEqual({ exception: DB, pc: 1, dr6: BS });
    });

    test("stops at INT3, which has not been, and gives it to the guest on request", async () => {
      start(0x90, 0xcc, 0xe6, 0x10);
      debug(ENABLE | Flag.KVM_GUESTDBG_USE_SW_BP);
      expect(await stops()).toMatchObject({ exception: BP, pc: 1 });
      expect(await stops()).toMatchObject({ exception: BP, pc: 1 });
      // The vector table's entry leads to an OUT, whose stack has the address behind INT3
      vm.load([0x00, 0x70, 0, 0], BP * 4);
      vm.load([0xe6, 0x22], 0x7000);
      expect(debug(ENABLE | Flag.KVM_GUESTDBG_USE_SW_BP | Flag.KVM_GUESTDBG_INJECT_BP)).toBe(0);
      expect(debug(ENABLE | Flag.KVM_GUESTDBG_INJECT_BP)).toBe(-Errno.EBUSY);
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
      expect(vm.io.port).toBe(0x22);
      expect(vm.u32(Number(regs().rsp) & 0xffff) & 0xffff).toBe((CODE + 2) & 0xffff);
    });

    test("has breakpoints on code and data of its own, while the guest has its registers", async () => {
      // mov eax, 0x1234; mov dr0, eax; mov ebx, dr0; mov [0x500], eax; nop; out 0x10, al
      start(0x66, 0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xc3, 0x66, 0xa3, 0x00, 0x05, 0x90, 0xe6, 0x10);
      debug(ENABLE | Flag.KVM_GUESTDBG_USE_HW_BP, { 0: CODE + 6, 1: 0x500, 7: 0x400 | 2 | 8 | (13 << 20) });
      expect(await stops()).toEqual({ exception: DB, pc: 6, dr6: 1n });
      debug(ENABLE | Flag.KVM_GUESTDBG_USE_HW_BP, { 1: 0x500, 7: 0x400 | 8 | (13 << 20) });
      expect(await stops()).toEqual({ exception: DB, pc: 16, dr6: 2n });
      expect(regs().rbx).toBe(0x1234n);
      expect(debugregs()).toMatchObject({ db: [0x1234n, 0n, 0n, 0n], dr7: 0x400n, dr6: DR6_FIXED });
      expect(await vm.enter()).toBe("KVM_EXIT_IO");
    });

    test("stops where the guest's own DR7.GD would", async () => {
      // mov eax, 0x2400; mov dr7, eax; mov eax, dr3; hlt
      start(0x66, 0xb8, 0x00, 0x24, 0, 0, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xd8, HLT);
      debug(ENABLE | Flag.KVM_GUESTDBG_USE_HW_BP);
      expect(await stops()).toEqual({ exception: DB, pc: 9, dr6: BD });
      expect(debugregs().dr7).toBe(0x2400n);
    });

    test("keeps interrupts away with BLOCKIRQ", async () => {
      vm.load([0x00, 0x70, 0, 0], 2 * 4);
      start(0x90, 0x90, 0xe6, 0x10);
      debug(STEPS | Flag.KVM_GUESTDBG_BLOCKIRQ);
      expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_NMI)).toBe(0);
      expect(await stops()).toEqual({ exception: DB, pc: 1, dr6: BS });
      expect(await stops()).toEqual({ exception: DB, pc: 2, dr6: BS });
    });
  });
});

test.each(["intel", "amd"] as const)("debugging goes on after a move (%s)", async (vendor) => {
  const kernel = new InThreadKernel(vendor);
  const from = kernel.load("kvm1", v1);
  const to = kernel.load("kvm2", v2);
  const vm = new TestVm(kernel, from, { irqchip: true });
  vm.load([0x90, 0xe6, 0x10, 0x90, HLT]);
  vm.startReal();
  kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_GUEST_DEBUG, KvmGuestDebug.encode({ control: STEPS }));
  expect(await vm.enter()).toBe("KVM_EXIT_DEBUG");
  expect(await vm.enter()).toBe("KVM_EXIT_IO");
  const file = kernel.file(vm.fd);
  const incoming = await to.transfer.prepare(kernel.process, from.transfer.describe(file, to.transfer.receives));
  if (typeof incoming === "string") throw new Error(incoming);
  expect(incoming.restore(from.transfer.save(file, to.transfer.receives))).toBeUndefined();
  const changed = [...from.transfer.filesOf(file), kernel.file(vm.system)].map((each) => ({
    each,
    ...incoming.commit(from.transfer.roleOf(each)),
  }));
  from.transfer.releaseMoved(file)?.();
  for (const { each, operations, privateData } of changed) Object.assign(each, { operations, privateData });
  for (const pc of [3, 4]) {
    expect(await vm.enter()).toBe("KVM_EXIT_DEBUG");
    const at = KvmRun.fields.exit.members.debug.offsets.arch;
    expect(Number(KvmDebugExitArch.read(vm.run, at).pc) - CODE).toBe(pc);
  }
});
