import type { Hpa } from "./addresses.ts";

/** One bank of physical memory: what one process, its guests and its modules' tables live in. */
export interface MemoryBank {
  readonly id: number;
  readonly sizeBytes: number;
  /** Offset of the first byte that the kernel may hand out; everything below is the CPU's own. */
  readonly firstFreeOffset: number;
  readonly memory: WebAssembly.Memory;
  /** Views over the whole bank, by bank offset. They stay valid: a bank never grows. */
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  readonly view: DataView;
}

/** Physical memory as one thread sees it: the banks that it was given. */
export interface PhysicalMemory {
  /** A new bank; bytes, a multiple of 64 KiB, at most 4 GiB. Throws RangeError when out of address space. */
  createBank(id: number, sizeBytes: number): MemoryBank;
  /** Makes a bank of another thread known here, and the engine that is to run its guests. Throws when there is no room for one. */
  attachBank(id: number, memory: WebAssembly.Memory): MemoryBank;
  /** Forgets a bank and every cached translation and block in it. */
  releaseBank(id: number): void;
  /** What the CPU keeps in a bank for itself goes out of it, until the next VM entry there: another CPU may take the bank over. */
  leaveBank(id: number): void;
  /**
   * The bank was another CPU's, which has left or released it, or died: what that one kept in it for itself is wiped out, so that this one
   * finds it as a fresh one. Before the first VM entry here whose VM lies in it.
   */
  takeOverBank(id: number): void;
  bank(id: number): MemoryBank;
  /** Bytes at a physical address, not across the end of the bank. */
  bytes(address: Hpa, length: number): Uint8Array;
}
