import assert from "node:assert/strict";
import {
  Capability,
  Errno,
  ExitReason,
  exitReasonName,
  type Fields,
  Ioctl,
  KvmRegs,
  KvmRun,
  KvmSregs,
  KvmUserspaceMemoryRegion,
  type Struct,
  type StructInput,
  type StructValue,
  type SystemCalls,
} from "@mkvm/kvm-abi";

/** System calls with structures, for checks: results are what the kernel answered, negative errnos included. */
export class Calls {
  readonly sys: SystemCalls;
  readonly #argument: number;

  constructor(sys: SystemCalls) {
    this.sys = sys;
    this.#argument = sys.mmap(1 << 16, -1, 0);
    assert(this.#argument > 0, "no memory for arguments");
  }

  async call(fd: number, request: number, argument: number | Uint8Array = 0): Promise<number> {
    if (typeof argument === "number") return this.sys.ioctl(fd, request, argument);
    this.sys.memory.u8.set(argument, this.#argument);
    return this.sys.ioctl(fd, request, this.#argument);
  }

  set<F extends Fields>(fd: number, request: number, layout: Struct<F>, value: StructInput<F>): Promise<number> {
    return this.call(fd, request, layout.encode(value));
  }

  async get<F extends Fields>(
    fd: number,
    request: number,
    layout: Struct<F>,
    value: StructInput<F> = {},
  ): Promise<StructValue<F>> {
    ok(await this.set(fd, request, layout, value));
    return layout.read(this.sys.memory.view, this.#argument);
  }

  /** Bytes of the last argument, as the kernel left them. */
  result(length: number): Uint8Array {
    return this.sys.memory.u8.slice(this.#argument, this.#argument + length);
  }
}

/** Asserts success and gives the result. */
export function ok(result: number): number {
  assert(result >= 0, `expected success, got errno ${-result}`);
  return result;
}

export function fails(result: number, errno: keyof typeof Errno): void {
  assert.equal(result, -Errno[errno], `expected -${errno}`);
}

/** Checks need little RAM; code is put at CODE, in real mode with flat zero bases. */
export const RAM_BYTES = 1 << 20;
export const CODE = 0x1000;
export const STACK = 0x8000;

/** A VM with one vCPU in real mode, for code of a few bytes. */
export class BenchVm {
  readonly calls: Calls;
  readonly systemFd: number;
  readonly vmFd: number;
  readonly vcpuFd: number;
  readonly ram: number;
  readonly run: number;

  static async create(calls: Calls, options: { irqchip?: boolean } = {}): Promise<BenchVm> {
    const { sys } = calls;
    const systemFd = ok(sys.open("/dev/kvm"));
    const vmFd = ok(await calls.call(systemFd, Ioctl.KVM_CREATE_VM));
    ok(await calls.call(vmFd, Ioctl.KVM_SET_TSS_ADDR, 0xfffb_d000));
    if (options.irqchip) ok(await calls.call(vmFd, Ioctl.KVM_CREATE_IRQCHIP));
    const ram = ok(sys.mmap(RAM_BYTES, -1, 0));
    ok(
      await setSlot(calls, vmFd, { slot: 0, guest_phys_addr: 0n, memory_size: BigInt(RAM_BYTES), userspace_addr: BigInt(ram) }),
    );
    const vcpuFd = ok(await calls.call(vmFd, Ioctl.KVM_CREATE_VCPU, 0));
    const run = ok(sys.mmap(ok(await calls.call(systemFd, Ioctl.KVM_GET_VCPU_MMAP_SIZE)), vcpuFd, 0));
    const vm = new BenchVm(calls, { systemFd, vmFd, vcpuFd, ram, run });
    await vm.reset();
    return vm;
  }

  constructor(calls: Calls, parts: { systemFd: number; vmFd: number; vcpuFd: number; ram: number; run: number }) {
    this.calls = calls;
    this.systemFd = parts.systemFd;
    this.vmFd = parts.vmFd;
    this.vcpuFd = parts.vcpuFd;
    this.ram = parts.ram;
    this.run = parts.run;
  }

  /** Real mode at CODE with zero segment bases, no pending anything. */
  async reset(): Promise<void> {
    const sregs = await this.calls.get(this.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    for (const name of ["cs", "ds", "es", "ss"] as const) Object.assign(sregs[name], { base: 0n, selector: 0 });
    ok(await this.calls.set(this.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
    ok(await this.calls.set(this.vcpuFd, Ioctl.KVM_SET_REGS, KvmRegs, { rip: BigInt(CODE), rflags: 2n, rsp: BigInt(STACK) }));
  }

  /** Puts code at CODE. */
  code(...bytes: number[]): this {
    return this.put(CODE, ...bytes);
  }

  put(gpa: number, ...bytes: number[]): this {
    this.calls.sys.memory.u8.set(bytes, this.ram + gpa);
    return this;
  }

  byte(gpa: number): number {
    return this.calls.sys.memory.u8[this.ram + gpa];
  }

  regs() {
    return this.calls.get(this.vcpuFd, Ioctl.KVM_GET_REGS, KvmRegs);
  }

  /** KVM_RUN until it succeeds; asserts the exit reason and gives the kvm_run fields of that exit. */
  async exit(expected: keyof typeof ExitReason): Promise<DataView> {
    const view = this.calls.sys.memory.view;
    ok(await this.calls.call(this.vcpuFd, Ioctl.KVM_RUN));
    const reason = view.getUint32(this.run + KvmRun.offsets.exit_reason, true);
    const detail = reason === ExitReason.KVM_EXIT_INTERNAL_ERROR ? ` (suberror ${view.getUint32(this.run + 32, true)})` : "";
    assert.equal(exitReasonName(reason) + detail, expected);
    return new DataView(view.buffer, view.byteOffset + this.run, 12288);
  }

  has(capability: keyof typeof Capability): Promise<number> {
    return this.calls.call(this.systemFd, Ioctl.KVM_CHECK_EXTENSION, Capability[capability]);
  }
}

export function setSlot(
  calls: Calls,
  vmFd: number,
  region: StructInput<(typeof KvmUserspaceMemoryRegion)["fields"]>,
): Promise<number> {
  return calls.set(vmFd, Ioctl.KVM_SET_USER_MEMORY_REGION, KvmUserspaceMemoryRegion, region);
}
