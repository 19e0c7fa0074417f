/**
 * What every KVM version must do, as user space sees it: one suite, run against each. Each check has a process of its own, with
 * nothing but system calls. Valid cases are paired with the invalid ones beside them.
 */
import assert from "node:assert/strict";
import {
  Ioctl,
  KvmCpuid2,
  KvmCpuidEntry2,
  KvmDebugregs,
  KvmDirtyLog,
  KvmFpu,
  KvmInterrupt,
  KvmIrqLevel,
  KvmLapicState,
  KvmMpState,
  KvmMsrEntry,
  KvmMsrList,
  KvmMsrs,
  KvmPitConfig,
  KvmRegs,
  KvmRun,
  KvmSregs,
  KvmStatsDesc,
  KvmStatsHeader,
  KvmVcpuEvents,
  MemoryFlag,
  VCPU_MMAP_SIZE_BYTES,
} from "@mkvm/kvm-abi";
import { BenchVm, type Calls, CODE, fails, ok, RAM_BYTES, setSlot } from "./bench-vm.ts";
import { cpuidChecks } from "./cpuid-checks.ts";
import { emulatedAccessChecks } from "./emulated-access-checks.ts";
import { eventfdChecks } from "./eventfd-checks.ts";
import { memoryChecks } from "./memory-checks.ts";
import { msrChecks } from "./msr-checks.ts";
import { smpChecks } from "./smp-checks.ts";
import { syncRegsChecks } from "./sync-regs-checks.ts";

export interface Check {
  name: string;
  run(calls: Calls): Promise<void>;
}

const check = (name: string, run: (calls: Calls) => Promise<void>): Check => ({ name, run });
const exits = KvmRun.fields.exit.members;
const HLT = 0xf4;

/** Values of a statistics descriptor by name, read as its header tells. */
async function statisticsOf(calls: Calls, fd: number): Promise<Map<string, bigint[]>> {
  const { sys } = calls;
  const room = 1 << 17;
  const buffer = ok(sys.mmap(room, -1, 0));
  const length = ok(sys.pread(fd, buffer, room, 0));
  assert(length < room);
  const bytes = sys.memory.u8.slice(buffer, buffer + length);
  ok(sys.munmap(buffer, room));
  const header = KvmStatsHeader.read(bytes);
  const text = (at: number) => new TextDecoder().decode(bytes.subarray(at, at + header.name_size)).replace(/\0.*$/s, "");
  assert.match(text(header.id_offset), /^kvm-\d+(\/vcpu-\d+)?$/);
  const values = new Map<string, bigint[]>();
  for (let index = 0; index < header.num_desc; index++) {
    const at = header.desc_offset + index * (KvmStatsDesc.sizeBytes + header.name_size);
    const { size, offset } = KvmStatsDesc.read(bytes, at);
    const data = new DataView(bytes.buffer, header.data_offset + offset, size * 8);
    values.set(
      text(at + KvmStatsDesc.sizeBytes),
      Array.from({ length: size }, (_, word) => data.getBigUint64(word * 8, true)),
    );
  }
  return values;
}

export const contract: readonly Check[] = [
  check("the system descriptor answers version, extensions and the size of kvm_run", async (calls) => {
    const fd = ok(calls.sys.open("/dev/kvm"));
    assert.equal(await calls.call(fd, Ioctl.KVM_GET_API_VERSION), 12);
    assert.equal(await calls.call(fd, Ioctl.KVM_GET_VCPU_MMAP_SIZE), VCPU_MMAP_SIZE_BYTES);
    assert.equal(await calls.call(fd, Ioctl.KVM_CHECK_EXTENSION, 0x7fff_ffff), 0);
    fails(await calls.call(fd, Ioctl.KVM_GET_API_VERSION, 1), "EINVAL");
    fails(await calls.call(fd, Ioctl.KVM_CREATE_VM, 12345), "EINVAL");
  }),
  check("an ioctl that a descriptor does not have is ENOTTY", async (calls) => {
    const vm = await BenchVm.create(calls);
    fails(await calls.call(vm.systemFd, Ioctl.KVM_RUN), "ENOTTY");
    fails(await calls.call(vm.vmFd, Ioctl.KVM_GET_REGS), "ENOTTY");
    fails(await calls.call(vm.vcpuFd, 0xae_fe), "ENOTTY");
  }),
  check("statistics: a descriptor of the VM and of a vCPU, read as the header says, and nothing but read", async (calls) => {
    const { sys } = calls;
    const vm = await BenchVm.create(calls);
    assert.equal(await vm.has("KVM_CAP_BINARY_STATS_FD"), 1);
    fails(await calls.call(vm.systemFd, Ioctl.KVM_GET_STATS_FD), "ENOTTY");
    const ofVm = ok(await calls.call(vm.vmFd, Ioctl.KVM_GET_STATS_FD));
    const ofVcpu = ok(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_STATS_FD));
    assert(new Set([vm.vmFd, vm.vcpuFd, ofVm, ofVcpu]).size === 4);
    assert.deepEqual((await statisticsOf(calls, ofVcpu)).get("exits"), [0n]);
    vm.code(0xe6, 0x80, HLT); // out 0x80, al; hlt
    await vm.exit("KVM_EXIT_IO");
    await vm.exit("KVM_EXIT_HLT");
    const vcpu = await statisticsOf(calls, ofVcpu);
    assert.deepEqual(vcpu.get("io_exits"), [1n]);
    assert.deepEqual(vcpu.get("halt_exits"), [1n]);
    assert(vcpu.get("exits")![0] >= 2n);
    assert.equal(vcpu.get("halt_wait_hist")!.length, 32);
    const counted = await statisticsOf(calls, ofVm);
    assert(counted.get("pages_4k")![0] + counted.get("pages_2m")![0] > 0n);
    assert(!counted.has("exits") && !vcpu.has("pages_4k"));
    // Positions: read goes on where it was, pread leaves that alone, both end with 0
    const buffer = ok(sys.mmap(1 << 17, -1, 0));
    const whole = sys.pread(ofVm, buffer, 1 << 17, 0);
    assert.equal(await sys.read(ofVm, buffer, 24), 24);
    assert.equal(sys.pread(ofVm, buffer, 8, whole - 4), 4);
    assert.equal(await sys.read(ofVm, buffer, 1 << 17), whole - 24);
    assert.equal(await sys.read(ofVm, buffer, 8), 0);
    assert.equal(sys.pread(ofVm, buffer, 8, whole), 0);
    assert.equal(sys.pread(ofVm, buffer, 8, 1 << 30), 0);
    assert.equal(sys.pread(ofVm, buffer, 0, 0), 0);
    fails(sys.pread(ofVm, 0xffff_f000, 8, 0), "EFAULT");
    fails(sys.pread(ofVm, buffer, 8, -8), "EINVAL");
    fails(sys.write(ofVm, buffer, 8), "EINVAL");
    fails(sys.mmap(4096, ofVm, 0), "ENODEV");
    fails(await calls.call(ofVm, Ioctl.KVM_GET_STATS_FD), "ENOTTY");
    fails(sys.pread(vm.vmFd, buffer, 8, 0), "ESPIPE");
    fails(await sys.read(vm.vmFd, buffer, 8), "EINVAL");
  }),
  check("a descriptor of statistics keeps its VM", async (calls) => {
    const { sys } = calls;
    const vm = await BenchVm.create(calls);
    vm.code(HLT);
    await vm.exit("KVM_EXIT_HLT");
    const fd = ok(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_STATS_FD));
    for (const other of [vm.vcpuFd, vm.vmFd, vm.systemFd]) ok(sys.close(other));
    assert.deepEqual((await statisticsOf(calls, fd)).get("halt_exits"), [1n]);
    ok(sys.close(fd));
    fails(sys.pread(fd, vm.ram, 8, 0), "EBADF");
  }),
  check("a bad pointer is EFAULT and changes nothing", async (calls) => {
    const vm = await BenchVm.create(calls);
    const before = await vm.regs();
    fails(await calls.call(vm.vcpuFd, Ioctl.KVM_SET_REGS, 0xffff_f000), "EFAULT");
    fails(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_REGS, 0), "EFAULT");
    assert.deepEqual(await vm.regs(), before);
  }),
  check("memory slots: alignment, overlap, deletion", async (calls) => {
    const vm = await BenchVm.create(calls);
    const page = BigInt(ok(calls.sys.mmap(8192, -1, 0)));
    const region = { slot: 1, guest_phys_addr: 0x20_0000n, memory_size: 8192n, userspace_addr: page };
    fails(await setSlot(calls, vm.vmFd, { ...region, guest_phys_addr: 0x20_0001n }), "EINVAL");
    fails(await setSlot(calls, vm.vmFd, { ...region, memory_size: 100n }), "EINVAL");
    fails(await setSlot(calls, vm.vmFd, { ...region, userspace_addr: page + 1n }), "EINVAL");
    fails(await setSlot(calls, vm.vmFd, { ...region, flags: 0x80 }), "EINVAL");
    fails(await setSlot(calls, vm.vmFd, { ...region, guest_phys_addr: 0x1000n }), "EEXIST");
    fails(await setSlot(calls, vm.vmFd, { ...region, memory_size: 0n }), "EINVAL");
    ok(await setSlot(calls, vm.vmFd, region));
    ok(await setSlot(calls, vm.vmFd, { ...region, guest_phys_addr: 0x40_0000n }));
    fails(await setSlot(calls, vm.vmFd, { ...region, slot: 2, guest_phys_addr: 0x40_1000n }), "EEXIST");
    ok(await setSlot(calls, vm.vmFd, { ...region, memory_size: 0n }));
    ok(await setSlot(calls, vm.vmFd, { ...region, slot: 2, guest_phys_addr: 0x40_1000n }));
  }),
  check("vCPU ids are unique and bounded", async (calls) => {
    const vm = await BenchVm.create(calls);
    fails(await calls.call(vm.vmFd, Ioctl.KVM_CREATE_VCPU, 0), "EEXIST");
    fails(await calls.call(vm.vmFd, Ioctl.KVM_CREATE_VCPU, 0x10_0000), "EINVAL");
    ok(await calls.call(vm.vmFd, Ioctl.KVM_CREATE_VCPU, 1));
  }),
  check("registers keep what was set", async (calls) => {
    const vm = await BenchVm.create(calls);
    const values = {
      ...(await vm.regs()),
      rax: 0x0123_4567_89ab_cdefn,
      r15: 0xffff_ffff_ffff_ffffn,
      rsp: 0x8000_0000_0000_0000n,
    };
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, values));
    assert.deepEqual(await vm.regs(), values);
    const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    sregs.cr2 = 0xdead_b000n;
    sregs.ds.base = 0x1_2340n;
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    assert.deepEqual(await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs), sregs);
    const fpu = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_FPU, KvmFpu);
    assert.equal(fpu.fcw, 0x37f);
    assert.equal(fpu.mxcsr, 0x1f80);
    fpu.xmm.set([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 3 * 16);
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_FPU, KvmFpu, fpu));
    assert.deepEqual(await calls.get(vm.vcpuFd, Ioctl.KVM_GET_FPU, KvmFpu), fpu);
    const debug = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_DEBUGREGS, KvmDebugregs);
    debug.db[2] = 0x5555n;
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_DEBUGREGS, KvmDebugregs, debug));
    assert.deepEqual(await calls.get(vm.vcpuFd, Ioctl.KVM_GET_DEBUGREGS, KvmDebugregs), debug);
  }),
  check("special registers that no CPU could hold are refused", async (calls) => {
    const vm = await BenchVm.create(calls);
    const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    fails(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, { ...sregs, cr0: 0x8000_0000n }), "EINVAL");
    fails(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, { ...sregs, cr4: 1n << 63n }), "EINVAL");
  }),
  check("MSRs: the list, known ones round trip, an unknown one ends the call", async (calls) => {
    const vm = await BenchVm.create(calls);
    const list = new Uint8Array(KvmMsrList.sizeBytes + 256 * 4);
    KvmMsrList.set(list, "nmsrs", 0);
    fails(await calls.call(vm.systemFd, Ioctl.KVM_GET_MSR_INDEX_LIST, list), "E2BIG");
    const needed = KvmMsrList.get(calls.result(4), "nmsrs");
    assert(needed > 10);
    KvmMsrList.set(list, "nmsrs", 256);
    ok(await calls.call(vm.systemFd, Ioctl.KVM_GET_MSR_INDEX_LIST, list));
    const LSTAR = 0xc000_0082;
    const msrs = new Uint8Array(KvmMsrs.sizeBytes + 2 * KvmMsrEntry.sizeBytes);
    KvmMsrs.set(msrs, "nmsrs", 2);
    KvmMsrEntry.write(msrs, { index: LSTAR, data: 0xffff_8000_0012_3000n }, KvmMsrs.tailOffset(0));
    KvmMsrEntry.write(msrs, { index: 0x1234_5678, data: 1n }, KvmMsrs.tailOffset(1));
    assert.equal(await calls.call(vm.vcpuFd, Ioctl.KVM_SET_MSRS, msrs), 1);
    KvmMsrEntry.write(msrs, { index: LSTAR, data: 0n }, KvmMsrs.tailOffset(0));
    assert.equal(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_MSRS, msrs), 1);
    assert.equal(KvmMsrEntry.get(calls.result(msrs.length), "data", KvmMsrs.tailOffset(0)), 0xffff_8000_0012_3000n);
  }),
  check("CPUID: too small a table says how much is needed, the guest sees what was set", async (calls) => {
    const vm = await BenchVm.create(calls);
    const table = new Uint8Array(KvmCpuid2.sizeBytes + 128 * KvmCpuidEntry2.sizeBytes);
    KvmCpuid2.set(table, "nent", 1);
    fails(await calls.call(vm.systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table), "E2BIG");
    KvmCpuid2.set(table, "nent", 128);
    ok(await calls.call(vm.systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table));
    const supported = calls.result(table.length);
    assert(KvmCpuid2.get(supported, "nent") > 5);
    const own = new Uint8Array(KvmCpuid2.sizeBytes + KvmCpuidEntry2.sizeBytes);
    KvmCpuid2.set(own, "nent", 1);
    KvmCpuidEntry2.write(own, { function: 0, eax: 0, ebx: 0x1111, ecx: 0x2222, edx: 0x3333 }, KvmCpuid2.tailOffset(0));
    ok(await calls.call(vm.vcpuFd, Ioctl.KVM_SET_CPUID2, own));
    vm.code(0x66, 0x31, 0xc0, 0x0f, 0xa2, HLT); // xor eax,eax; cpuid; hlt
    await vm.exit("KVM_EXIT_HLT");
    const regs = await vm.regs();
    assert.deepEqual([regs.rbx, regs.rcx, regs.rdx], [0x1111n, 0x2222n, 0x3333n]);
  }),
  check("OUT and IN go to user space and come back", async (calls) => {
    const vm = await BenchVm.create(calls);
    vm.code(0xb0, 0x5a, 0xe6, 0x10, 0xe5, 0x20, HLT); // mov al,0x5a; out 0x10,al; in ax,0x20; hlt
    let run = await vm.exit("KVM_EXIT_IO");
    const io = exits.io.offset;
    const fields = () => [run.getUint8(io), run.getUint8(io + 1), run.getUint16(io + 2, true), run.getUint32(io + 4, true)];
    assert.deepEqual(fields(), [1, 1, 0x10, 1]);
    assert.equal(run.getUint8(Number(run.getBigUint64(io + 8, true))), 0x5a);
    run = await vm.exit("KVM_EXIT_IO");
    assert.deepEqual(fields(), [0, 2, 0x20, 1]);
    run.setUint16(Number(run.getBigUint64(io + 8, true)), 0xbeef, true);
    await vm.exit("KVM_EXIT_HLT");
    const regs = await vm.regs();
    assert.equal(regs.rax & 0xffffn, 0xbeefn);
    assert.equal(regs.rip, BigInt(CODE + 7));
  }),
  check("a string OUT gives all its bytes, a string IN puts them into memory", async (calls) => {
    const vm = await BenchVm.create(calls);
    vm.put(0x2000, ...new TextEncoder().encode("hello"));
    // mov si,0x2000; mov cx,5; mov dx,0x3f8; rep outsb; mov di,0x3000; mov cx,2; rep insw; hlt
    vm.code(
      0xbe,
      0x00,
      0x20,
      0xb9,
      0x05,
      0x00,
      0xba,
      0xf8,
      0x03,
      0xf3,
      0x6e,
      0xbf,
      0x00,
      0x30,
      0xb9,
      0x02,
      0x00,
      0xf3,
      0x6d,
      HLT,
    );
    const io = exits.io.offset;
    let sent = "";
    let received = 0;
    while (received < 2) {
      const run = await vm.exit("KVM_EXIT_IO");
      const [isOut, size, count, data] = [
        run.getUint8(io),
        run.getUint8(io + 1),
        run.getUint32(io + 4, true),
        Number(run.getBigUint64(io + 8, true)),
      ];
      for (let item = 0; item < count; item++) {
        if (isOut) sent += String.fromCharCode(run.getUint8(data + item * size));
        else run.setUint16(data + item * size, 0x4141 + received++, true);
      }
    }
    await vm.exit("KVM_EXIT_HLT");
    assert.equal(sent, "hello");
    assert.deepEqual(
      [0, 1, 2, 3].map((index) => vm.byte(0x3000 + index)),
      [0x41, 0x41, 0x42, 0x41],
    );
  }),
  check("memory without a slot is MMIO, read and write", async (calls) => {
    const vm = await BenchVm.create(calls);
    const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    sregs.ds.base = 0x50_0000n;
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    vm.code(0xa1, 0x34, 0x12, 0xa2, 0x00, 0x20, HLT); // mov ax,[0x1234]; mov [0x2000],al; hlt
    const mmio = exits.mmio.offset;
    let run = await vm.exit("KVM_EXIT_MMIO");
    assert.deepEqual(
      [run.getBigUint64(mmio, true), run.getUint32(mmio + 16, true), run.getUint8(mmio + 20)],
      [0x50_1234n, 2, 0],
    );
    run.setUint16(mmio + 8, 0x7856, true);
    run = await vm.exit("KVM_EXIT_MMIO");
    assert.deepEqual(
      [run.getBigUint64(mmio, true), run.getUint32(mmio + 16, true), run.getUint8(mmio + 20), run.getUint8(mmio + 8)],
      [0x50_2000n, 1, 1, 0x56],
    );
    await vm.exit("KVM_EXIT_HLT");
    assert.equal((await vm.regs()).rax & 0xffffn, 0x7856n);
  }),
  check("a write to a read-only slot is MMIO, a read is not", async (calls) => {
    const vm = await BenchVm.create(calls);
    const page = ok(calls.sys.mmap(4096, -1, 0));
    calls.sys.memory.u8[page + 5] = 0x99;
    ok(
      await setSlot(calls, vm.vmFd, {
        slot: 1,
        flags: MemoryFlag.KVM_MEM_READONLY,
        guest_phys_addr: 0x50_0000n,
        memory_size: 4096n,
        userspace_addr: BigInt(page),
      }),
    );
    const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    sregs.ds.base = 0x50_0000n;
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    vm.code(0xa0, 0x05, 0x00, 0xa2, 0x06, 0x00, HLT); // mov al,[5]; mov [6],al; hlt
    const run = await vm.exit("KVM_EXIT_MMIO");
    assert.deepEqual(
      [run.getBigUint64(exits.mmio.offset, true), run.getUint8(exits.mmio.offset + 8), run.getUint8(exits.mmio.offset + 20)],
      [0x50_0006n, 0x99, 1],
    );
    await vm.exit("KVM_EXIT_HLT");
    assert.equal(calls.sys.memory.u8[page + 6], 0);
  }),
  check("the dirty log names the pages that were written since it was read", async (calls) => {
    const vm = await BenchVm.create(calls);
    const ram = BigInt(vm.ram);
    const bitmap = ok(calls.sys.mmap(4096, -1, 0));
    const log = () => calls.set(vm.vmFd, Ioctl.KVM_GET_DIRTY_LOG, KvmDirtyLog, { slot: 0, dirty_bitmap: BigInt(bitmap) });
    fails(await log(), "ENOENT");
    ok(
      await setSlot(calls, vm.vmFd, {
        slot: 0,
        flags: MemoryFlag.KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0n,
        memory_size: BigInt(RAM_BYTES),
        userspace_addr: ram,
      }),
    );
    vm.code(0xa2, 0x00, 0x50, 0xe6, 0x10, 0xa2, 0x00, 0x60, HLT); // mov [0x5000],al; out 0x10,al; mov [0x6000],al; hlt
    await vm.exit("KVM_EXIT_IO");
    ok(await log());
    const word = () => calls.sys.memory.view.getUint32(bitmap, true);
    assert.equal(word() & (1 << 5), 1 << 5);
    assert.equal(word() & (1 << 6), 0);
    await vm.exit("KVM_EXIT_HLT");
    ok(await log());
    assert.equal(word(), 1 << 6);
    ok(await log());
    assert.equal(word(), 0);
  }),
  check("a triple fault is a shutdown", async (calls) => {
    const vm = await BenchVm.create(calls);
    const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    sregs.idt = { base: 0n, limit: 0, padding: [0, 0, 0] };
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    vm.code(0x0f, 0x0b); // ud2
    await vm.exit("KVM_EXIT_SHUTDOWN");
  }),
  check("KVM_INTERRUPT is delivered through the vector table", async (calls) => {
    const vm = await BenchVm.create(calls);
    vm.put(0x40 * 4, 0x00, 0x20, 0x00, 0x00); // vector 0x40 at 0000:2000
    vm.put(0x2000, 0xb3, 0x77, HLT); // mov bl,0x77; hlt
    vm.code(0xfb, 0x90, 0x90, 0xeb, 0xfe); // sti; nop; nop; jmp $
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_INTERRUPT, KvmInterrupt, { irq: 0x40 }));
    await vm.exit("KVM_EXIT_HLT");
    assert.equal((await vm.regs()).rbx & 0xffn, 0x77n);
  }),
  check("immediate_exit returns at once with EINTR", async (calls) => {
    const vm = await BenchVm.create(calls);
    vm.code(0xeb, 0xfe);
    calls.sys.memory.u8[vm.run + KvmRun.offsets.immediate_exit] = 1;
    fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EINTR");
    assert.equal((await vm.regs()).rip, BigInt(CODE));
  }),
  check("a signal takes a running vCPU out with EINTR", async (calls) => {
    const vm = await BenchVm.create(calls);
    vm.code(0xeb, 0xfe);
    const thread = calls.sys.spawnThread("vcpu", async (sys) => sys.ioctl(vm.vcpuFd, Ioctl.KVM_RUN, 0));
    await calls.sys.sleepNs(5_000_000);
    ok(calls.sys.signalThread(thread.tid));
    fails(await thread.finished, "EINTR");
    assert.equal((await vm.regs()).rip, BigInt(CODE));
  }),
  check("the interrupt controllers exist once, the timer only with them", async (calls) => {
    const vm = await BenchVm.create(calls);
    const other = ok(await calls.call(vm.systemFd, Ioctl.KVM_CREATE_VM));
    fails(await calls.set(other, Ioctl.KVM_CREATE_PIT2, KvmPitConfig, {}), "ENOENT");
    fails(await calls.set(other, Ioctl.KVM_IRQ_LINE, KvmIrqLevel, { irq: 4, level: 1 }), "ENXIO");
    ok(await calls.call(other, Ioctl.KVM_CREATE_IRQCHIP));
    fails(await calls.call(other, Ioctl.KVM_CREATE_IRQCHIP), "EEXIST");
    ok(await calls.set(other, Ioctl.KVM_CREATE_PIT2, KvmPitConfig, {}));
    fails(await calls.set(other, Ioctl.KVM_CREATE_PIT2, KvmPitConfig, {}), "EEXIST");
    ok(await calls.set(other, Ioctl.KVM_IRQ_LINE, KvmIrqLevel, { irq: 4, level: 1 }));
    fails(await calls.call(vm.vmFd, Ioctl.KVM_CREATE_IRQCHIP), "EINVAL"); // a vCPU is there already
  }),
  check("an interrupt line through the 8259 wakes a halted vCPU", async (calls) => {
    const vm = await BenchVm.create(calls, { irqchip: true });
    vm.put(0x24 * 4, 0x00, 0x20, 0x00, 0x00); // vector 0x24 at 0000:2000
    vm.put(0x2000, 0xb0, 0x33, 0xe6, 0x10); // mov al,0x33; out 0x10,al
    // 8259: ICW1..4, vectors from 0x20, all lines on; sti; hlt; jmp back
    const out = (port: number, value: number) => [0xb0, value, 0xe6, port];
    vm.code(
      ...out(0x20, 0x11),
      ...out(0x21, 0x20),
      ...out(0x21, 0x04),
      ...out(0x21, 0x01),
      ...out(0x21, 0x00),
      ...out(0x11, 0),
      0xfb,
      HLT,
      0xeb,
      0xfd,
    );
    // ICW1 forgets edges: the line goes up only when the 8259 is set up
    ok(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN));
    const thread = calls.sys.spawnThread("vcpu", async (sys) => sys.ioctl(vm.vcpuFd, Ioctl.KVM_RUN, 0));
    await calls.sys.sleepNs(5_000_000);
    ok(await calls.set(vm.vmFd, Ioctl.KVM_IRQ_LINE, KvmIrqLevel, { irq: 4, level: 1 }));
    ok(await thread.finished);
    const run = vm.run + exits.io.offset;
    assert.equal(calls.sys.memory.view.getUint16(run + 2, true), 0x10);
  }),
  check("the local APIC resets to what the manual says, and keeps what was set", async (calls) => {
    const vm = await BenchVm.create(calls, { irqchip: true });
    const lapic = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_LAPIC, KvmLapicState);
    const word = (offset: number) => new DataView(lapic.regs.buffer, lapic.regs.byteOffset).getUint32(offset, true);
    assert.equal(word(0xf0), 0xff); // spurious vector, disabled
    assert.equal(word(0x320), 0x1_0000); // timer masked
    assert.equal(word(0xe0), 0xffff_ffff);
    new DataView(lapic.regs.buffer, lapic.regs.byteOffset).setUint32(0x80, 0x20, true);
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_LAPIC, KvmLapicState, lapic));
    assert.deepEqual((await calls.get(vm.vcpuFd, Ioctl.KVM_GET_LAPIC, KvmLapicState)).regs[0x80], 0x20);
    const state = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_MP_STATE, KvmMpState);
    assert.equal(state.mp_state, 0);
    fails(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_MP_STATE, KvmMpState, { mp_state: 77 }), "EINVAL");
    const events = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents);
    ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_VCPU_EVENTS, KvmVcpuEvents, events));
  }),
  ...cpuidChecks,
  ...emulatedAccessChecks,
  ...eventfdChecks,
  ...memoryChecks,
  ...msrChecks,
  ...syncRegsChecks,
  ...smpChecks,
];
