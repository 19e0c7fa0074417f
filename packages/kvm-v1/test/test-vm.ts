/** A VM of one module, driven through its descriptors as a VMM does. */
import {
  ExitReason,
  exitReasonName,
  Ioctl,
  KvmPitConfig,
  KvmRegs,
  KvmRun,
  KvmSegment,
  KvmSregs,
  KvmUserspaceMemoryRegion,
  type ModuleInstance,
  type StructInput,
} from "@mkvm/kvm-abi";
import type { InThreadKernel } from "./in-thread-kernel.ts";

export const GUEST_BYTES = 0x40_0000;
export const CODE = 0x8000;
const CPUID_ROOM = 8 + 100 * 40;

export interface Io {
  isIn: boolean;
  port: number;
  size: number;
  count: number;
  data: Uint8Array;
}
export interface Mmio {
  address: number;
  length: number;
  isWrite: boolean;
  data: Uint8Array;
}

export interface TestVmOptions {
  irqchip?: boolean;
  pit?: boolean;
  /** Of KVM_CREATE_PIT2. */
  pitFlags?: number;
  /** Of the slot with the guest's memory. */
  flags?: number;
  /** For what must be set before there are vCPUs. */
  beforeVcpus?: (kernel: InThreadKernel, vmFd: number) => void;
}

export class TestVm {
  readonly kernel: InThreadKernel;
  readonly system: number;
  readonly fd: number;
  readonly vcpu: number;
  /** User address of guest-physical 0. */
  readonly memory: number;
  readonly run: Uint8Array;
  readonly #view: DataView;

  constructor(kernel: InThreadKernel, instance: ModuleInstance, options: TestVmOptions = {}) {
    this.kernel = kernel;
    this.system = kernel.open(instance);
    this.fd = this.#check("CREATE_VM", kernel.ioctl(this.system, Ioctl.KVM_CREATE_VM));
    if (options.irqchip) this.#check("CREATE_IRQCHIP", kernel.ioctl(this.fd, Ioctl.KVM_CREATE_IRQCHIP));
    if (options.pit) {
      const config = KvmPitConfig.encode({ flags: options.pitFlags ?? 0 });
      this.#check("CREATE_PIT2", kernel.ioctl(this.fd, Ioctl.KVM_CREATE_PIT2, config));
    }
    options.beforeVcpus?.(kernel, this.fd);
    this.memory = kernel.mmap(GUEST_BYTES);
    this.#check("SET_USER_MEMORY_REGION", this.setRegion({ flags: options.flags ?? 0, memory_size: BigInt(GUEST_BYTES) }));
    this.vcpu = this.createVcpu(0);
    this.run = kernel.mapRun(this.vcpu);
    this.#view = new DataView(this.run.buffer, this.run.byteOffset, this.run.byteLength);
  }

  createVcpu(id: number): number {
    const { kernel } = this;
    const fd = this.#check("CREATE_VCPU", kernel.ioctl(this.fd, Ioctl.KVM_CREATE_VCPU, id));
    const table = new Uint8Array(CPUID_ROOM);
    new DataView(table.buffer).setUint32(0, 100, true);
    this.#check("GET_SUPPORTED_CPUID", kernel.ioctl(this.system, Ioctl.KVM_GET_SUPPORTED_CPUID, table));
    this.#check("SET_CPUID2", kernel.ioctl(fd, Ioctl.KVM_SET_CPUID2, table));
    return fd;
  }

  setRegion(region: StructInput<(typeof KvmUserspaceMemoryRegion)["fields"]>): number {
    const bytes = KvmUserspaceMemoryRegion.encode({ userspace_addr: BigInt(this.memory), ...region });
    return this.kernel.ioctl(this.fd, Ioctl.KVM_SET_USER_MEMORY_REGION, bytes);
  }

  load(bytes: readonly number[], gpa = CODE): void {
    this.kernel.bank.u8.set(bytes, this.memory + gpa);
  }
  u32(gpa: number): number {
    return this.kernel.bank.view.getUint32(this.memory + gpa, true);
  }
  write64(gpa: number, value: bigint): void {
    this.kernel.bank.view.setBigUint64(this.memory + gpa, value, true);
  }

  regs(): ReturnType<typeof KvmRegs.read> {
    const bytes = new Uint8Array(KvmRegs.sizeBytes);
    this.#check("GET_REGS", this.kernel.ioctl(this.vcpu, Ioctl.KVM_GET_REGS, bytes));
    return KvmRegs.read(bytes);
  }
  setRegs(values: StructInput<(typeof KvmRegs)["fields"]>): void {
    const bytes = KvmRegs.encode({ rflags: 2n, ...values });
    this.#check("SET_REGS", this.kernel.ioctl(this.vcpu, Ioctl.KVM_SET_REGS, bytes));
  }
  sregs(): ReturnType<typeof KvmSregs.read> {
    const bytes = new Uint8Array(KvmSregs.sizeBytes);
    this.#check("GET_SREGS", this.kernel.ioctl(this.vcpu, Ioctl.KVM_GET_SREGS, bytes));
    return KvmSregs.read(bytes);
  }
  setSregs(values: ReturnType<typeof KvmSregs.read>): void {
    this.#check("SET_SREGS", this.kernel.ioctl(this.vcpu, Ioctl.KVM_SET_SREGS, KvmSregs.encode(values)));
  }

  /** Real mode from CODE on, segments at 0. */
  startReal(registers: StructInput<(typeof KvmRegs)["fields"]> = {}): void {
    const sregs = this.sregs();
    sregs.cs.base = 0n;
    sregs.cs.selector = 0;
    this.setSregs(sregs);
    this.setRegs({ rip: BigInt(CODE), rsp: 0x7000n, ...registers });
  }

  /** 64-bit mode from CODE on, the first GiB mapped one to one by 2 MiB pages from tables at 0x1000. */
  startLong(registers: StructInput<(typeof KvmRegs)["fields"]> = {}): void {
    this.write64(0x1000, 0x2003n);
    this.write64(0x2000, 0x3003n);
    // The last GiB below 4 GiB as well: there are the APICs
    this.write64(0x2018, 0x4003n);
    for (let index = 0; index < 512; index++) {
      this.write64(0x3000 + index * 8, BigInt(index * 0x20_0000) | 0x83n);
      this.write64(0x4000 + index * 8, BigInt(0xc000_0000 + index * 0x20_0000) | 0x83n);
    }
    const sregs = this.sregs();
    const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, db: 0, s: 1, l: 0, g: 1, avl: 0, unusable: 0, padding: 0 };
    sregs.cs = KvmSegment.read(KvmSegment.encode({ ...flat, selector: 8, type: 11, l: 1 }));
    const data = KvmSegment.read(KvmSegment.encode({ ...flat, selector: 16, type: 3, db: 1 }));
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.cr0 = 0x8000_0033n;
    sregs.cr3 = 0x1000n;
    sregs.cr4 = 0x620n;
    sregs.efer = 0x500n;
    this.setSregs(sregs);
    this.setRegs({ rip: BigInt(CODE), rsp: 0x7000n, ...registers });
  }

  /** KVM_RUN up to an exit; its reason by name. A negative errno is an error here. */
  async enter(): Promise<string> {
    const result = await this.kernel.run(this.vcpu, Ioctl.KVM_RUN);
    if (result !== 0) throw new Error(`KVM_RUN: errno ${-result}\n${this.kernel.log.join("\n")}`);
    return this.exitReason;
  }
  get exitReason(): string {
    return exitReasonName(this.#view.getUint32(KvmRun.offsets.exit_reason, true));
  }
  get io(): Io {
    if (this.#view.getUint32(8, true) !== ExitReason.KVM_EXIT_IO) throw new Error(`not an I/O exit: ${this.exitReason}`);
    const io = KvmRun.fields.exit.members.io.read(this.#view, 0);
    const at = Number(io.data_offset);
    return {
      isIn: io.direction === 0,
      port: io.port,
      size: io.size,
      count: io.count,
      data: this.run.subarray(at, at + io.size * io.count),
    };
  }
  get mmio(): Mmio {
    if (this.#view.getUint32(8, true) !== ExitReason.KVM_EXIT_MMIO) throw new Error(`not an MMIO exit: ${this.exitReason}`);
    const mmio = KvmRun.fields.exit.members.mmio.read(this.#view, 0);
    const at = KvmRun.fields.exit.members.mmio.offsets.data;
    return {
      address: Number(mmio.phys_addr),
      length: mmio.len,
      isWrite: mmio.is_write !== 0,
      data: this.run.subarray(at, at + mmio.len),
    };
  }
  close(): void {
    this.kernel.close(this.vcpu);
    this.kernel.close(this.fd);
    this.kernel.close(this.system);
    const findings = this.kernel.log.filter((line) => line.includes("sanitizer"));
    if (findings.length > 0) throw new Error(`the hardware sanitizer found mistakes of the module:\n${findings.join("\n")}`);
  }

  #check(what: string, result: number): number {
    if (result < 0) throw new Error(`${what}: errno ${-result}\n${this.kernel.log.join("\n")}`);
    return result;
  }
}
