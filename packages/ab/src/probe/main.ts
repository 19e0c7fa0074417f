/**
 * The VMM with its system calls watched, as strace would: no instruction of the guest, nothing of the VMM and no ioctl of the
 * module is other than without it. At the two markers the VM stands between two instructions, and all counters are read there.
 */
import { readBinaryStatistics, type Statistic } from "@mkvm/host";
import { Ioctl, type Main, type SystemCalls } from "@mkvm/kvm-abi";
import { main as vmm } from "@mkvm/vmm";
import { type ProbeOptions, type ProbeReport, reportPrefix, type Snapshot } from "./protocol.ts";

const bufferBytes = 256 * 1024;

export const main: Main = async (sys, [options, ...words]) => {
  const watch = new Watch(sys, JSON.parse(options!) as ProbeOptions);
  return Promise.race([vmm(watch.watched(sys), words), watch.ended]);
};

class Watch {
  readonly ended: Promise<number>;
  readonly #sys: SystemCalls;
  readonly #options: ProbeOptions;
  readonly #buffer: number;
  readonly #vms: number[] = [];
  readonly #vcpus: number[] = [];
  #vmStatistics: number[] = [];
  #vcpuStatistics: number[] = [];
  #opened: Promise<void> | undefined;
  #isOpen = false;
  #state: "before" | "inside" | "after" = "before";
  /** Of the console: what may be the beginning of a marker. */
  #tail = "";
  readonly #decoder = new TextDecoder();
  #end: (status: number) => void = () => {};

  constructor(sys: SystemCalls, options: ProbeOptions) {
    this.#sys = sys;
    this.#options = options;
    this.#buffer = sys.mmap(bufferBytes, -1, 0);
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** The calls of one thread, with those in between that matter here. */
  watched(sys: SystemCalls): SystemCalls {
    return {
      ...sys,
      ioctl: (fd, request, argument) => {
        if (request === Ioctl.KVM_RUN && !this.#isOpen) {
          this.#opened ??= this.#open();
          return this.#opened.then(() => sys.ioctl(fd, request, argument));
        }
        const result = sys.ioctl(fd, request, argument);
        const made = request === Ioctl.KVM_CREATE_VM ? this.#vms : request === Ioctl.KVM_CREATE_VCPU ? this.#vcpus : undefined;
        if (!made) return result;
        const note = (descriptor: number) => {
          if (descriptor >= 0) made.push(descriptor);
          return descriptor;
        };
        return typeof result === "number" ? note(result) : result.then(note);
      },
      write: (fd, address, lengthBytes) => {
        const written = sys.write(fd, address, lengthBytes);
        if (fd === 1 && written > 0) this.#saw(sys.memory.u8.slice(address, address + written));
        return written;
      },
      spawnThread: (name, body) => sys.spawnThread(name, (own) => body(this.watched(own))),
    };
  }

  /** Statistics of all that there is, before the guest's first instruction: reading them later needs no ioctl then. */
  async #open(): Promise<void> {
    const open = async (fds: readonly number[]) => {
      const opened: number[] = [];
      for (const fd of fds) {
        const statistics = await this.#sys.ioctl(fd, Ioctl.KVM_GET_STATS_FD, 0);
        // A module may have none: then there is less to compare.
        if (statistics >= 0) opened.push(statistics);
      }
      return opened;
    };
    this.#vmStatistics = await open(this.#vms);
    this.#vcpuStatistics = await open(this.#vcpus);
    this.#isOpen = true;
    if (this.#options.start === undefined) this.#begin();
  }

  #saw(bytes: Uint8Array): void {
    if (this.#state === "after") return;
    this.#tail += this.#decoder.decode(bytes, { stream: true });
    const { start, end } = this.#options;
    if (this.#state === "before" && start !== undefined) {
      const at = this.#tail.indexOf(start);
      if (at >= 0) {
        this.#begin();
        this.#tail = this.#tail.slice(at + start.length);
      }
    }
    if (this.#state === "inside" && this.#tail.includes(end)) {
      this.#state = "after";
      this.#report({ at: "end", snapshot: this.#snapshot() });
      this.#end(0);
    }
    this.#tail = this.#tail.slice(-Math.max(start?.length ?? 0, end.length));
  }

  #begin(): void {
    this.#state = "inside";
    this.#report({ at: "start", snapshot: this.#snapshot() });
  }

  #snapshot(): Snapshot {
    const sys = this.#sys;
    const { instructions, kernelBytes } = sys.resourceUsage();
    const read = (fd: number): Statistic[] =>
      readBinaryStatistics((into, offset) => {
        const count = sys.pread(fd, this.#buffer, Math.min(into.length, bufferBytes), offset);
        if (count > 0) into.set(sys.memory.u8.subarray(this.#buffer, this.#buffer + count));
        return count;
      }).statistics;
    const [vm] = this.#vmStatistics;
    return {
      guestNs: sys.clockMonotonicNs(),
      ...threadTime(),
      instructions,
      kernelBytes,
      vm: vm === undefined ? [] : read(vm),
      vcpus: this.#vcpuStatistics.map(read),
    };
  }

  #report(report: ProbeReport): void {
    const bytes = new TextEncoder().encode(`${reportPrefix}${JSON.stringify(report)}\n`);
    for (let at = 0; at < bytes.length; at += bufferBytes) {
      const part = bytes.subarray(at, at + bufferBytes);
      this.#sys.memory.u8.set(part, this.#buffer);
      this.#sys.write(2, this.#buffer, part.length);
    }
  }
}

/** Newer versions of Node.js tell the CPU time of the calling thread. */
function threadTime(): { cpuNs: number } | undefined {
  const { threadCpuUsage } = process as { threadCpuUsage?: () => { user: number; system: number } };
  if (!threadCpuUsage) return undefined;
  const { user, system } = threadCpuUsage.call(process);
  return { cpuNs: (user + system) * 1000 };
}
