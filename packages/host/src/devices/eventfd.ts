/** eventfd(2): a counter that programs read and write, and that modules signal and wait for by reference. */
import { Errno, type Eventfd, type EventfdWatcher } from "@mkvm/kvm-abi";

const LARGEST = 0xffff_ffff_ffff_ffffn;

export class EventCounter {
  /** Unique in its process. */
  readonly id: number;
  readonly isSemaphore: boolean;
  #count: bigint;
  readonly #watchers = new Set<EventfdWatcher>();
  /** Of those in the kernel who also want to know when something was taken. */
  readonly #listeners = new Set<() => void>();

  constructor(id: number, count: bigint, isSemaphore: boolean) {
    this.id = id;
    this.#count = count;
    this.isSemaphore = isSemaphore;
  }

  get count(): bigint {
    return this.#count;
  }

  /** Where it stays when more is signalled. */
  get largest(): bigint {
    return LARGEST;
  }

  /** What read(2) gives: the counter, which is 0 then; of a semaphore 1 of it. 0: there is nothing to read. */
  take(): bigint {
    const taken = this.isSemaphore && this.#count > 0n ? 1n : this.#count;
    this.#count -= taken;
    if (taken > 0n) this.#changed();
    return taken;
  }

  /** eventfd_signal: one more, up to where the counter ends. */
  signal(): void {
    if (this.#count < LARGEST) this.#count++;
    this.#tell("signalled");
  }

  /** write(2): 0, -EINVAL for what cannot be added, -EAGAIN where the counter would overflow. */
  add(value: bigint): number {
    if (value === LARGEST) return -Errno.EINVAL;
    if (LARGEST - this.#count <= value) return -Errno.EAGAIN;
    this.#count += value;
    this.#tell("signalled");
    return 0;
  }

  /** The program has closed it. */
  closed(): void {
    this.#tell("closed");
  }

  watch(watcher: EventfdWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** `changed` is called whenever the counter may be another, or its descriptor is closed. The result ends it. */
  onChange(changed: () => void): () => void {
    // A function of its own, so that one who listens twice is told twice and can stop each
    const listener = () => changed();
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #changed(): void {
    if (this.#listeners.size > 0) for (const listener of [...this.#listeners]) if (this.#listeners.has(listener)) listener();
  }

  /** Watchers may come and go while they are told. */
  #tell(what: keyof EventfdWatcher): void {
    for (const watcher of [...this.#watchers]) if (this.#watchers.has(watcher)) watcher[what]();
    this.#changed();
  }
}

/** A reference to a counter, as a module has it: eventfd_ctx. */
export class EventfdReference implements Eventfd {
  readonly #counter: EventCounter;
  #onRelease: (() => void) | undefined;

  constructor(counter: EventCounter, onRelease: () => void) {
    this.#counter = counter;
    this.#onRelease = onRelease;
  }
  get id(): number {
    return this.#counter.id;
  }
  signal(): void {
    this.#counter.signal();
  }
  take(): bigint {
    return this.#counter.take();
  }
  watch(watcher: EventfdWatcher): () => void {
    return this.#counter.watch(watcher);
  }
  release(): void {
    this.#onRelease?.();
    this.#onRelease = undefined;
  }
}
