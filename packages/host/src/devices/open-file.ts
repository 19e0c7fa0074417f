/** What a descriptor leads to. */
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { Errno, type File, type FileOperations, type Process, type WaitQueue } from "@mkvm/kvm-abi";
import type { EventCounter } from "./eventfd.ts";

/** A device or anonymous file of a module. `operations` and `privateData` change hands when its VM moves. */
export class ModuleFile implements File {
  readonly name: string;
  readonly process: Process;
  operations: FileOperations;
  privateData: unknown;
  /** What its module threw while it ran the VM that the file belongs to. */
  fault: string | undefined;
  /** Where its first page is mapped: kvm_run, for a vCPU's. */
  firstPage: number | undefined;
  /** User space was told of `fault`. */
  faultTold = false;
  #position = 0;

  constructor(name: string, process: Process, operations: FileOperations, privateData: unknown) {
    this.name = name;
    this.process = process;
    this.operations = operations;
    this.privateData = privateData;
  }

  /** Undefined: the file cannot be read. */
  read(into: Uint8Array): number | undefined {
    const count = this.pread(into, this.#position);
    if (count !== undefined && count > 0) this.#position += count;
    return count;
  }

  pread(into: Uint8Array, offsetBytes: number): number | undefined {
    return this.operations.read?.(this, into, offsetBytes);
  }
}

/** A regular file of the machine. */
export class RegularFile {
  readonly name: string;
  readonly #fd: number;
  #position = 0;

  private constructor(name: string, fd: number) {
    this.name = name;
    this.#fd = fd;
  }

  /** A negative errno, or the file. */
  static open(path: string, isWritable: boolean): RegularFile | number {
    try {
      const fd = openSync(path, isWritable ? "r+" : "r");
      if (fstatSync(fd).isDirectory()) {
        closeSync(fd);
        return -Errno.EISDIR;
      }
      return new RegularFile(path, fd);
    } catch (thrown) {
      return errnoOf(thrown);
    }
  }

  read(into: Uint8Array): number {
    const count = this.pread(into, this.#position);
    if (count > 0) this.#position += count;
    return count;
  }

  pread(into: Uint8Array, offsetBytes: number): number {
    try {
      return readSync(this.#fd, into, 0, into.length, offsetBytes);
    } catch (thrown) {
      return errnoOf(thrown);
    }
  }

  pwrite(bytes: Uint8Array, offsetBytes: number): number {
    try {
      return writeSync(this.#fd, bytes, 0, bytes.length, offsetBytes);
    } catch (thrown) {
      return errnoOf(thrown);
    }
  }

  sizeBytes(): number {
    return fstatSync(this.#fd).size;
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** One of descriptors 0, 1 and 2. */
export class ConsoleFile {
  readonly name = "console";
  readonly stream: 0 | 1 | 2;

  constructor(stream: 0 | 1 | 2) {
    this.stream = stream;
  }
}

/** What eventfd(2) gives. */
export class EventfdFile {
  readonly name = "[eventfd]";
  readonly counter: EventCounter;
  readonly isNonblocking: boolean;
  /** Of those who wait for the counter to be more than 0. */
  readonly readable: WaitQueue;
  readonly stopWatching: () => void;

  constructor(counter: EventCounter, isNonblocking: boolean, readable: WaitQueue) {
    this.counter = counter;
    this.isNonblocking = isNonblocking;
    this.readable = readable;
    this.stopWatching = counter.watch({ signalled: () => readable.wake(), closed: () => undefined });
  }
}

export type OpenFile = ModuleFile | RegularFile | ConsoleFile | EventfdFile;

function errnoOf(thrown: unknown): number {
  const code = (thrown as { code?: unknown } | undefined)?.code;
  const known = typeof code === "string" && code in Errno ? Errno[code as keyof typeof Errno] : Errno.EIO;
  return -known;
}
