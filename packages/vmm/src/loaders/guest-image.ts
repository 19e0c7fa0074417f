import type { GuestMemory } from "../guest-memory.ts";
import type { ImageFile } from "../image-file.ts";

/** How the boot CPU starts. */
export interface EntryPoint {
  /**
   * reset: as the processor comes out of reset, `rip` and registers included; real: CS:IP with CS base 0; protected: flat 32-bit
   * segments, paging off; long: 64-bit, first 4 GiB identity mapped.
   */
  mode: "reset" | "real" | "protected" | "long";
  /** Address of the first instruction. */
  rip: number;
  /** Registers that the boot protocol sets; the rest are 0. */
  registers: Partial<Record<"rax" | "rbx" | "rcx" | "rdx" | "rsi" | "rdi" | "rbp" | "rsp", number>>;
}

export interface BootRequest {
  image: ImageFile;
  /** First 64 KiB of the image. */
  head: Uint8Array;
  memory: GuestMemory;
  commandLine: string;
  /** Number of vCPUs, for the tables that tell the guest of them. */
  cpus: number;
  initrd: ImageFile | undefined;
}

/** One kind of kernel image. */
export interface ImageLoader {
  /** What to call it, as in "Linux bzImage". */
  readonly name: string;
  /** True when the head of the file is of this kind. */
  recognizes(head: Uint8Array): boolean;
  /** Loads it into guest memory. Throws VmmError for what is wrong with it. */
  load(request: BootRequest): EntryPoint;
}

export function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
