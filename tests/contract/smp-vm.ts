import assert from "node:assert/strict";
import {
  ExitReason,
  exitReasonName,
  Ioctl,
  KvmCpuid2,
  KvmPitConfig,
  KvmRegs,
  KvmRun,
  KvmSregs,
  type SystemCalls,
} from "@mkvm/kvm-abi";
import type { SmpGuest } from "@mkvm/testkit";
import { type Calls, ok, setSlot } from "./bench-vm.ts";

const GDT = 0x500;
const PAGE_TABLES = 0x9000;
const CODE_SELECTOR = 0x10,
  DATA_SELECTOR = 0x18;
const PRESENT_WRITABLE = 3,
  LARGE = 0x80;
const io = KvmRun.fields.exit.members.io;

interface Vcpu {
  fd: number;
  run: number;
}

/** A VM with interrupt controllers and several vCPUs, each on a thread of its own. */
export class SmpVm {
  readonly calls: Calls;
  readonly vmFd: number;
  readonly vcpus: readonly Vcpu[];
  readonly #ram: number;

  static async create(calls: Calls, cpus: number, ramBytes = 4 << 20): Promise<SmpVm> {
    const { sys } = calls;
    const systemFd = ok(sys.open("/dev/kvm"));
    const vmFd = ok(await calls.call(systemFd, Ioctl.KVM_CREATE_VM));
    ok(await calls.call(vmFd, Ioctl.KVM_SET_TSS_ADDR, 0xfffb_d000));
    ok(await calls.call(vmFd, Ioctl.KVM_CREATE_IRQCHIP));
    ok(await calls.set(vmFd, Ioctl.KVM_CREATE_PIT2, KvmPitConfig, {}));
    const ram = ok(sys.mmap(ramBytes, -1, 0));
    const region = { slot: 0, guest_phys_addr: 0n, memory_size: BigInt(ramBytes), userspace_addr: BigInt(ram) };
    ok(await setSlot(calls, vmFd, region));
    const runBytes = ok(await calls.call(systemFd, Ioctl.KVM_GET_VCPU_MMAP_SIZE));
    const supported = new Uint8Array(KvmCpuid2.tailOffset(100));
    KvmCpuid2.set(supported, "nent", 100);
    ok(await calls.call(systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, supported));
    const cpuid = calls.result(supported.length);
    const vcpus: Vcpu[] = [];
    for (let id = 0; id < cpus; id++) {
      const fd = ok(await calls.call(vmFd, Ioctl.KVM_CREATE_VCPU, id));
      ok(await calls.call(fd, Ioctl.KVM_SET_CPUID2, cpuid));
      vcpus.push({ fd, run: ok(sys.mmap(runBytes, fd, 0)) });
    }
    return new SmpVm(calls, vmFd, vcpus, ram);
  }

  constructor(calls: Calls, vmFd: number, vcpus: readonly Vcpu[], ram: number) {
    this.calls = calls;
    this.vmFd = vmFd;
    this.vcpus = vcpus;
    this.#ram = ram;
  }

  /** Loads the guest and puts the boot CPU at its start: 64-bit mode, the first 4 GiB mapped one to one. */
  async load(guest: SmpGuest): Promise<void> {
    const { memory } = this.calls.sys;
    const ram = this.#ram;
    memory.u8.set(guest.image, ram + guest.origin);
    const quad = (gpa: number, value: bigint | number) => memory.view.setBigUint64(ram + gpa, BigInt(value), true);
    quad(GDT + CODE_SELECTOR, 0x00af_9b00_0000_ffffn);
    quad(GDT + DATA_SELECTOR, 0x00cf_9300_0000_ffffn);
    const pdpt = PAGE_TABLES + 0x1000;
    quad(PAGE_TABLES, pdpt | PRESENT_WRITABLE);
    for (let directory = 0; directory < 4; directory++) {
      const table = pdpt + (1 + directory) * 0x1000;
      quad(pdpt + directory * 8, table | PRESENT_WRITABLE);
      for (let index = 0; index < 512; index++) {
        quad(table + index * 8, (directory * 512 + index) * 0x20_0000 + (PRESENT_WRITABLE | LARGE));
      }
    }
    const { fd } = this.vcpus[0]!;
    const sregs = await this.calls.get(fd, Ioctl.KVM_GET_SREGS, KvmSregs);
    const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0, padding: 0 };
    sregs.cs = { ...flat, selector: CODE_SELECTOR, type: 11, db: 0, l: 1 };
    const data = { ...flat, selector: DATA_SELECTOR, type: 3, db: 1, l: 0 };
    Object.assign(sregs, { ds: data, es: data, fs: data, gs: data, ss: data });
    sregs.gdt = { base: BigInt(GDT), limit: 0x1f, padding: [0, 0, 0] };
    Object.assign(sregs, { cr0: 0x8000_0011n, cr3: BigInt(PAGE_TABLES), cr4: 0x20n, efer: 0x500n });
    ok(await this.calls.set(fd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    ok(await this.calls.set(fd, Ioctl.KVM_SET_REGS, KvmRegs, { rip: BigInt(guest.origin), rflags: 2n }));
  }

  /** Runs all vCPUs until one of them writes to the port; gives the byte that it wrote. */
  async run(port: number): Promise<number> {
    const { sys } = this.calls;
    let ended: number | undefined;
    const threads = this.vcpus.map((vcpu, id) =>
      sys.spawnThread(`vcpu${id}`, async (own) => {
        while (ended === undefined) {
          const byte = await runOnce(own, vcpu, port);
          if (byte === undefined) continue;
          ended = byte;
          for (const thread of threads) if (thread.tid !== threads[id]!.tid) ok(own.signalThread(thread.tid));
        }
        return 0;
      }),
    );
    for (const thread of threads) await thread.finished;
    assert(ended !== undefined);
    return ended;
  }
}

/** KVM_RUN once: the byte that was written to the port, if that is why it returned. */
async function runOnce(sys: SystemCalls, { fd, run }: Vcpu, port: number): Promise<number | undefined> {
  const result = await sys.ioctl(fd, Ioctl.KVM_RUN, 0);
  // A signal: another vCPU has ended the guest
  if (result === -4) return undefined;
  ok(result);
  const { view, u8 } = sys.memory;
  const reason = view.getUint32(run + KvmRun.offsets.exit_reason, true);
  assert.equal(reason, ExitReason.KVM_EXIT_IO, exitReasonName(reason));
  const at = run + io.offset;
  const written = u8[run + Number(view.getBigUint64(at + 8, true))]!;
  return view.getUint16(at + 2, true) === port ? written : undefined;
}
