/** KVM_IOEVENTFD: guest writes that signal an eventfd instead of leaving for user space. Errors are those of Linux's virt/kvm/eventfd.c. */
import { Errno, type Eventfd, IoeventfdFlag } from "@mkvm/kvm-abi";

/** Virtio-CCW notifications are taken as Linux does on x86, where nothing sends them. */
export type IoBus = "mmio" | "pio" | "ccw";

/** The bus that IoeventfdFlag names. */
export function busOf(flags: number): IoBus {
  if ((flags & IoeventfdFlag.KVM_IOEVENTFD_FLAG_PIO) !== 0) return "pio";
  return (flags & IoeventfdFlag.KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY) !== 0 ? "ccw" : "mmio";
}

export interface Ioeventfd {
  readonly bus: IoBus;
  readonly address: bigint;
  /** 1, 2, 4 or 8 bytes; 0: a write of any length. */
  readonly length: number;
  /** undefined: any value. */
  readonly datamatch: bigint | undefined;
  readonly eventfd: Eventfd;
}

const MASK64 = 0xffff_ffff_ffff_ffffn;

export class Ioeventfds {
  /** In the order in which they came. */
  #all: readonly Ioeventfd[] = [];

  get all(): readonly Ioeventfd[] {
    return this.#all;
  }

  /** 0, or -EEXIST where a write could match one that is there. The reference is this object's on success. */
  assign(added: Ioeventfd): number {
    if (this.#all.some((other) => collide(other, added))) return -Errno.EEXIST;
    this.#all = [...this.#all, added];
    return 0;
  }

  /** 0, or -ENOENT. */
  deassign(gone: Omit<Ioeventfd, "eventfd">, eventfdId: number): number {
    const found = this.#all.find(
      ({ bus, address, length, datamatch, eventfd }) =>
        eventfd.id === eventfdId &&
        bus === gone.bus &&
        address === gone.address &&
        length === gone.length &&
        datamatch === gone.datamatch,
    );
    if (found === undefined) return -Errno.ENOENT;
    this.#all = this.#all.filter((each) => each !== found);
    found.eventfd.release();
    return 0;
  }

  get isEmpty(): boolean {
    return this.#all.length === 0;
  }

  /** A guest's write: true when an eventfd took it. */
  signal(bus: IoBus, address: number, bytes: Uint8Array): boolean {
    if (this.isEmpty) return false;
    const at = BigInt(address);
    const found = this.#all.find(
      (each) => each.bus === bus && each.address === at && (each.length === 0 || takes(each, bytes)),
    );
    found?.eventfd.signal();
    return found !== undefined;
  }

  /** For a VM that comes from elsewhere: these, and no others. */
  replace(all: readonly Ioeventfd[]): void {
    this.clear();
    this.#all = all;
  }

  clear(): void {
    for (const { eventfd } of this.#all) eventfd.release();
    this.#all = [];
  }
}

function takes({ length, datamatch }: Ioeventfd, bytes: Uint8Array): boolean {
  if (length !== bytes.length) return false;
  if (datamatch === undefined) return true;
  let value = 0n;
  for (let index = bytes.length - 1; index >= 0; index--) value = (value << 8n) | BigInt(bytes[index]!);
  return value === (datamatch & MASK64);
}

function collide(a: Ioeventfd, b: Ioeventfd): boolean {
  if (a.bus !== b.bus || a.address !== b.address) return false;
  if (a.length === 0 || b.length === 0) return true;
  return a.length === b.length && (a.datamatch === undefined || b.datamatch === undefined || a.datamatch === b.datamatch);
}
