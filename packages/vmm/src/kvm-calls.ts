import {
  errnoName,
  type Fields,
  Ioctl,
  ioctlName,
  type Struct,
  type StructInput,
  type StructValue,
  type SystemCalls,
} from "@mkvm/kvm-abi";
import { ExitStatus, VmmError } from "./vmm-error.ts";

const ARGUMENT_BYTES = 1 << 16;

/** A KVM system call that failed: which, and how. */
export class KvmCallError extends VmmError {
  readonly errno: number;
  readonly exitStatus = ExitStatus.systemCall;

  constructor(request: number, errno: number) {
    super(`${ioctlName(request)} failed: ${errnoName(errno)}; see mkvm dmesg for the reason`);
    this.errno = errno;
  }
}

/** ioctls with structures: puts arguments into memory of the process and takes results out of it. */
export class KvmCalls {
  readonly #sys: SystemCalls;
  readonly #argument: number;

  constructor(sys: SystemCalls) {
    this.#sys = sys;
    const argument = sys.mmap(ARGUMENT_BYTES, -1, 0);
    if (argument < 0) throw new VmmError("no memory for the arguments of system calls; raise the memory of the process");
    this.#argument = argument;
  }

  /** The result, never negative. Throws KvmCallError. */
  async number(fd: number, request: number, argument = 0): Promise<number> {
    const result = await this.#sys.ioctl(fd, request, argument);
    if (result < 0) throw new KvmCallError(request, -result);
    return result;
  }

  async set<F extends Fields>(fd: number, request: number, layout: Struct<F>, value: StructInput<F>): Promise<number> {
    return this.setBytes(fd, request, layout.encode(value));
  }

  async setBytes(fd: number, request: number, bytes: Uint8Array): Promise<number> {
    this.#sys.memory.u8.set(bytes, this.#argument);
    return this.number(fd, request, this.#argument);
  }

  async get<F extends Fields>(fd: number, request: number, layout: Struct<F>): Promise<StructValue<F>> {
    await this.setBytes(fd, request, new Uint8Array(layout.sizeBytes));
    return layout.read(this.#sys.memory.view, this.#argument);
  }

  /** Passes `bytes` in and gives back what the call left of them. */
  async exchange(fd: number, request: number, bytes: Uint8Array): Promise<Uint8Array> {
    await this.setBytes(fd, request, bytes);
    return this.#sys.memory.u8.slice(this.#argument, this.#argument + bytes.length);
  }

  /** True when the extension is there; `fd` a system or VM descriptor. */
  async has(fd: number, capability: number): Promise<boolean> {
    return (await this.number(fd, Ioctl.KVM_CHECK_EXTENSION, capability)) > 0;
  }
}
