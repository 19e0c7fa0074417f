/** What KVM does to a guest's memory in its place goes by the guest's own tables, and by all of their rights. */
import assert from "node:assert/strict";
import {
  Ioctl,
  KvmCpuid2,
  KvmCpuidEntry2,
  KvmRegs,
  type KvmSegment,
  KvmSregs,
  KvmTranslation,
  KvmXsave,
  type StructValue,
} from "@mkvm/kvm-abi";
import { BenchVm, type Calls, CODE, ok } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const HLT = 0xf4;
const INSB = 0x6c;
const OUTSB = 0x6e;
const PUSH_FROM_DEVICE = [0xff, 0x33]; // push qword [rbx]
const PF = 14;
const TABLES = 0x1_0000;
const LAST_TABLE = 0x1_3000;
const IDT = 0x1_4000;
const GDT = 0x1_5000;
const TASK = 0x1_6000;
const HANDLER = 0x1_7000;
const KERNEL_STACK = 0x1_9000;
/** User pages: one with a key of its own, and one where there is no memory. */
const KEYED = 0x2_0000;
const DEVICE = 0x1f_0000;
const KEY = 5n;
const USER_CODE = 0x1b;
const USER_DATA = 0x23;
const [PAE, SMAP, PKE] = [0x20n, 1n << 21n, 1n << 22n];
const [AC, IOPL_3] = [0x4_0000n, 0x3000n];
/** Of the XSAVE area: XSTATE_BV, and PKRU with its bit there. */
const XSTATE_BV = 512;
const PKRU_AT = 2688;
const PKRU_BIT = 1n << 9n;

const segment = (selector: number, type: number, dpl: number, l: number): StructValue<(typeof KvmSegment)["fields"]> => ({
  ...{ base: 0n, limit: 0xffff_ffff, selector, type, present: 1, dpl, db: 1 - l, s: 1, l, g: 1 },
  ...{ avl: 0, unusable: 0, padding: 0 },
});

/** 64-bit user code with I/O privilege, over 2 MiB that are mapped to themselves; a page fault halts in the kernel. */
class UserGuest {
  readonly vm: BenchVm;
  readonly features: readonly [ebx: number, ecx: number];
  /** Where the code is: each time elsewhere, since what waits to be completed is told by its address. */
  at = CODE;

  constructor(vm: BenchVm, features: readonly [number, number]) {
    this.vm = vm;
    this.features = features;
  }

  static async create(calls: Calls): Promise<UserGuest> {
    const vm = await BenchVm.create(calls);
    const table = new Uint8Array(KvmCpuid2.sizeBytes + 128 * KvmCpuidEntry2.sizeBytes);
    KvmCpuid2.set(table, "nent", 128);
    ok(await calls.call(vm.systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table));
    const supported = calls.result(table.length);
    ok(await calls.call(vm.vcpuFd, Ioctl.KVM_SET_CPUID2, supported));
    const entries = Array.from({ length: KvmCpuid2.get(supported, "nent") }, (_, i) =>
      KvmCpuidEntry2.read(supported, KvmCpuid2.tailOffset(i)),
    );
    const leaf7 = entries.find((entry) => entry.function === 7 && entry.index === 0);
    const guest = new UserGuest(vm, [leaf7?.ebx ?? 0, leaf7?.ecx ?? 0]);
    const word = (at: number, value: bigint): void => calls.sys.memory.view.setBigUint64(vm.ram + at, value, true);
    for (let at = TABLES; at < LAST_TABLE; at += 0x1000) word(at, BigInt(at + 0x1000) | 7n);
    for (let i = 0; i < 512; i++) word(LAST_TABLE + i * 8, BigInt(i * 0x1000) | 7n);
    guest.mapKeyed(7n);
    word(IDT + PF * 16, BigInt(HANDLER & 0xffff) | (8n << 16n) | (0x8e00n << 32n) | (BigInt(HANDLER >> 16) << 48n));
    word(GDT + 8, 0x0020_9b00_0000_0000n);
    word(TASK + 4, BigInt(KERNEL_STACK));
    vm.put(HANDLER, HLT);
    return guest;
  }

  hasKeys(): boolean {
    return (this.features[1] & 8) !== 0;
  }
  hasSmap(): boolean {
    return (this.features[0] & (1 << 20)) !== 0;
  }

  mapKeyed(rights: bigint): void {
    const { view } = this.vm.calls.sys.memory;
    view.setBigUint64(this.vm.ram + LAST_TABLE + (KEYED >> 12) * 8, BigInt(KEYED) | rights | (KEY << 59n), true);
  }

  /** Behind the code of before, with `cr4` beside PAE and the rights of the page's key. */
  async start(code: readonly number[], cr4: bigint, keyRights: number, flags = 0n, registers = {}): Promise<void> {
    const { calls, vcpuFd } = this.vm;
    this.at += 0x10;
    this.vm.put(this.at, ...code);
    const sregs = await calls.get(vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    const data = segment(USER_DATA, 3, 3, 0);
    Object.assign(sregs, { cs: segment(USER_CODE, 11, 3, 1), ds: data, es: data, ss: data, fs: data, gs: data });
    Object.assign(sregs, { tr: { ...segment(0x28, 11, 0, 0), base: BigInt(TASK), limit: 0x67, s: 0, db: 0, g: 0 } });
    Object.assign(sregs, { gdt: { base: BigInt(GDT), limit: 0x2f }, idt: { base: BigInt(IDT), limit: 0xfff } });
    Object.assign(sregs, { cr0: 0x8001_0033n, cr2: 0n, cr3: BigInt(TABLES), cr4: PAE | cr4, efer: 0xd00n });
    ok(await calls.set(vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    const xsave = await calls.get(vcpuFd, Ioctl.KVM_GET_XSAVE, KvmXsave);
    const area = new DataView(xsave.region.buffer, xsave.region.byteOffset);
    area.setBigUint64(XSTATE_BV, area.getBigUint64(XSTATE_BV, true) | (this.hasKeys() ? PKRU_BIT : 0n), true);
    if (this.hasKeys()) area.setUint32(PKRU_AT, keyRights << (2 * Number(KEY)), true);
    ok(await calls.set(vcpuFd, Ioctl.KVM_SET_XSAVE, KvmXsave, xsave));
    const rflags = 2n | IOPL_3 | flags;
    const addresses = { rip: BigInt(this.at), rsp: 0x8000n, rsi: BigInt(KEYED), rdi: BigInt(KEYED), rbx: BigInt(DEVICE) };
    ok(await calls.set(vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, { ...addresses, rdx: 0x10n, rflags, ...registers }));
  }

  /** The page fault that the guest halts in: its error code, address, and where it was. */
  async fault(): Promise<[error: number, address: number, rip: number]> {
    await this.vm.exit("KVM_EXIT_HLT");
    const { calls, vcpuFd, ram } = this.vm;
    const { view } = calls.sys.memory;
    const regs = await this.vm.regs();
    assert.equal(Number(regs.rip), HANDLER + 1);
    assert.equal(Number(regs.rsp), KERNEL_STACK - 48);
    const sregs = await calls.get(vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    const word = (index: number): number => Number(view.getBigUint64(ram + KERNEL_STACK - 48 + index * 8, true));
    return [word(0), Number(sregs.cr2), word(1)];
  }

  async translates(linear: number): Promise<boolean> {
    const { calls, vcpuFd } = this.vm;
    const input = { linear_address: BigInt(linear) };
    const { valid, physical_address } = await calls.get(vcpuFd, Ioctl.KVM_TRANSLATE, KvmTranslation, input);
    assert.equal(physical_address, valid === 0 ? 0xffff_ffff_ffff_ffffn : BigInt(linear));
    return valid !== 0;
  }
}

const [AD, WD] = [1, 2];

export const emulatedAccessChecks: readonly Check[] = [
  {
    name: "string I/O and emulated pushes heed protection keys, with their bit in the error code",
    async run(calls) {
      const guest = await UserGuest.create(calls);
      assert(guest.hasKeys());
      const { vm } = guest;
      const data = (run: DataView): number => Number(run.getBigUint64(40, true));
      // OUTS reads, before it goes anywhere
      await guest.start([OUTSB], PKE, WD);
      await vm.exit("KVM_EXIT_IO");
      await guest.start([OUTSB], PKE, AD);
      assert.deepEqual(await guest.fault(), [0x25, KEYED, guest.at]);
      await guest.start([OUTSB], 0n, AD | WD);
      await vm.exit("KVM_EXIT_IO");
      // INS writes, when it is back
      vm.put(KEYED, 0x11);
      await guest.start([INSB], PKE, WD);
      const run = await vm.exit("KVM_EXIT_IO");
      run.setUint8(data(run), 0x77);
      assert.deepEqual(await guest.fault(), [0x27, KEYED, guest.at]);
      assert.equal(vm.byte(KEYED), 0x11);
      await guest.start([INSB], PKE, 0);
      const allowed = await vm.exit("KVM_EXIT_IO");
      allowed.setUint8(data(allowed), 0x77);
      // HLT is not the user's
      vm.put(IDT + 13 * 16, ...Array.from({ length: 8 }, (_, i) => vm.byte(IDT + PF * 16 + i)));
      vm.put(guest.at + 1, HLT);
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(vm.byte(KEYED), 0x77);
      // The stack of an instruction that KVM carries out since its other operand is a device
      for (const [rights, isWriteFault] of [
        [WD, true],
        [AD, true],
        [0, false],
      ] as const) {
        await guest.start([...PUSH_FROM_DEVICE, HLT], PKE, rights, 0n, { rsp: BigInt(KEYED + 0x100) });
        await vm.exit("KVM_EXIT_MMIO");
        if (isWriteFault) assert.deepEqual(await guest.fault(), [0x27, KEYED + 0xf8, guest.at]);
        else await vm.exit("KVM_EXIT_HLT");
      }
    },
  },
  {
    name: "KVM_TRANSLATE goes by what supervisor code may reach",
    async run(calls) {
      const guest = await UserGuest.create(calls);
      await guest.start([HLT], 0n, AD);
      assert.equal(await guest.translates(KEYED), true);
      await guest.start([HLT], PKE, WD);
      assert.equal(await guest.translates(KEYED), true);
      await guest.start([HLT], PKE, AD);
      assert.equal(await guest.translates(KEYED), false);
      // Keys of the supervisor's pages forbid nothing
      guest.mapKeyed(3n);
      assert.equal(await guest.translates(KEYED), true);
      guest.mapKeyed(0n);
      assert.equal(await guest.translates(KEYED), false);
      guest.mapKeyed(7n);
      if (!guest.hasSmap()) return;
      await guest.start([HLT], SMAP, 0);
      assert.equal(await guest.translates(KEYED), false);
      await guest.start([HLT], SMAP, 0, AC);
      assert.equal(await guest.translates(KEYED), true);
    },
  },
];
