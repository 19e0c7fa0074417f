import type { GuestFault } from "./instruction-emulator/emulated-cpu.ts";

/** Registers that guest paging depends on, and access to the tables. */
export interface PagingState {
  readonly cr0: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
  readonly rflags: bigint;
  readonly cpl: number;
  /** PDPTEs in use, PAE paging only. */
  readonly pdptrs?: readonly bigint[];
  /** Guest memory at `gpa`: 4 or 8 bytes; undefined where there is none. */
  readEntry(gpa: number, bytes: 4 | 8): bigint | undefined;
  writeEntry(gpa: number, bytes: 4 | 8, value: bigint): void;
}
export interface GuestTranslation {
  readonly gpa: number;
  readonly pageBytes: number;
  readonly writable: boolean;
  readonly user: boolean;
}
/** Walks the guest's tables; `setAccessed` false leaves accessed and dirty bits alone (KVM_TRANSLATE, save). */
export type TranslateGuest = (
  state: PagingState,
  linear: bigint,
  access: "read" | "write" | "fetch",
  setAccessed: boolean,
) => GuestTranslation | GuestFault;
