/**
 * What of the local APIC a vendor's extension virtualizes for a guest. Linear accesses of instructions and event delivery that lead to
 * the page `SecondLevelPage.isApic` marks come here in place of memory, and accesses to x2APIC registers before they are refused.
 * Each method may exit by throwing, with nothing done.
 */
export interface ApicAccess {
  /** `bytes` at an offset of the page: the value, at most 32 bits. */
  read(offset: number, bytes: number): number;
  /** Whether a write could be made; exits where not. A read-modify-write asks before it reads. */
  checkWrite(offset: number, bytes: number): void;
  /** The write, and what the register does with it. `value` unsigned. */
  write(offset: number, bytes: number, value: number): void;
  /** RDMSR of 0x800 to 0x8ff that is not intercepted; undefined: as without virtualization. */
  readMsr(index: number): bigint | undefined;
  /** WRMSR of the same; false: #GP(0). */
  writeMsr(index: number, value: bigint): boolean | undefined;
}

/** A guest without one: no page is marked, and no MSR virtualized. */
export const absentApic: ApicAccess = {
  read: () => 0,
  checkWrite: () => {},
  write: () => {},
  readMsr: () => undefined,
  writeMsr: () => undefined,
};
