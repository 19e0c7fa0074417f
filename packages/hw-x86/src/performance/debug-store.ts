/**
 * Processor event-based sampling: records in the buffer of the DS save area. The area lies at a linear address of the code that runs, and
 * its layout is that of 64-bit mode. Source: Intel SDM Vol. 3B, Debug Store (DS) Mechanism; Processor Event Based Sampling (PEBS).
 */
import type { Gva } from "../addresses.ts";
import { gprOffset, state } from "../engine/cpu-state.ts";
import type { GuestEngine } from "../root-interface.ts";

/** Offsets in the DS save area. */
const Area = { base: 0x20, index: 0x28, maximum: 0x30, threshold: 0x38, resetValues: 0x40 } as const;

/** The record format that IA32_PERF_CAPABILITIES names: 3. */
export const PEBS_FORMAT = 3;
export const PEBS_RECORD_BYTES = 0xc8;
/** Offsets in a record. What there is nothing to tell of (data address, source and latency of loads, TSX) is zero. */
const Record = { rflags: 0x00, rip: 0x08, registers: 0x10, counters: 0x90, eventingIp: 0xb0, tsc: 0xc0 } as const;
/** RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP and R8 to R15, as instructions encode them. */
const REGISTER_ORDER = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15] as const;

export interface PebsSample {
  readonly counter: number;
  /** IA32_PERF_GLOBAL_STATUS. */
  readonly status: bigint;
  /** RIP of the instruction that made the counter overflow. */
  readonly eventingIp: bigint;
  readonly tsc: bigint;
}

export interface PebsOutcome {
  /** What the counter goes on from. */
  readonly resetValue: bigint;
  readonly hasReachedThreshold: boolean;
  /** There was no room for the record. */
  readonly isFull: boolean;
}

const record = new DataView(new ArrayBuffer(PEBS_RECORD_BYTES));
const recordBytes = new Uint8Array(record.buffer);

function fill(engine: GuestEngine, { status, eventingIp, tsc }: PebsSample): void {
  recordBytes.fill(0);
  record.setBigUint64(Record.rflags, BigInt(engine.readFlags() >>> 0), true);
  record.setBigUint64(Record.rip, engine.get64(state.rip), true);
  for (let i = 0; i < REGISTER_ORDER.length; i++)
    record.setBigUint64(Record.registers + i * 8, engine.u64[gprOffset(REGISTER_ORDER[i] as number) >>> 3] as bigint, true);
  record.setBigUint64(Record.counters, status, true);
  record.setBigUint64(Record.eventingIp, eventingIp, true);
  record.setBigUint64(Record.tsc, tsc, true);
}

/**
 * Writes a record of the instruction that has just retired. undefined: the area, or the buffer, cannot be reached as the code that runs
 * has its memory mapped, and nothing was recorded.
 */
export function writePebsRecord(engine: GuestEngine, area: bigint, sample: PebsSample): PebsOutcome | undefined {
  const { pendingTrap } = engine;
  let outcome: PebsOutcome | undefined;
  engine.guest.attempt?.(() => {
    outcome = recordInto(engine, area, sample);
  });
  // The processor's own stores meet no breakpoints
  engine.pendingTrap = pendingTrap;
  return outcome;
}

function recordInto(engine: GuestEngine, area: bigint, sample: PebsSample): PebsOutcome {
  const at = (offset: number): Gva => BigInt.asUintN(64, area + BigInt(offset)) as Gva;
  const read = (offset: number): bigint => engine.readLinear(at(offset), 8, true);
  const index = read(Area.index);
  const maximum = read(Area.maximum);
  const threshold = read(Area.threshold);
  const resetValue = read(Area.resetValues + 8 * sample.counter);
  const next = index + BigInt(PEBS_RECORD_BYTES);
  const isFull = next > maximum;
  if (!isFull) {
    fill(engine, sample);
    engine.probeWrite(at(Area.index), 8, true);
    engine.writeLinearBytes(index as Gva, recordBytes, true);
    engine.writeLinear(at(Area.index), 8, next, true);
  }
  return { resetValue, isFull, hasReachedThreshold: (isFull ? index : next) >= threshold };
}
