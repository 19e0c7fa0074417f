/**
 * The file that keeps what is in the flash chip. It is open only while it is written, so that a VM can be saved between any two
 * instructions.
 */
import { Errno, errnoName, OpenFlag, type SystemCalls } from "@mkvm/kvm-abi";
import { report } from "./console.ts";
import { VmmError } from "./vmm-error.ts";

export class VariablesFile {
  readonly #sys: SystemCalls;
  readonly #path: string;
  #failed = false;

  /** Throws VmmError where the file cannot be written. */
  static open(sys: SystemCalls, path: string): VariablesFile {
    const file = new VariablesFile(sys, path);
    const fd = sys.open(path, OpenFlag.O_RDWR);
    if (fd < 0) {
      const why = fd === -Errno.ENOENT ? "no such file" : errnoName(-fd);
      throw new VmmError(
        `cannot write firmware variables to ${path}: ${why}; give a copy of the VARS file that is yours to write`,
      );
    }
    sys.close(fd);
    return file;
  }

  /** Nothing is written before the first change. */
  constructor(sys: SystemCalls, path: string) {
    this.#sys = sys;
    this.#path = path;
  }

  /** Writes `lengthBytes` from `address` of the process to `offset` of the file. Where that fails a person is told, once. */
  write(address: number, lengthBytes: number, offset: number): void {
    const fd = this.#sys.open(this.#path, OpenFlag.O_RDWR);
    const written = fd < 0 ? fd : this.#sys.pwrite(fd, address, lengthBytes, offset);
    if (fd >= 0) this.#sys.close(fd);
    if (written === lengthBytes || this.#failed) return;
    this.#failed = true;
    const why = written < 0 ? errnoName(-written) : "the disk is full";
    report(this.#sys, `cannot write firmware variables to ${this.#path}: ${why}; what the firmware writes is lost with the VM`);
  }
}
