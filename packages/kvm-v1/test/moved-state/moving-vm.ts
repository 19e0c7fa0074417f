/**
 * A VM that moves between the versions while a case looks at it through the uapi. What crossed is kept, so that a test can see
 * whether the fields that a case claims to move had a value of their own when they did.
 */
import assert from "node:assert/strict";
import {
  differenceOf,
  type Fields,
  Ioctl,
  KvmMsrEntry,
  KvmMsrs,
  type ModuleInstance,
  type Section,
  type SectionSupport,
  type Struct,
  type StructInput,
  type StructValue,
} from "@mkvm/kvm-abi";
import type { InThreadKernel } from "../in-thread-kernel.ts";
import { TestVm, type TestVmOptions } from "../test-vm.ts";

const ERESTARTSYS = -512;

/** A VM that lies on `kvm1` at first. */
export interface MovePair {
  readonly kernel: InThreadKernel;
  readonly kvm1: ModuleInstance;
  readonly kvm2: ModuleInstance;
}

export interface MoveOptions {
  /** What the receiver is taken to know, where it is not all that it does. */
  readonly receives?: readonly SectionSupport[];
  /** Changes what crosses, for state that no call can bring about. Then the receiver is asked what it makes of that. */
  readonly change?: (sections: Section[]) => Section[];
}

export class MovingVm extends TestVm {
  readonly pair: MovePair;
  readonly vendor: "intel" | "amd";
  /** Sections of each move. */
  readonly moved: Section[][] = [];
  readonly #more: number[] = [];
  #on: ModuleInstance;

  constructor(pair: MovePair, vendor: "intel" | "amd", options: TestVmOptions) {
    super(pair.kernel, pair.kvm1, options);
    this.pair = pair;
    this.vendor = vendor;
    this.#on = pair.kvm1;
  }

  /** To the other version. */
  async move(options: MoveOptions = {}): Promise<void> {
    const { kernel, kvm1, kvm2 } = this.pair;
    const from = this.#on;
    const to = from === kvm1 ? kvm2 : kvm1;
    const receives = options.receives ?? to.transfer.receives;
    const file = kernel.file(this.fd);
    const incoming = await to.transfer.prepare(kernel.process, from.transfer.describe(file, receives));
    assert(typeof incoming !== "string", `prepare: ${incoming}`);
    const saved = from.transfer.save(file, receives);
    assert.equal(differenceOf(saved, from.transfer.save(file, receives)), undefined, "saving changed the VM");
    const sections = options.change?.(saved) ?? saved;
    const refusal = incoming.restore(sections);
    if (refusal !== undefined) incoming.abort();
    assert.equal(refusal, undefined);
    assert.equal(differenceOf(sections, incoming.save()), undefined);
    const open = [this.system, this.fd, this.vcpu, ...this.#more].map((fd) => kernel.file(fd));
    const changed = open.map((each) => ({ each, ...incoming.commit(from.transfer.roleOf(each)) }));
    from.transfer.releaseMoved(file)?.();
    for (const { each, operations, privateData } of changed) Object.assign(each, { operations, privateData });
    this.#on = to;
    this.moved.push(sections);
  }

  /** Looks, moves to version 2, looks, moves back, looks. */
  async roundTrip(look: () => void | Promise<void> = () => undefined): Promise<void> {
    await look();
    await this.move();
    await look();
    await this.move();
    await look();
  }

  /** A further descriptor, to move along. */
  descriptor(fd: number): number {
    assert(fd >= 0, `errno ${-fd}`);
    this.#more.push(fd);
    return fd;
  }

  // Calls, which must succeed

  get<F extends Fields>(fd: number, request: number, layout: Struct<F>, value: StructInput<F> = {}): StructValue<F> {
    const bytes = layout.encode(value);
    assert.equal(this.kernel.ioctl(fd, request, bytes), 0);
    return layout.read(bytes);
  }
  set<F extends Fields>(fd: number, request: number, layout: Struct<F>, value: StructInput<F>): number {
    const result = this.kernel.ioctl(fd, request, layout.encode(value));
    assert(result >= 0, `errno ${-result}`);
    return result;
  }
  call(fd: number, request: number, argument: number | Uint8Array = 0): number {
    const result = this.kernel.ioctl(fd, request, argument);
    assert(result >= 0, `errno ${-result}`);
    return result;
  }

  /** Undefined: there is no such MSR, or it cannot be read. */
  msr(index: number): bigint | undefined {
    const bytes = new Uint8Array(KvmMsrs.tailOffset(1));
    KvmMsrs.set(bytes, "nmsrs", 1);
    KvmMsrEntry.set(bytes, "index", index, KvmMsrs.tailOffset(0));
    return this.kernel.ioctl(this.vcpu, Ioctl.KVM_GET_MSRS, bytes) === 1
      ? KvmMsrEntry.get(bytes, "data", KvmMsrs.tailOffset(0))
      : undefined;
  }
  /** False: refused. */
  setMsr(index: number, data: bigint): boolean {
    const bytes = new Uint8Array(KvmMsrs.tailOffset(1));
    KvmMsrs.set(bytes, "nmsrs", 1);
    KvmMsrEntry.write(bytes, { index, data }, KvmMsrs.tailOffset(0));
    return this.kernel.ioctl(this.vcpu, Ioctl.KVM_SET_MSRS, bytes) === 1;
  }

  /** KVM_RUN that the kernel ends, before the next VM entry, once `instructions` more have retired: no timer interrupts the guest. */
  async enterUntil(instructions: number): Promise<void> {
    const { kernel } = this.pair;
    kernel.workAt = kernel.cpu.retiredInstructions() + instructions;
    assert.equal(await kernel.run(this.vcpu, Ioctl.KVM_RUN), ERESTARTSYS);
    kernel.workAt = Number.POSITIVE_INFINITY;
  }
  /** KVM_RUN until the vCPU waits for what does not come. */
  async enterUntilIdle(): Promise<void> {
    const { kernel } = this.pair;
    kernel.onIdle = () => {
      kernel.work = true;
    };
    assert.equal(await kernel.run(this.vcpu, Ioctl.KVM_RUN), ERESTARTSYS);
    kernel.onIdle = undefined;
    kernel.work = false;
  }
  /** As `enterUntil`, with an interrupt at exactly that instruction. */
  async enterFor(instructions: number): Promise<void> {
    const { kernel } = this.pair;
    kernel.stopAt(kernel.cpu.retiredInstructions() + instructions);
    assert.equal(await kernel.run(this.vcpu, Ioctl.KVM_RUN), ERESTARTSYS);
    kernel.workAt = Number.POSITIVE_INFINITY;
  }
}
