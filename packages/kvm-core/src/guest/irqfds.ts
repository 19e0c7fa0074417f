/**
 * KVM_IRQFD: eventfds that raise interrupts. An edge for each signal; with KVM_IRQFD_FLAG_RESAMPLE a level, which the guest's EOI
 * takes away, and the VMM's other eventfd is told so that it may raise it again. Errors are those of Linux's virt/kvm/eventfd.c.
 */
import { Errno, type Eventfd, IrqSource } from "@mkvm/kvm-abi";

export interface Irqfd {
  readonly gsi: number;
  readonly eventfd: Eventfd;
  /** Of one with KVM_IRQFD_FLAG_RESAMPLE. */
  readonly resamplefd: Eventfd | undefined;
}

interface Watched extends Irqfd {
  stop: (() => void) | undefined;
}

export class Irqfds {
  readonly #setGsi: (gsi: number, source: number, level: boolean) => void;
  /** In the order in which they came. */
  #all: Watched[] = [];

  constructor(setGsi: (gsi: number, source: number, level: boolean) => void) {
    this.#setGsi = setGsi;
  }

  get all(): readonly Irqfd[] {
    return this.#all;
  }

  /** 0, or -EBUSY where the eventfd raises an interrupt of this VM already. The references are this object's on success. */
  assign(irqfd: Irqfd): number {
    if (this.#all.some(({ eventfd }) => eventfd.id === irqfd.eventfd.id)) return -Errno.EBUSY;
    const watched: Watched = { ...irqfd, stop: undefined };
    this.#all.push(watched);
    this.#watch(watched);
    return 0;
  }

  /** One that is not there is no error, as in Linux. */
  deassign(eventfdId: number, gsi: number): void {
    for (const each of this.#all.filter(({ eventfd, gsi: of }) => eventfd.id === eventfdId && of === gsi)) this.#remove(each);
  }

  /** The guest ended the interrupt of a GSI. */
  acknowledged(gsi: number): void {
    const resampled = this.#all.filter((each) => each.gsi === gsi && each.resamplefd !== undefined);
    if (resampled.length === 0) return;
    this.#setGsi(gsi, IrqSource.irqfdResample, false);
    for (const { resamplefd } of resampled) resamplefd?.signal();
  }

  /** For a VM that comes from elsewhere: these, and no others; `listen` says when they are to be heard. */
  replace(all: readonly Irqfd[]): void {
    this.#letGo();
    this.#all = all.map((each) => ({ ...each, stop: undefined }));
  }
  listen(): void {
    for (const each of this.#all) if (each.stop === undefined) this.#watch(each);
  }

  /** The VM's descriptor is closed. */
  clear(): void {
    for (const each of [...this.#all]) this.#remove(each);
  }
  /** The VM is gone, or lives elsewhere: its lines are as they are. */
  dispose(): void {
    this.#letGo();
  }

  #watch(irqfd: Watched): void {
    irqfd.stop = irqfd.eventfd.watch({ signalled: () => this.#raise(irqfd), closed: () => this.#remove(irqfd) });
    // Signalled before anybody listened
    if (irqfd.eventfd.take() !== 0n) this.#inject(irqfd);
  }
  #raise(irqfd: Watched): void {
    irqfd.eventfd.take();
    this.#inject(irqfd);
  }
  #inject({ gsi, resamplefd }: Watched): void {
    if (resamplefd !== undefined) {
      this.#setGsi(gsi, IrqSource.irqfdResample, true);
      return;
    }
    this.#setGsi(gsi, IrqSource.userspace, true);
    this.#setGsi(gsi, IrqSource.userspace, false);
  }

  #remove(irqfd: Watched): void {
    this.#all = this.#all.filter((each) => each !== irqfd);
    release(irqfd);
    const { gsi, resamplefd } = irqfd;
    const isLast = resamplefd !== undefined && !this.#all.some((each) => each.gsi === gsi && each.resamplefd !== undefined);
    if (isLast) this.#setGsi(gsi, IrqSource.irqfdResample, false);
  }
  #letGo(): void {
    for (const each of this.#all) release(each);
    this.#all = [];
  }
}

function release(irqfd: Watched): void {
  irqfd.stop?.();
  irqfd.stop = undefined;
  irqfd.eventfd.release();
  irqfd.resamplefd?.release();
}
