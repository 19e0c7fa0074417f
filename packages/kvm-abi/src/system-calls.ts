export interface ResourceUsage {
  /** Guest instructions that its CPU retired since the process started: its own, where it has the CPU for itself. */
  instructions: number;
  /** Bytes that modules hold for it now: page tables, VMCSs, bitmaps. */
  kernelBytes: number;
}

/**
 * What a program (a VMM) sees of the kernel: system calls, and its own memory. Results below zero are negative errnos.
 * A program is an ES module that exports `main`. Programs run in a process of their own with one bank of memory; threads of a
 * process take turns on its logical CPU, giving way wherever they await.
 */
import type { Hva } from "./module-contract.ts";
import type { Section } from "./transfer.ts";

/** What a program gives so that it can go on elsewhere: in another host from a file, on another CPU. */
export interface ProgramState {
  /** Its own state: devices that it emulates, descriptors and addresses that it holds. Names begin with the program's own. */
  readonly sections: readonly Section[];
  /** Its memory that is to be there again, at the same addresses: all that its VMs' memory slots lie in. Page aligned. */
  readonly memory: readonly { readonly address: Hva; readonly lengthBytes: number }[];
}

/** A program's entry; resolves with its status. @implementedBy program */
export type Main = (sys: SystemCalls, args: readonly string[]) => Promise<number>;

/** How open(2) opens a file. */
export const OpenFlag = { O_RDONLY: 0, O_RDWR: 2 } as const;

/** Bits of poll(2). */
export const PollEvent = { POLLIN: 1, POLLOUT: 4, POLLERR: 8, POLLHUP: 16, POLLNVAL: 32 } as const;

/** A descriptor to be waited for, and the PollEvent bits that are of interest; a negative one is left out. */
export interface PollRequest {
  readonly fd: number;
  readonly events: number;
}

export interface SystemCalls {
  /** The process's memory. Only what `mmap` returned is mapped; addresses index the views directly. */
  readonly memory: { readonly u8: Uint8Array; readonly view: DataView };
  readonly pid: number;

  /**
   * Device nodes under /dev in the process's mount namespace; other paths are files of the machine that are there already. `flags`: an
   * OpenFlag, which without it is O_RDONLY; devices are open for both whatever it says.
   */
  open(path: string, flags?: number): number;
  close(fd: number): number;
  ioctl(fd: number, request: number, argument: number): number | Promise<number>;
  /** fd -1: anonymous memory, zeroed. Returns the address, page aligned (2 MiB aligned from 2 MiB on). */
  mmap(lengthBytes: number, fd: number, offsetBytes: number): Hva;
  munmap(address: Hva, lengthBytes: number): number;
  /** Reads into memory at `address`; 0 at the end of the file. Descriptor 0 waits for input. -EINVAL where nothing can be read. */
  read(fd: number, address: Hva, lengthBytes: number): number | Promise<number>;
  /** As pread, from regular files and from files of modules that can be read (KVM_GET_STATS_FD). */
  pread(fd: number, address: Hva, lengthBytes: number, offsetBytes: number): number;
  /** As pwrite, to regular files that are open for it; what is written beyond the end makes the file longer. */
  pwrite(fd: number, address: Hva, lengthBytes: number, offsetBytes: number): number;
  /** Descriptors 1 and 2: the console of the process. Eventfds: adds to the counter. */
  write(fd: number, address: Hva, lengthBytes: number): number;
  /**
   * eventfd(2) with EfdFlag. Reads take 8 bytes, and wait where the counter is 0 unless EFD_NONBLOCK was asked for; writes of 8 bytes
   * that would overflow the counter are -EAGAIN in either case.
   */
  eventfd(initial: number, flags: number): number;
  /**
   * poll(2): PollEvent bits that each descriptor is ready for, once one is; POLLERR, POLLHUP and POLLNVAL whether asked for or not. All
   * are 0 after `timeoutNs`; undefined waits for ever. -EINTR after a signal. Eventfds and descriptor 0 may have to be waited for, others
   * are always ready.
   */
  poll(requests: readonly PollRequest[], timeoutNs: number | undefined): Promise<number[] | number>;
  /** Size of a regular file in bytes. */
  fstatSize(fd: number): number;
  /** What the process has used, as getrusage tells it. */
  resourceUsage(): ResourceUsage;
  clockMonotonicNs(): number;
  clockRealtimeNs(): bigint;
  /** A thread of this process with system calls of its own. Its result is what `body` returns. */
  spawnThread(name: string, body: (sys: SystemCalls) => Promise<number>): { tid: number; finished: Promise<number> };
  /** Sends the thread a signal: a KVM_RUN of its returns -EINTR. */
  signalThread(tid: number): number;
  sleepNs(durationNs: number): Promise<void>;
  /**
   * Takes part in being saved. `state` is called while every thread of the process stands still, each outside of modules; a KVM_RUN
   * that goes on is taken up by the next KVM_RUN of that vCPU.
   */
  onSave(state: () => ProgramState): void;
  /**
   * Of a process that goes on from what was saved: the sections that `onSave` gave. Descriptors of modules have their numbers, and
   * memory its contents; threads and mappings of kvm_run are the program's to make again.
   */
  restored(): readonly Section[] | undefined;
  /** Reads from descriptor 0 that wait end with 0; nothing more is read. For a program that is about to end. */
  closeInput(): void;
}
