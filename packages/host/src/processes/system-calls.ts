/** System calls of one thread. */

import { resolve as resolvePath } from "node:path";
import { bankOf, type Hpa, hpa, offsetOf } from "@mkvm/hw-x86";
import { Errno, type Hva, Ioctl, OpenFlag, type SystemCalls } from "@mkvm/kvm-abi";
import { isDevicePath } from "../devices/device-tree.ts";
import { ConsoleFile, EventfdFile, ModuleFile, RegularFile } from "../devices/open-file.ts";
import { pageBytes } from "../memory/page-allocator.ts";
import { canContain, resultOnFailedVm } from "./contained-fault.ts";
import { readEventfd, waitForEventfd, writeEventfd } from "./eventfd-calls.ts";
import { poll } from "./poll.ts";
import type { KernelProcess } from "./process.ts";
import type { Resumption } from "./resumption.ts";
import type { KernelTask } from "./task.ts";

/** Thrown out of a synchronous call of a process that ends. */
export const processEnds: unique symbol = Symbol("process ends");

/** What asynchronous calls of a process that ends return: the thread goes no further, and is collected with its promise. */
function never(): Promise<never> {
  return new Promise(() => {});
}

function pagesIn(lengthBytes: number): number {
  return Math.ceil(lengthBytes / pageBytes);
}

export function createSystemCalls(process: KernelProcess, task: KernelTask): SystemCalls {
  const { kernel, memory } = process;
  const { scheduler } = kernel;

  function check(): void {
    if (process.ending) throw processEnds;
  }

  function enter(file: ModuleFile, request: number, argument: number): number | Promise<number> {
    if (!file.operations.ioctl) return -Errno.ENOTTY;
    if (file.fault !== undefined) {
      if (!process.frozen) task.workDone();
      return resultOnFailedVm(file, request, memory.bank.view);
    }
    kernel.current = process;
    scheduler.runningTask = task;
    task.insideOf = file.operations;
    try {
      return file.operations.ioctl!(file, request, argument, task);
    } catch (thrown) {
      return threw(file, request, thrown);
    }
  }

  function threw(file: ModuleFile, request: number, thrown: unknown): number {
    // The vCPU that it was running on this CPU, if it came so far: nobody else would say that it does not run any more
    const running = kernel.vac.runningVcpu(kernel.cpu.id);
    if (running !== undefined) kernel.vac.clearRunningVcpu(running.owner);
    if (process.ending || !canContain(file, request)) {
      process.crash(file.operations.owner, thrown);
      return -Errno.EIO;
    }
    process.contain(file, thrown);
    return resultOnFailedVm(file, request, memory.bank.view);
  }

  /** The thread is out of the module: a move or the end of the process may have waited for that. */
  function leave(): void {
    task.insideOf = undefined;
    if (process.frozen || process.ending) process.settle();
  }

  function returnToUser(): void {
    kernel.vac.returnToUser();
    kernel.cpu.sanitizer.returnsToUser();
  }

  function backToUser(result: number): number {
    if (result === -Errno.EINTR) task.signalDelivered();
    returnToUser();
    return result;
  }

  async function finish(
    fd: number,
    file: ModuleFile,
    request: number,
    argument: number,
    first: number | Promise<number>,
  ): Promise<number> {
    let outcome = first;
    if (request === Ioctl.KVM_RUN) task.running = fd;
    for (;;) {
      let result: number;
      try {
        result = typeof outcome === "number" ? outcome : await outcome;
      } catch (thrown) {
        result = threw(file, request, thrown);
      }
      const restart = result === -Errno.ERESTARTSYS;
      const wanted = task.workPending();
      if (!restart && request === Ioctl.KVM_RUN) task.undelivered = { fd, request, result };
      leave();
      if (process.ending) return never();
      if (process.frozen) await process.thawed(task);
      else if ((restart && !wanted) || scheduler.needResched()) {
        // The slice is over; or the module left for work that is gone, and must not spin on it.
        await new Promise<void>((resolve) => scheduler.makeRunnable(resolve, process, task));
        // A move that began meanwhile is no reason to wait here: this thread is outside of the module.
      }
      if (process.ending) return never();
      kernel.current = process;
      task.undelivered = undefined;
      if (!restart) {
        task.running = undefined;
        return backToUser(result);
      }
      if (process.frozen) {
        outcome = -Errno.ERESTARTSYS;
        continue;
      }
      if (process.files.get(fd) !== file) {
        task.running = undefined;
        return backToUser(-Errno.EBADF);
      }
      outcome = enter(file, request, argument);
    }
  }

  /** KVM_RUN of a process that is taken up, once it is the thread's turn again. */
  async function takeUpRun(resumption: Resumption, fd: number, argument: number): Promise<number> {
    task.running = fd;
    await resumption.turnOf(task, fd);
    task.running = undefined;
    return calls.ioctl(fd, Ioctl.KVM_RUN, argument);
  }

  function openDevice(path: string): number {
    const node = process.mounts.lookup(path);
    if (typeof node === "number") return node;
    const operations = kernel.modules.operationsOf(node.module, node.device);
    if (!operations) return -Errno.ENXIO;
    const file = new ModuleFile(path, process, operations, undefined);
    let result = 0;
    try {
      kernel.current = process;
      result = operations.open?.(file) ?? 0;
    } catch (thrown) {
      process.crash(operations.owner, thrown);
      throw processEnds;
    }
    return result < 0 ? result : process.install(file);
  }

  /** Reads of modules' files do not wait, so they need no way out for a move. */
  function readModule(file: ModuleFile, read: () => number): number {
    try {
      kernel.current = process;
      return read();
    } catch (thrown) {
      process.crash(file.operations.owner, thrown);
      return -Errno.EIO;
    }
  }

  async function readInput(address: Hva, lengthBytes: number): Promise<number> {
    for (;;) {
      const into = memory.view(address, lengthBytes);
      if (!into) return backToUser(-Errno.EFAULT);
      const count = process.input.read(into);
      if (count !== undefined) return backToUser(count);
      if (task.signalPending()) return backToUser(-Errno.EINTR);
      await process.inputArrived.wait(task);
      if (process.ending) return never();
      if (process.frozen) await process.thawed(task);
      if (process.ending) return never();
    }
  }

  const calls: SystemCalls = {
    memory: { u8: memory.bank.u8, view: memory.bank.view },
    pid: process.pid,

    open(path, flags = OpenFlag.O_RDONLY) {
      check();
      if (isDevicePath(path)) return openDevice(path);
      const file = RegularFile.open(resolvePath(path), flags === OpenFlag.O_RDWR);
      return typeof file === "number" ? file : process.install(file);
    },

    close(fd) {
      check();
      return process.close(fd);
    },

    ioctl(fd, request, argument) {
      if (process.ending) return never();
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      if (!(file instanceof ModuleFile) || !file.operations.ioctl) return -Errno.ENOTTY;
      if (request === Ioctl.KVM_RUN) {
        if (process.resumption) return takeUpRun(process.resumption, fd, argument);
        const undelivered = process.takeUndelivered(fd);
        if (undelivered !== undefined) return backToUser(undelivered);
      }
      // While the VM moves nobody enters a module: the call is made after the thaw, as a restarted one.
      if (process.frozen) return finish(fd, file, request, argument, -Errno.ERESTARTSYS);
      const result = enter(file, request, argument);
      if (typeof result !== "number" || result === -Errno.ERESTARTSYS || scheduler.needResched() || process.ending) {
        return finish(fd, file, request, argument, result);
      }
      leave();
      if (process.ending) return never();
      return backToUser(result);
    },

    mmap(lengthBytes, fd, offsetBytes) {
      check();
      if (fd === -1) {
        const anonymous = memory.mapAnonymous(lengthBytes);
        if (anonymous >= 0) kernel.cpu.sanitizer.pagesAllocated(hpa(process.bank, anonymous), pagesIn(lengthBytes));
        return anonymous;
      }
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      if (!(file instanceof ModuleFile) || !file.operations.mmap) return -Errno.ENODEV;
      let address: number;
      try {
        kernel.current = process;
        address = file.operations.mmap(file, lengthBytes, offsetBytes);
      } catch (thrown) {
        process.crash(file.operations.owner, thrown);
        throw processEnds;
      }
      if (address < 0) return address;
      const offset = offsetOf(address as Hpa);
      if (bankOf(address as Hpa) !== process.bank) return -Errno.EFAULT;
      if (!memory.pages.mapKernelPages(offset, pagesIn(lengthBytes))) return -Errno.EFAULT;
      if (offsetBytes === 0) file.firstPage = offset;
      return offset;
    },

    munmap(address, lengthBytes) {
      check();
      const result = memory.unmap(address, lengthBytes);
      if (result === 0) kernel.cpu.sanitizer.pagesFreed(hpa(process.bank, address), pagesIn(lengthBytes));
      return result;
    },

    read(fd, address, lengthBytes) {
      if (process.ending) return never();
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      if (file instanceof EventfdFile)
        return (
          readEventfd(process, file, address, lengthBytes) ??
          waitForEventfd(process, task, file, address, never).then(backToUser)
        );
      const into = memory.view(address, lengthBytes);
      if (!into) return -Errno.EFAULT;
      if (file instanceof RegularFile) return file.read(into);
      if (file instanceof ModuleFile) return readModule(file, () => file.read(into) ?? -Errno.EINVAL);
      if (!(file instanceof ConsoleFile) || file.stream !== 0) return -Errno.EINVAL;
      return process.input.read(into) ?? readInput(address, lengthBytes);
    },

    pread(fd, address, lengthBytes, offsetBytes) {
      check();
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      if (file instanceof ConsoleFile || file instanceof EventfdFile) return -Errno.ESPIPE;
      const into = memory.view(address, lengthBytes);
      if (!into) return -Errno.EFAULT;
      if (file instanceof RegularFile) return file.pread(into, offsetBytes);
      if (offsetBytes < 0) return -Errno.EINVAL;
      return readModule(file, () => file.pread(into, offsetBytes) ?? -Errno.ESPIPE);
    },

    pwrite(fd, address, lengthBytes, offsetBytes) {
      check();
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      if (!(file instanceof RegularFile)) return -Errno.ESPIPE;
      if (offsetBytes < 0) return -Errno.EINVAL;
      const bytes = memory.view(address, lengthBytes);
      return bytes ? file.pwrite(bytes, offsetBytes) : -Errno.EFAULT;
    },

    write(fd, address, lengthBytes) {
      check();
      const file = process.files.get(fd);
      if (file instanceof EventfdFile) return writeEventfd(process, file, address, lengthBytes);
      if (!(file instanceof ConsoleFile) || file.stream === 0) return file ? -Errno.EINVAL : -Errno.EBADF;
      const bytes = memory.view(address, lengthBytes);
      if (!bytes) return -Errno.EFAULT;
      process.output.write(file.stream, bytes);
      return lengthBytes;
    },

    eventfd(initial, flags) {
      check();
      return process.eventfds.create(initial, flags);
    },

    poll(requests, timeoutNs) {
      if (process.ending) return never();
      return poll(process, task, requests, timeoutNs, never).then((result) => {
        backToUser(typeof result === "number" ? result : 0);
        return result;
      });
    },

    fstatSize(fd) {
      check();
      const file = process.files.get(fd);
      if (!file) return -Errno.EBADF;
      return file instanceof RegularFile ? file.sizeBytes() : -Errno.EINVAL;
    },

    resourceUsage: () => ({
      instructions: kernel.cpu.retiredInstructions() - process.startRetired,
      kernelBytes: memory.pages.kernelPages * pageBytes,
    }),
    clockMonotonicNs: () => scheduler.clock.monotonicNs(),
    clockRealtimeNs: () => scheduler.clock.realtimeNs(),

    spawnThread(name, body) {
      check();
      const thread = process.createTask(name);
      return { tid: thread.tid, finished: kernel.runTask(process, thread, body) };
    },

    signalThread(tid) {
      check();
      const target = [...process.tasks].find((candidate) => candidate.tid === tid);
      if (!target) return -Errno.ESRCH;
      target.signal();
      return 0;
    },

    async sleepNs(durationNs) {
      if (process.ending) return never();
      const deadlineNs = scheduler.clock.monotonicNs() + Math.max(0, durationNs);
      // A signal ends the sleep; a move only interrupts it.
      while (scheduler.clock.monotonicNs() < deadlineNs && !task.signalPending()) {
        await scheduler.sleepUntil(task, deadlineNs);
        if (process.frozen) await process.thawed(task);
        if (process.ending) return never();
      }
      returnToUser();
    },

    closeInput() {
      process.input.close();
    },

    onSave(state) {
      process.programState = state;
    },
    restored: () => process.restoredSections,
  };
  return calls;
}
