/** Exception to deliver to the guest. */
export interface GuestFault {
  readonly vector: number;
  readonly errorCode: number | undefined;
  /** For #PF. */
  readonly cr2: bigint | undefined;
}

/** The vCPU as the emulator reaches it. */
export interface EmulatedCpu {
  /** Bits of the code segment: 64 needs EFER.LMA and CS.L. */
  readonly codeBits: 16 | 32 | 64;
  /** Bits of the stack segment's stack pointer. */
  readonly stackBits: 16 | 32 | 64;
  readonly cpl: number;
  rip: bigint;
  rflags: bigint;
  gpr(index: number): bigint;
  setGpr(index: number, value: bigint): void;
  /** Base of segment ES 0, CS 1, SS 2, DS 3, FS 4, GS 5. */
  segmentBase(segment: number): bigint;
  /** Guest physical address of a linear address, with the guest's paging; sets accessed and dirty bits. */
  translate(linear: bigint, access: "read" | "write" | "fetch"): number | GuestFault;
  /** Bytes of guest memory, within one page; undefined where there is none (MMIO). */
  readRam(gpa: number, length: number): Uint8Array | undefined;
  /** False where there is none. Marks dirty. */
  writeRam(gpa: number, bytes: Uint8Array): boolean;
  /** In-kernel devices (local APIC, IOAPIC); undefined and false: user space has to. Within one page, at most 8 bytes. */
  readDevice(gpa: number, length: number): Uint8Array | undefined;
  writeDevice(gpa: number, bytes: Uint8Array): boolean;
}

export type Emulation =
  /** The instruction (or one iteration of a repeated one, RIP unmoved) is done. */
  | { readonly kind: "done" }
  /** KVM_EXIT_MMIO with this; then `complete`. `data` is empty for reads. */
  | {
      readonly kind: "mmio";
      readonly isWrite: boolean;
      readonly gpa: number;
      readonly length: number;
      readonly data: Uint8Array;
    }
  | { readonly kind: "fault"; readonly fault: GuestFault }
  /** KVM_EXIT_INTERNAL_ERROR, suberror emulation, with the instruction's bytes (up to 15). */
  | { readonly kind: "unsupported"; readonly bytes: Uint8Array };
