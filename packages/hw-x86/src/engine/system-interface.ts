/**
 * The seams between generated code, the engine around it and the system layer (system/). Each function lies in the file named.
 *
 * system/memory-access.ts, called from generated code when the inline TLB probe misses:
 *   readSlow(cpu, lo, hi, bytes): number      bank offset from which the value can now be read: its own place, or SCRATCH where
 *                                             the bytes of an access across two pages were gathered. Faults or exits by throwing.
 *   writeSlow(cpu, lo, hi, bytes): void       stores state.storeValue, whole, or throws with nothing written.
 *   rmwSlow(cpu, lo, hi, bytes): number       checks read and write; bank offset to read from and store to. Offsets below
 *                                             SCRATCH + SCRATCH_BYTES mean scratch: after the store, generated code calls
 *   rmwFinish(cpu): void                      copies scratch out and reports writes to code pages.
 *   (lo, hi: halves of the linear address as signed 32-bit numbers.)
 * system/segmentation.ts:
 *   segmentSlow(cpu, segment, lo, hi, bytes, isWrite): void    the access was not below readEnd/writeEnd: passes or throws #GP/#SS.
 *   updateSegments(cpu), linear(cpu, segment, offset, bytes, isWrite), loadSegment(cpu, segment, selector)
 * system/paging.ts:
 *   translateFetch(cpu, linear): number       bank offset of code at a linear address, with fetch rights checked; throws.
 *   flushTlb(cpu, keepGlobal), flushPage(cpu, linear), updateTags(cpu)
 * system/events.ts:
 *   deliverEvent(cpu, event): void            through the IDT, real mode or gates, with double and triple faults; may throw VM_EXIT.
 *   event = { vector, type, errorCode, instructionLength, payload }, type as in the VMX interruption-information field:
 *   0 external interrupt, 2 NMI, 3 hardware exception, 4 software interrupt (INT n), 5 privileged software (INT1), 6 INT3/INTO.
 *   Calls guest.exception first for types 3, 5 and 6 (and for NMI is never called: the vendor decides NMI exits itself),
 *   unless `injected` is set: an event injected by VM entry is not intercepted, faults met in its delivery are.
 */
import type { EngineCounts } from "./engine-statistics.ts";

export interface GuestEvent {
  vector: number;
  type: 0 | 2 | 3 | 4 | 5 | 6;
  errorCode: number | undefined;
  /** For types 4, 5, 6: length of the instruction, so that the return address lies after it. */
  instructionLength: number;
  /** #PF: the linear address, loaded into CR2 on delivery. #DB: bits for DR6. Otherwise 0. */
  payload: bigint;
  injected: boolean;
}

/** Why `Engine.run` returned: `budget` used up; `exit`: VM_EXIT was thrown or `leave` called, exit information is recorded; `stop`: requestStop
 *  or an opened window; `halted`: HLT without exit; `shutdown`: triple fault that did not exit. */
export type StopReason = "budget" | "exit" | "stop" | "halted" | "shutdown";

/** What LogicalCpu needs of the engine (class Engine in engine.ts implements this and `Cpu`). */
export interface EngineControl {
  /**
   * Runs at most `instructions` (>= 1, at most 2^30), exactly that many unless it stops for another reason; with `isExact` false it may
   * end after the first block that leaves too few for the next, which is cheaper.
   */
  run(instructions: number, isExact?: boolean): StopReason;
  /** One instruction; or, with "stop", the delivery of the event that came in its place, before its handler's first instruction. */
  step(): StopReason;
  deliverEvent(event: GuestEvent): void;
  /** DR6 bits of a debug trap that the guest is owed: it comes before the next instruction, or where MOV SS holds it off after that. */
  pendingTrap: number;
  /** Traps stay pending: something that comes before them is looked at between any two instructions. */
  holdsTraps: boolean;
  /** The running instruction, whose row ends its block, exits: `run` returns "exit" as soon as the helper has returned, with RIP
   *  at the instruction, which has not retired. */
  leave(): void;
  /** Copies the CPU state block here from another engine's bank, when the logical CPU turns to this bank. */
  adoptState(from: Uint8Array): void;
  /** Retired instructions as a program has them: a repeated string instruction is one, when it ends. */
  instructionsRetired(): number;
  /** Makes the blocking bits exact for the instruction at hand, or between two instructions. */
  settleShadow(): void;
  /** VM exits by basic exit reason, counted by whoever runs the engine. */
  readonly exitCounts: Float64Array;
  counts(): EngineCounts;
}
