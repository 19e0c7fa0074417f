/**
 * The CPU as helpers and system code see it: typed access to the state block of the current bank, memory by linear address
 * with all checks, exceptions, and the guest-mode interface. Implemented by `Engine` (engine.ts).
 */
import type { Gpa, Gva } from "../addresses.ts";
import type { GuestMode } from "./guest-mode.ts";
import type { Breakpoints } from "./system/breakpoints.ts";
import type { Level } from "./system/cpu-levels.ts";

export interface Cpu {
  /** Views over the whole bank; index with bank offsets (shifted for the wider ones). */
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly view: DataView;
  readonly bankBytes: number;
  guest: GuestMode;
  /** Model of this CPU: what CPUID, MSRs and control registers allow. */
  readonly model: CpuModel;

  // State by bank offset (`state.x`), the short way
  get32(offset: number): number;
  set32(offset: number, value: number): void;
  get64(offset: number): bigint;
  set64(offset: number, value: bigint): void;
  /** General register, full 64 bits. */
  reg(index: number): bigint;
  setReg(index: number, value: bigint): void;

  // The instruction at hand
  /** Length in bytes, address size and operand fields of the running operation (bank offset of its record). */
  readonly operation: number;
  instructionLength(): number;
  /** RIP after the current instruction, wrapped to the code size. */
  nextRip(): bigint;
  /** Where execution goes on after a helperThenEndBlock helper. */
  setNextRip(rip: bigint): void;
  /** The same in halves. */
  setNextRipHalves(low: number, high: number): void;

  // Flags as one word (flags.ts)
  readFlags(): number;
  /** All of RFLAGS as given, no privilege rules. Re-evaluates windows and single-step. */
  setFlags(value: number): void;

  // Memory through segmentation is the caller's; these take linear addresses, and fault as an access by `supervisor` (default: CPL < 3).
  readLinear(address: Gva, bytes: 1 | 2 | 4 | 8, supervisor?: boolean): bigint;
  writeLinear(address: Gva, bytes: 1 | 2 | 4 | 8, value: bigint, supervisor?: boolean): void;
  readLinearBytes(address: Gva, target: Uint8Array, supervisor?: boolean): void;
  writeLinearBytes(address: Gva, source: Uint8Array, supervisor?: boolean): void;
  /** Faults as a write of `bytes` there would. */
  probeWrite(address: Gva, bytes: number, supervisor?: boolean): void;
  /** Linear address of segment:offset with limit, type and canonical checks for an access of `bytes`. */
  linear(segment: number, offset: bigint, bytes: number, isWrite: boolean): Gva;
  /** Guest physical memory, past paging, through the second level. */
  readPhysical64(address: Gpa): bigint;
  writePhysical64(address: Gpa, value: bigint): void;

  /** Throws. `errorCode` undefined where the vector has none. */
  raise(vector: number, errorCode?: number, payload?: bigint): never;

  // Consequences of changed state
  /** Segment tops, effective bases, code and stack size, CPL: after any change to segments, CR0, EFER or RFLAGS.VM. */
  updateSegments(): void;
  /** Translations of the current address space: after CR3, CR0, CR4, EFER changes. `keepGlobal` for MOV to CR3. */
  flushTlb(keepGlobal: boolean): void;
  flushPage(address: Gva): void;
  /** Privilege or paging mode changed: recomputes tlbTag and blockTag. */
  updateTags(): void;
  /** Asks `run` to stop before the next instruction to look at events. */
  requestStop(): void;
  /** Blocking by STI, just set, ends when the instruction after the running one has retired; nobody waits for a window. */
  shadowNextInstruction(): void;
  /** True when decoded code lies in the page at this bank offset: stores there must take the slow path and report. */
  holdsCode(pageOffset: number): boolean;
  /** `bytes` at bank offset `offset`, in one page that holds code, were written: stale blocks must not run again. */
  codeWritten(offset: number, bytes: number): void;
  /** What the debug registers arm. */
  readonly breakpoints: Breakpoints;
  /** An access of the running instruction met a data or I/O breakpoint: the debug exception comes after it. */
  trapAfterInstruction(): void;
  /** DR0 to DR3, DR7 or CR4.DE may have changed. */
  debugStateChanged(): void;
  /** Events delivered so far, so that an instruction that was one can be told from one that ended. */
  deliveries: number;
  /**
   * Retired instructions since the CPU was made, exact, as time has them: each iteration of a repeated string instruction is one, and
   * so is a part of endless events.
   */
  retired(): number;
  /** Called before CPL changes from or to 0, where somebody counts by privilege. */
  privilegeChanges: (() => void) | undefined;
}

export interface CpuModel {
  readonly vendor: "intel" | "amd";
  /** Which instruction sets there are; see system/cpu-levels.ts. */
  readonly level: Level;
  /** CPUID as this machine has it. */
  cpuid(leaf: number, subleaf: number): { eax: number; ebx: number; ecx: number; edx: number };
  /** Bits that may be set in each control register. */
  readonly cr0Allowed: bigint;
  readonly cr4Allowed: bigint;
  readonly eferAllowed: bigint;
  /** State components that XCR0 may enable; 0: no XSAVE. */
  readonly xcr0Allowed: bigint;
  readonly physicalAddressBits: number;
  /** Those of the widest paging mode that there is. */
  readonly linearAddressBits: number;
}
