import type { EmulatedCpu, GuestFault } from "./instruction-emulator/emulated-cpu.ts";

/** INS or OUTS as its VM exit describes it. */
export interface StringIo {
  readonly isIn: boolean;
  readonly rep: boolean;
  /** Bytes of one item: 1, 2, 4. */
  readonly size: number;
  /** Bytes of RSI, RDI, RCX that count: 2, 4, 8. */
  readonly addressSize: number;
  /** Segment of OUTS' source (encoding order); INS always uses ES. */
  readonly segment: number;
}

/** Items that the next exit moves: within one page, at most `limitBytes` worth, 0 when RCX is 0. Downwards (DF): one. */
export type StringIoCount = (cpu: EmulatedCpu, io: StringIo, limitBytes: number) => number;
/** OUTS: reads `count` items from the guest and moves RSI and RCX on. */
export type StringIoOut = (cpu: EmulatedCpu, io: StringIo, count: number) => Uint8Array | GuestFault;
/** INS: writes items to the guest and moves RDI and RCX on. */
export type StringIoIn = (cpu: EmulatedCpu, io: StringIo, items: Uint8Array) => GuestFault | undefined;
/** True when all is moved, and RIP is to move past the instruction. */
export type StringIoFinished = (cpu: EmulatedCpu, io: StringIo) => boolean;
