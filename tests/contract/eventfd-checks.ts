/** eventfd(2), and what KVM does with eventfds: KVM_IOEVENTFD and KVM_IRQFD. */
import assert from "node:assert/strict";
import {
  EfdFlag,
  Ioctl,
  IoeventfdFlag,
  IrqchipId,
  IrqfdFlag,
  KvmIoeventfd,
  KvmIrqchip,
  KvmIrqfd,
  KvmRegs,
  KvmSregs,
  PollEvent,
  type StructInput,
} from "@mkvm/kvm-abi";
import { BenchVm, type Calls, CODE, fails, ok, STACK } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const HLT = 0xf4;
const { EFD_NONBLOCK, EFD_SEMAPHORE, EFD_CLOEXEC } = EfdFlag;
const { KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_PIO, KVM_IOEVENTFD_FLAG_DEASSIGN } = IoeventfdFlag;
const { KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE } = IrqfdFlag;
const LARGEST = 0xffff_ffff_ffff_ffffn;

/** Reads and writes of 8 bytes in a place of their own. */
class Counters {
  readonly #calls: Calls;
  readonly #place: number;

  constructor(calls: Calls) {
    this.#calls = calls;
    this.#place = ok(calls.sys.mmap(4096, -1, 0));
  }
  write(fd: number, value: bigint, length = 8): number {
    this.#calls.sys.memory.view.setBigUint64(this.#place, value, true);
    return this.#calls.sys.write(fd, this.#place, length);
  }
  async read(fd: number): Promise<bigint> {
    assert.equal(await this.#calls.sys.read(fd, this.#place, 8), 8);
    return this.#calls.sys.memory.view.getBigUint64(this.#place, true);
  }
  /** Of a descriptor with EFD_NONBLOCK. */
  async isEmpty(fd: number): Promise<boolean> {
    return (await this.#calls.sys.read(fd, this.#place, 8)) === -11;
  }
  get place(): number {
    return this.#place;
  }
}

type IoeventfdInput = StructInput<(typeof KvmIoeventfd)["fields"]>;
const ioeventfd = (calls: Calls, vm: BenchVm, value: IoeventfdInput): Promise<number> =>
  calls.set(vm.vmFd, Ioctl.KVM_IOEVENTFD, KvmIoeventfd, value);
const irqfd = (calls: Calls, vm: BenchVm, value: StructInput<(typeof KvmIrqfd)["fields"]>): Promise<number> =>
  calls.set(vm.vmFd, Ioctl.KVM_IRQFD, KvmIrqfd, value);

async function start(
  calls: Calls,
  vm: BenchVm,
  rax: bigint,
  rest: StructInput<(typeof KvmRegs)["fields"]> = {},
): Promise<void> {
  const at = { rip: BigInt(CODE), rsp: BigInt(STACK), rflags: 2n };
  ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, { ...at, rax, ...rest }));
}

async function picRequests(calls: Calls, vm: BenchVm): Promise<number> {
  ok(await calls.set(vm.vmFd, Ioctl.KVM_GET_IRQCHIP, KvmIrqchip, { chip_id: IrqchipId.KVM_IRQCHIP_PIC_MASTER }));
  const bytes = calls.result(KvmIrqchip.sizeBytes);
  return KvmIrqchip.fields.chip.members.pic.read(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0).irr;
}

export const eventfdChecks: readonly Check[] = [
  {
    name: "eventfd: counter, semaphore, a read that waits, and what is none",
    async run(calls) {
      const { sys } = calls;
      const counters = new Counters(calls);
      fails(sys.eventfd(0, 2), "EINVAL");
      const fd = ok(sys.eventfd(5, EFD_NONBLOCK | EFD_CLOEXEC));
      assert.equal(await counters.read(fd), 5n);
      fails(await sys.read(fd, counters.place, 8), "EAGAIN");
      fails(await sys.read(fd, counters.place, 7), "EINVAL");
      fails(await sys.read(fd, 0xffff_f000, 8), "EFAULT");
      fails(counters.write(fd, 1n, 4), "EINVAL");
      fails(counters.write(fd, LARGEST), "EINVAL");
      assert.equal(counters.write(fd, LARGEST - 1n), 8);
      fails(counters.write(fd, 1n), "EAGAIN");
      assert.equal(await counters.read(fd), LARGEST - 1n);
      fails(sys.pread(fd, counters.place, 8, 0), "ESPIPE");
      fails(await calls.call(fd, Ioctl.KVM_GET_API_VERSION), "ENOTTY");
      fails(sys.mmap(4096, fd, 0), "ENODEV");
      ok(sys.close(fd));
      fails(counters.write(fd, 1n), "EBADF");

      const semaphore = ok(sys.eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK));
      assert.deepEqual([await counters.read(semaphore), await counters.read(semaphore)], [1n, 1n]);
      assert(await counters.isEmpty(semaphore));

      const blocking = ok(sys.eventfd(0, 0));
      const { finished } = sys.spawnThread("writer", async (own) => {
        own.memory.view.setBigUint64(counters.place + 64, 7n, true);
        return own.write(blocking, counters.place + 64, 8);
      });
      assert.equal(await counters.read(blocking), 7n);
      assert.equal(await finished, 8);
    },
  },
  {
    name: "poll: what is ready, what becomes so, and what is none",
    async run(calls) {
      const { sys } = calls;
      const counters = new Counters(calls);
      const { POLLIN, POLLOUT, POLLNVAL } = PollEvent;
      const both = POLLIN | POLLOUT;
      const vm = ok(await calls.call(ok(sys.open("/dev/kvm")), Ioctl.KVM_CREATE_VM, 0));
      const fd = ok(sys.eventfd(0, EFD_NONBLOCK));
      const all = [fd, -1, 1, vm].map((each) => ({ fd: each, events: both }));
      assert.deepEqual(await sys.poll(all, 0), [POLLOUT, 0, POLLOUT, both]);
      assert.deepEqual(await sys.poll([{ fd: 999, events: 0 }], undefined), [POLLNVAL]);
      assert.deepEqual(await sys.poll([{ fd, events: POLLIN }], 1000), [0]);
      assert.deepEqual(await sys.poll([], 1000), []);

      // From other threads: something to read, then room to write, then a signal
      const write = sys.spawnThread("writer", async (own) => {
        own.memory.view.setBigUint64(counters.place + 64, LARGEST - 1n, true);
        return own.write(fd, counters.place + 64, 8);
      });
      assert.deepEqual(
        await sys.poll(
          [
            { fd, events: both },
            { fd, events: POLLIN },
          ],
          undefined,
        ),
        [POLLOUT, 0],
      );
      assert.deepEqual(
        await sys.poll(
          [
            { fd, events: POLLIN },
            { fd, events: POLLIN },
          ],
          undefined,
        ),
        [POLLIN, POLLIN],
      );
      assert.equal(await write.finished, 8);
      assert.deepEqual(await sys.poll([{ fd, events: both }], undefined), [POLLIN]);
      const read = sys.spawnThread("reader", async (own) => own.read(fd, counters.place + 64, 8));
      assert.deepEqual(await sys.poll([{ fd, events: POLLOUT }], undefined), [POLLOUT]);
      assert.equal(await read.finished, 8);
      const waits = sys.spawnThread("waits", async (own) => (await own.poll([{ fd, events: POLLIN }], undefined)) as number);
      ok(sys.signalThread(waits.tid));
      assert.equal(await waits.finished, -4);
    },
  },
  {
    name: "ioeventfd: ports and memory, lengths and values, and no exit on a match",
    async run(calls) {
      const { sys } = calls;
      const counters = new Counters(calls);
      const vm = await BenchVm.create(calls);
      for (const name of ["KVM_CAP_IOEVENTFD", "KVM_CAP_IOEVENTFD_NO_LENGTH", "KVM_CAP_IOEVENTFD_ANY_LENGTH"] as const)
        assert.equal(await vm.has(name), 1);
      const fd = ok(sys.eventfd(0, EFD_NONBLOCK));
      const pio = { addr: 0x10n, len: 1, fd, flags: KVM_IOEVENTFD_FLAG_PIO };
      fails(await ioeventfd(calls, vm, { ...pio, len: 3 }), "EINVAL");
      fails(await ioeventfd(calls, vm, { ...pio, addr: LARGEST, len: 1 }), "EINVAL");
      fails(await ioeventfd(calls, vm, { ...pio, flags: 32 }), "EINVAL");
      fails(
        await ioeventfd(calls, vm, { ...pio, len: 0, flags: KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH }),
        "EINVAL",
      );
      fails(await ioeventfd(calls, vm, { ...pio, fd: 999 }), "EBADF");
      fails(await ioeventfd(calls, vm, { ...pio, fd: vm.vmFd }), "EINVAL");
      fails(await calls.call(vm.vmFd, Ioctl.KVM_IOEVENTFD, 0xffff_f000), "EFAULT");

      // One value of a port of one byte
      const matching = { ...pio, datamatch: 0x5an, flags: KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH };
      ok(await ioeventfd(calls, vm, matching));
      fails(await ioeventfd(calls, vm, matching), "EEXIST");
      fails(await ioeventfd(calls, vm, pio), "EEXIST");
      ok(await ioeventfd(calls, vm, { ...matching, datamatch: 0x5bn }));
      ok(await ioeventfd(calls, vm, { ...pio, len: 2 }));
      fails(await ioeventfd(calls, vm, { ...pio, len: 0 }), "EEXIST");
      vm.code(0xe6, 0x10, HLT); // out 0x10, al; hlt
      await start(calls, vm, 0x5an);
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(await counters.read(fd), 1n);
      await start(calls, vm, 0x11n);
      await vm.exit("KVM_EXIT_IO");
      await vm.exit("KVM_EXIT_HLT");
      assert(await counters.isEmpty(fd));
      vm.code(0xe7, 0x10, HLT); // out 0x10, ax; hlt: any value of two bytes
      await start(calls, vm, 0x1234n);
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(await counters.read(fd), 1n);
      vm.code(0xe4, 0x10, HLT); // in al, 0x10: reads are user space's
      await start(calls, vm, 0n);
      await vm.exit("KVM_EXIT_IO");
      await vm.exit("KVM_EXIT_HLT");
      // rep outsb: the first item decides
      vm.put(0x2000, 0x5b, 0x5b, 0x5a).code(0xf3, 0x6e, HLT);
      await start(calls, vm, 0n, { rsi: 0x2000n, rcx: 3n, rdx: 0x10n });
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(await counters.read(fd), 3n);
      assert.equal((await vm.regs()).rcx, 0n);

      // Gone by exactly what it was
      const off = KVM_IOEVENTFD_FLAG_DEASSIGN;
      fails(await ioeventfd(calls, vm, { ...pio, flags: pio.flags | off }), "ENOENT");
      fails(await ioeventfd(calls, vm, { ...matching, datamatch: 0x5cn, flags: matching.flags | off }), "ENOENT");
      fails(await ioeventfd(calls, vm, { ...matching, fd: ok(sys.eventfd(0, 0)), flags: matching.flags | off }), "ENOENT");
      ok(await ioeventfd(calls, vm, { ...matching, flags: matching.flags | off }));
      vm.code(0xe6, 0x10, HLT);
      await start(calls, vm, 0x5an);
      await vm.exit("KVM_EXIT_IO");
      await vm.exit("KVM_EXIT_HLT");

      // Memory that is none: two bytes exactly, then any length. The eventfd lives on without its descriptor
      const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
      const ds = { ...sregs.ds, base: 0x20_0000n };
      ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, { ...sregs, ds }));
      const mmio = { addr: 0x20_0010n, len: 2, fd, flags: 0 };
      ok(await ioeventfd(calls, vm, mmio));
      vm.code(0xa3, 0x10, 0x00, HLT); // mov [0x10], ax; hlt
      await start(calls, vm, 0x77n);
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(await counters.read(fd), 1n);
      vm.code(0xa2, 0x10, 0x00, HLT); // mov [0x10], al
      await start(calls, vm, 0x77n);
      await vm.exit("KVM_EXIT_MMIO");
      await vm.exit("KVM_EXIT_HLT");
      ok(await ioeventfd(calls, vm, { ...mmio, flags: off }));
      const any = ok(sys.eventfd(0, EFD_NONBLOCK));
      ok(await ioeventfd(calls, vm, { ...mmio, len: 0, fd: any }));
      await start(calls, vm, 0x77n);
      await vm.exit("KVM_EXIT_HLT");
      assert.equal(await counters.read(any), 1n);
      for (const bytes of [
        [0xa3, 0x10, 0x00],
        [0x66, 0xa3, 0x10, 0x00],
      ]) {
        vm.code(...bytes, HLT); // mov [0x10], ax; mov [0x10], eax
        await start(calls, vm, 0x77n);
        await vm.exit("KVM_EXIT_HLT");
        assert.equal(await counters.read(any), 1n);
      }
      // Neither a write beside it nor a read is one
      vm.code(0xa2, 0x11, 0x00, 0xa0, 0x10, 0x00, HLT); // mov [0x11], al; mov al, [0x10]
      await start(calls, vm, 0x77n);
      await vm.exit("KVM_EXIT_MMIO");
      await vm.exit("KVM_EXIT_MMIO");
      await vm.exit("KVM_EXIT_HLT");
      assert(await counters.isEmpty(any));
      fails(await ioeventfd(calls, vm, { ...mmio, fd }), "EEXIST");
      fails(await ioeventfd(calls, vm, { ...mmio, len: 0, fd, flags: KVM_IOEVENTFD_FLAG_DATAMATCH }), "EINVAL");
      vm.code(0xa2, 0x10, 0x00, HLT);
      ok(sys.close(any));
      await start(calls, vm, 0x77n);
      await vm.exit("KVM_EXIT_HLT");
    },
  },
  {
    name: "irqfd: edges, levels that the guest's EOI takes away, and what is none",
    async run(calls) {
      const { sys } = calls;
      const counters = new Counters(calls);
      const without = await BenchVm.create(calls);
      assert.equal(await without.has("KVM_CAP_IRQFD"), 1);
      assert.equal(await without.has("KVM_CAP_IRQFD_RESAMPLE"), 1);
      const fd = ok(sys.eventfd(0, EFD_NONBLOCK));
      fails(await irqfd(calls, without, { fd, gsi: 4 }), "EINVAL");
      const vm = await BenchVm.create(calls, { irqchip: true });
      fails(await irqfd(calls, vm, { fd, gsi: 4, flags: 4 }), "EINVAL");
      fails(await irqfd(calls, vm, { fd: 999, gsi: 4 }), "EBADF");
      fails(await irqfd(calls, vm, { fd: vm.vmFd, gsi: 4 }), "EINVAL");
      fails(await irqfd(calls, vm, { fd, gsi: 4, flags: KVM_IRQFD_FLAG_RESAMPLE, resamplefd: 999 }), "EBADF");

      // Vectors from 0x20; line 5 by level. A handler for 4 and 5: out 0x10, al; EOI; out 0x13, al; iret
      for (const vector of [0x24, 0x25]) vm.put(vector * 4, 0x00, 0x20, 0x00, 0x00);
      vm.put(0x2000, 0xe6, 0x10, 0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x13, 0xcf);
      const out = (port: number, value: number) => [0xb0, value, 0xe6, port];
      vm.code(
        ...[...out(0x20, 0x11), ...out(0x21, 0x20), ...out(0x21, 0x04), ...out(0x21, 0x01), ...out(0x21, 0x00)],
        ...[0xba, 0xd0, 0x04, 0xb0, 0x20, 0xee], // mov dx, 0x4d0; mov al, 0x20; out dx, al
        ...[0xe6, 0x11, 0xfb, 0xf4, 0xeb, 0xfd], // out 0x11, al; sti; hlt; jmp to the hlt
      );
      const port = async (): Promise<number> => (await vm.exit("KVM_EXIT_IO")).getUint16(32 + 2, true);
      await start(calls, vm, 0n);
      assert.equal(await port(), 0x11);
      // What was there before counts too
      counters.write(fd, 1n);
      ok(await irqfd(calls, vm, { fd, gsi: 4 }));
      fails(await irqfd(calls, vm, { fd, gsi: 5 }), "EBUSY");
      assert(await counters.isEmpty(fd));
      assert.deepEqual([await port(), await port()], [0x10, 0x13]);
      counters.write(fd, 3n);
      assert.deepEqual([await port(), await port()], [0x10, 0x13]);
      // From another thread, while the guest halts
      const { finished } = sys.spawnThread("device", async (own) => own.write(fd, counters.place, 8));
      assert.deepEqual([await port(), await port()], [0x10, 0x13]);
      await finished;

      const level = ok(sys.eventfd(0, EFD_NONBLOCK));
      const resample = ok(sys.eventfd(0, EFD_NONBLOCK));
      ok(await irqfd(calls, vm, { fd: level, gsi: 5, flags: KVM_IRQFD_FLAG_RESAMPLE, resamplefd: resample }));
      counters.write(level, 1n);
      assert.equal(await port(), 0x10);
      assert(await counters.isEmpty(resample));
      assert.equal(await port(), 0x13);
      assert.equal((await picRequests(calls, vm)) & 0x20, 0);
      assert.equal(await counters.read(resample), 1n);
      counters.write(level, 1n);
      assert.deepEqual([await port(), await port()], [0x10, 0x13]);
      assert.equal(await counters.read(resample), 1n);

      // Gone: the counter is the program's again. A level goes with it
      ok(await irqfd(calls, vm, { fd, gsi: 4, flags: KVM_IRQFD_FLAG_DEASSIGN }));
      ok(await irqfd(calls, vm, { fd, gsi: 4, flags: KVM_IRQFD_FLAG_DEASSIGN }));
      counters.write(fd, 1n);
      assert.equal(await counters.read(fd), 1n);
      counters.write(level, 1n);
      assert.equal((await picRequests(calls, vm)) & 0x20, 0x20);
      ok(sys.close(level));
      assert.equal((await picRequests(calls, vm)) & 0x30, 0);
    },
  },
];
