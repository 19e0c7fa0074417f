import { Errno, errnoName, type SystemCalls } from "@mkvm/kvm-abi";
import type { GuestMemory } from "./guest-memory.ts";
import { VmmError } from "./vmm-error.ts";

const BUFFER_BYTES = 1 << 16;

/** A file that a guest is booted from. Small parts are read into memory of the VMM, large ones straight into guest RAM. */
export class ImageFile {
  readonly path: string;
  readonly bytes: number;
  readonly #sys: SystemCalls;
  readonly #fd: number;
  readonly #buffer: number;

  /** Throws VmmError when the file cannot be read. `what` names its part in messages: "kernel image". */
  static open(sys: SystemCalls, path: string, what: string): ImageFile {
    const fd = sys.open(path);
    if (fd < 0) {
      const why = fd === -Errno.ENOENT ? "no such file" : errnoName(-fd);
      throw new VmmError(`cannot open ${what} ${path}: ${why}; check the path`);
    }
    const bytes = sys.fstatSize(fd);
    if (bytes < 0) throw new VmmError(`cannot read ${what} ${path}: ${errnoName(-bytes)}; it must be a regular file`);
    const buffer = sys.mmap(BUFFER_BYTES, -1, 0);
    if (buffer < 0) throw new VmmError("no memory to read images into; raise the memory of the process");
    return new ImageFile(sys, path, fd, bytes, buffer);
  }

  private constructor(sys: SystemCalls, path: string, fd: number, bytes: number, buffer: number) {
    this.#sys = sys;
    this.path = path;
    this.#fd = fd;
    this.bytes = bytes;
    this.#buffer = buffer;
  }

  /** A copy of `length` bytes at `offset`, shorter at the end of the file. `length` is at most 64 KiB. */
  read(offset: number, length: number): Uint8Array {
    const got = this.#sys.pread(this.#fd, this.#buffer, Math.min(length, BUFFER_BYTES), offset);
    if (got < 0) throw new VmmError(`cannot read ${this.path}: ${errnoName(-got)}`);
    return this.#sys.memory.u8.slice(this.#buffer, this.#buffer + got);
  }

  /** Reads into guest memory at `gpa`. Throws VmmError when the file ends early. */
  readInto(memory: GuestMemory, gpa: number, offset: number, length: number): void {
    const target = memory.at(gpa, length);
    let done = 0;
    while (done < length) {
      const got = this.#sys.pread(this.#fd, target + done, length - done, offset + done);
      if (got < 0) throw new VmmError(`cannot read ${this.path}: ${errnoName(-got)}`);
      if (got === 0) throw new VmmError(`${this.path} is truncated: it ends ${length - done} bytes early; fetch it again`);
      done += got;
    }
  }

  close(): void {
    this.#sys.munmap(this.#buffer, BUFFER_BYTES);
    this.#sys.close(this.#fd);
  }
}
