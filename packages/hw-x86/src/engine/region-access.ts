/**
 * Memory accesses of translated regions that miss the TLB. A region holds registers in locals, which an exception through it would lose:
 * what is thrown here waits until the region has put them back. Each access returns 0 when the region must be left at this operation.
 */
import { PAGE_BYTES } from "./code-pages.ts";
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import { GUEST_FAULT } from "./guest-mode.ts";
import type { RecordedFault } from "./recorded-fault.ts";
import type { RunControl } from "./run-control.ts";
import * as memory from "./system/memory-access.ts";
import type { EngineControl } from "./system-interface.ts";

const OPERATION = state.operation >>> 2;
const FOUND = state.found >>> 2;
const ACTIVITY = state.activity >>> 2;

export class RegionAccess {
  readonly #cpu: Cpu & Pick<EngineControl, "deliverEvent">;
  readonly #control: RunControl;
  readonly #fault: RecordedFault;
  /** What the access threw. */
  #thrown: unknown;

  constructor(cpu: Cpu & Pick<EngineControl, "deliverEvent">, control: RunControl, fault: RecordedFault) {
    this.#cpu = cpu;
    this.#control = control;
    this.#fault = fault;
  }

  read(lo: number, hi: number, bytes: number): number {
    const cpu = this.#cpu;
    return this.#access(() => (memory.mayMeetBreakpoint(cpu, lo, hi, bytes) ? 0 : memory.readSlow(cpu, lo, hi, bytes)));
  }

  // Stores to code are left to the interpreter, which drops the code at once

  update(lo: number, hi: number, bytes: number): number {
    const cpu = this.#cpu;
    return this.#access(() => {
      const isInPage = bytes <= PAGE_BYTES - (lo & (PAGE_BYTES - 1));
      const isPlain = isInPage && !memory.mayMeetBreakpoint(cpu, lo, hi, bytes);
      return !isPlain || memory.writeReachesCode(cpu, lo, hi, bytes) ? 0 : memory.rmwSlow(cpu, lo, hi, bytes);
    });
  }

  write(lo: number, hi: number, bytes: number): number {
    const cpu = this.#cpu;
    return this.#access(() => {
      if (memory.mayMeetBreakpoint(cpu, lo, hi, bytes) || memory.writeReachesCode(cpu, lo, hi, bytes)) return 0;
      memory.writeSlow(cpu, lo, hi, bytes);
      return 1;
    });
  }

  #access(access: () => number): number {
    try {
      return access();
    } catch (thrown) {
      this.#thrown = thrown;
      return 0;
    }
  }

  /** The region has put its registers back: the operation to go on with, or 0. Throws what is not delivered here. */
  resume(): number {
    const thrown = this.#thrown;
    this.#thrown = undefined;
    if (thrown === undefined) return this.#cpu.i32[OPERATION];
    if (thrown !== GUEST_FAULT || this.#control.isDiverted) throw thrown;
    return this.#deliver();
  }

  /**
   * Delivers a fault at once, since an exception through generated code costs more than all else of a page fault. Returns 0, after which
   * generated code goes on at `state.rip`, or returns if the event stopped the guest.
   */
  #deliver(): 0 {
    const cpu = this.#cpu;
    const control = this.#control;
    control.giveBack();
    cpu.deliverEvent(this.#fault.event());
    cpu.u32[FOUND] = 0;
    if (control.isStopRequested || cpu.i32[ACTIVITY] !== 0 || cpu.breakpoints.hits !== 0) control.divert();
    return 0;
  }
}
