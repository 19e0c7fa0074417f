/**
 * Guest mode as a run of slices of instructions, between which the CPU looks at what is pending; what that is and what comes of it
 * the vendor's unit decides. Asleep the CPU waits for the timer, an IPI or an NMI.
 */
import { state } from "./engine/cpu-state.ts";
import { VM_EXIT } from "./engine/guest-mode.ts";
import type { GuestEngine, RootCpu } from "./root-interface.ts";
import { SliceLength } from "./slice-length.ts";

/** Instructions between two looks at the lines. Under icount the timer needs none: slices end exactly at the deadline. */
const LONGEST_SLICE_ICOUNT = 1 << 20;

/** Vectors of this machine's two interrupt sources, for whoever acknowledges them in guest mode or on the way out of it. */
export const TIMER_VECTOR = 0xec;
export const IPI_VECTOR = 0xfd;

const ACTIVE = 0;
/** Blocking by STI and by MOV SS, as bits of `state.interruptibility`. */
export const SHADOWS = 3;
const INTERRUPTIBILITY = state.interruptibility >>> 2;
const ACTIVITY = state.activity >>> 2;

export abstract class GuestSlices {
  protected readonly cpu: RootCpu;
  readonly #sliceLength = new SliceLength();

  protected constructor(cpu: RootCpu) {
    this.cpu = cpu;
  }

  /** TSC at which something is due beside the CPU's timer. */
  protected abstract deadline(): number;
  /** Looks at what is pending between two instructions, the most urgent first, and delivers what does not exit. True: the exit is decided. */
  protected abstract look(engine: GuestEngine, blocking: number, now: number): boolean;
  /** False: interrupts are blocked by the activity state, and do not end it. */
  protected abstract hearsInterrupts(engine: GuestEngine): boolean;
  /** Every instruction is followed by a look. */
  protected abstract isTrapping(): boolean;
  /** One has run, with `isTrapping`. */
  protected abstract trapped(): void;
  /** Triple fault that did not exit. */
  protected abstract shutDown(): never;

  /** Runs `enter` and then slices until the exit is decided. Throws when the engine itself fails. */
  protected runGuest(engine: GuestEngine, enter: () => void): void {
    const { counters } = this.cpu;
    counters.enterGuest(engine);
    try {
      enter();
      this.cpu.atGuestEntry?.();
      this.#slices(engine);
    } catch (error) {
      if (error !== VM_EXIT) throw engineFailure(engine, error);
    } finally {
      counters.leaveGuest();
    }
  }

  #slices(engine: GuestEngine): void {
    const { cpu } = this;
    const { counters } = cpu;
    // The slice before, when it was run to its end under the wall clock, and when it began
    let whole = 0;
    let began = 0;
    const trapping = this.isTrapping();
    for (;;) {
      const blocking = engine.u32[INTERRUPTIBILITY] as number;
      const now = cpu.rdtsc();
      if (whole > 0) this.#sliceLength.learn(whole, (now - began) / cpu.clock.tscKhz);
      whole = 0;
      // What waits now is looked at; asleep the CPU waits for more
      const seen = engine.u32[ACTIVITY] === ACTIVE ? 0 : cpu.lines.seen;
      if (this.look(engine, blocking, now)) return;
      let deadline = Math.min(cpu.timerDeadline, this.deadline());
      if (engine.u32[ACTIVITY] !== ACTIVE) {
        counters.halt();
        const hearsInterrupts = this.hearsInterrupts(engine);
        this.#sleep(hearsInterrupts ? deadline : this.deadline(), now, hearsInterrupts, seen);
        counters.awake();
        continue;
      }
      if (counters.isCounting) deadline = Math.min(deadline, counters.deadline(now));
      // Looking may have delivered an event, which ends shadows
      const single = trapping || ((engine.u32[INTERRUPTIBILITY] as number) & SHADOWS) !== 0;
      let slice = single ? 1 : this.#sliceUntil(deadline - now);
      const isExact = !cpu.clock.isWall || counters.isCounting;
      if (counters.isCounting) slice = counters.sliceUpTo(slice);
      const reason = single ? engine.step() : engine.run(slice, isExact);
      counters.settle();
      if (reason === "exit") return;
      if (reason === "budget" && !single && cpu.clock.isWall) {
        whole = slice;
        began = now;
      }
      if (reason === "shutdown") this.shutDown();
      if (trapping) this.trapped();
    }
  }

  #sliceUntil(ticks: number): number {
    const { clock } = this.cpu;
    // An interrupt that is due but masked must not stop the guest from running
    if (!clock.isWall) return ticks <= 0 ? LONGEST_SLICE_ICOUNT : Math.min(clock.instructionsFor(ticks), LONGEST_SLICE_ICOUNT);
    return this.#sliceLength.until(ticks / clock.tscKhz);
  }

  /** HLT or shutdown in guest mode, which did not exit: until something is pending. */
  #sleep(deadline: number, now: number, hearsInterrupts: boolean, seen: number): void {
    const { clock, lines } = this.cpu;
    if (!hearsInterrupts && deadline === Number.POSITIVE_INFINITY && lines.count === 1)
      throw new Error("shutdown in guest mode, no timer of the guest's, and no other CPU: nothing on this machine can end it");
    if (!clock.isWall && deadline !== Number.POSITIVE_INFINITY) clock.skipTo(deadline, this.cpu.retiredInstructions());
    else {
      if (deadline === Number.POSITIVE_INFINITY)
        this.cpu.log(
          hearsInterrupts
            ? "halted in guest mode with no timer armed: only an IPI can end it"
            : "shutdown in guest mode with no timer of the guest's: only an NMI can end it",
        );
      lines.wait((deadline - now) / clock.tscKhz, seen);
    }
  }
}

/** Something threw that no guest can cause: says where, and leaves the rest to the kernel. */
function engineFailure(engine: GuestEngine, cause: unknown): Error {
  const rip = engine.get64(state.rip);
  let bytes = "unreadable";
  try {
    const buffer = new Uint8Array(15);
    engine.readLinearBytes(engine.linear(1, rip, 1, false), buffer, true);
    bytes = Array.from(buffer, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  } catch {
    // the message says so
  }
  const why = cause instanceof Error ? cause.message : String(cause);
  return new Error(`guest-mode engine failed at RIP 0x${rip.toString(16)} (bytes ${bytes}): ${why}`, { cause });
}
