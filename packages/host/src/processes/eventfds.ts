/** The eventfds of a process: those with a descriptor, and those that only modules still refer to. */
import { EfdFlag, Errno, type Eventfd } from "@mkvm/kvm-abi";
import { EventCounter, EventfdReference } from "../devices/eventfd.ts";
import { EventfdFile } from "../devices/open-file.ts";
import type { SavedEventfd } from "../saved/process-image.ts";
import type { KernelProcess } from "./process.ts";

const KNOWN_FLAGS = EfdFlag.EFD_SEMAPHORE | EfdFlag.EFD_CLOEXEC | EfdFlag.EFD_NONBLOCK;

interface Held {
  readonly counter: EventCounter;
  references: number;
}

export class ProcessEventfds {
  readonly #process: KernelProcess;
  readonly #byId = new Map<number, Held>();
  #lastId = 0;

  constructor(process: KernelProcess) {
    this.#process = process;
  }

  /** A descriptor, or a negative errno. */
  create(initial: number, flags: number): number {
    if ((flags & ~KNOWN_FLAGS) !== 0) return -Errno.EINVAL;
    const counter = new EventCounter(++this.#lastId, BigInt(initial >>> 0), (flags & EfdFlag.EFD_SEMAPHORE) !== 0);
    const fd = this.#process.install(this.#file(counter, (flags & EfdFlag.EFD_NONBLOCK) !== 0));
    if (fd >= 0) this.#byId.set(counter.id, { counter, references: 1 });
    return fd;
  }

  #file(counter: EventCounter, isNonblocking: boolean): EventfdFile {
    return new EventfdFile(counter, isNonblocking, this.#process.kernel.scheduler.createWaitQueue());
  }

  /** For a module: a reference of its own. */
  behind(fd: number): Eventfd | number {
    const file = this.#process.files.get(fd);
    if (file === undefined) return -Errno.EBADF;
    return file instanceof EventfdFile ? this.byId(file.counter.id)! : -Errno.EINVAL;
  }
  byId(id: number): Eventfd | undefined {
    const held = this.#byId.get(id);
    if (held === undefined) return undefined;
    held.references++;
    return new EventfdReference(held.counter, () => this.#letGo(held));
  }

  closed(file: EventfdFile): void {
    file.stopWatching();
    file.counter.closed();
    const held = this.#byId.get(file.counter.id);
    if (held !== undefined) this.#letGo(held);
  }

  #letGo(held: Held): void {
    held.references--;
    if (held.references <= 0) this.#byId.delete(held.counter.id);
  }

  save(): SavedEventfd[] {
    const files = [...this.#process.files].flatMap(([fd, file]) => (file instanceof EventfdFile ? [{ fd, file }] : []));
    return [...this.#byId.values()].map(({ counter }) => ({
      id: counter.id,
      count: counter.count.toString(),
      isSemaphore: counter.isSemaphore,
      descriptors: files
        .filter(({ file }) => file.counter === counter)
        .map(({ fd, file }) => ({ fd, isNonblocking: file.isNonblocking })),
    }));
  }

  /** Into a process that has none, before its VMs ask for them. */
  restore(saved: readonly SavedEventfd[]): void {
    for (const { id, count, isSemaphore, descriptors } of saved) {
      const counter = new EventCounter(id, BigInt(count), isSemaphore);
      this.#byId.set(id, { counter, references: descriptors.length });
      for (const { fd, isNonblocking } of descriptors) this.#process.files.set(fd, this.#file(counter, isNonblocking));
      this.#lastId = Math.max(this.#lastId, id);
    }
  }
}
