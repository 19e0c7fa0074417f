/**
 * From a checked VMRUN to the decision for the #VMEXIT: event injection, then slices of instructions between which the CPU looks at
 * what is pending. Source: AMD64 APM Vol. 2, Event Injection; Interrupt and Local APIC Support.
 */
import { state } from "../engine/cpu-state.ts";
import { reloadPdptes } from "../engine/system/registers.ts";
import type { GuestEvent } from "../engine/system-interface.ts";
import { GuestSlices } from "../guest-slices.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { usesPae } from "./guest-state.ts";
import type { SvmGuest } from "./svm-guest.ts";
import { Control, counterOfExit, Event, ExitCode } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const INTERRUPTIBILITY = state.interruptibility >>> 2;
const ACTIVITY = state.activity >>> 2;
const SHADOWS = 3;
const BP = 3;
const OF = 4;
const PF = 14;
/** Types of `GuestEvent`. */
const INTERRUPT = 0;
const NMI = 2;
const INT3_OR_INTO = 6;

export class GuestRun extends GuestSlices {
  readonly #vmcb: Vmcb;
  readonly #guest: SvmGuest;
  readonly #event: GuestEvent = { vector: 0, type: 3, errorCode: undefined, instructionLength: 0, payload: 0n, injected: true };
  #engine: GuestEngine | undefined;
  readonly #enter = (): void => {
    const engine = this.#engine as GuestEngine;
    if (usesPae(engine)) reloadPdptes(engine);
    this.#inject(engine);
  };

  constructor(cpu: RootCpu, vmcb: Vmcb, guest: SvmGuest) {
    super(cpu);
    this.#vmcb = vmcb;
    this.#guest = guest;
  }

  /** Returns with the exit decided and described in `guest.exit`. Throws when the engine itself fails. */
  run(engine: GuestEngine): void {
    this.#engine = engine;
    this.runGuest(engine, this.#enter);
    (engine.exitCounts[counterOfExit(this.#guest.exit.code)] as number)++;
  }

  protected deadline(): number {
    return Number.POSITIVE_INFINITY;
  }
  protected hearsInterrupts(): boolean {
    return true;
  }
  protected isTrapping(): boolean {
    return false;
  }
  protected trapped(): void {}
  protected shutDown(): never {
    throw new Error("shutdown of the processor: a guest's triple fault, and no intercept for it");
  }

  #inject(engine: GuestEngine): void {
    const vmcb = this.#vmcb;
    const info = vmcb.low(Control.EVENT_INJECTION);
    if ((info & Event.valid) === 0) return;
    const type = (info >>> Event.typeShift) & 7;
    // Of an NMI the field is ignored
    const vector = type === NMI ? 2 : info & Event.vector;
    const event = this.#event;
    const isSoftware = type === Event.software || (type === Event.exception && (vector === BP || vector === OF));
    event.vector = vector;
    event.type = isSoftware && type === Event.exception ? INT3_OR_INTO : (type as GuestEvent["type"]);
    event.errorCode = (info & Event.errorValid) !== 0 ? vmcb.high(Control.EVENT_INJECTION) : undefined;
    event.instructionLength = isSoftware ? this.#softwareLength(vmcb) : 0;
    // CR2 and DR6 are what software left there
    event.payload = vector === PF ? engine.get64(state.cr2) : 0n;
    this.#deliver(engine, event);
  }
  /** Software events return to nRIP, where there is one. */
  #softwareLength(vmcb: Vmcb): number {
    const next = vmcb.big(Control.NEXT_RIP);
    return next === 0n ? 0 : Number(BigInt.asIntN(32, next - (this.#engine as GuestEngine).get64(state.rip)));
  }
  #deliver(engine: GuestEngine, event: GuestEvent): void {
    engine.u32[INTERRUPTIBILITY] = (engine.u32[INTERRUPTIBILITY] as number) & ~SHADOWS;
    engine.deliverEvent(event);
  }
  #deliverOutside(engine: GuestEngine, type: typeof INTERRUPT | typeof NMI, vector: number): void {
    const event = this.#event;
    event.vector = vector;
    event.type = type;
    event.errorCode = undefined;
    event.instructionLength = 0;
    event.payload = 0n;
    this.#deliver(engine, event);
  }

  protected look(engine: GuestEngine, _blocking: number, now: number): boolean {
    const guest = this.#guest;
    const { interrupts, exit } = guest;
    if (guest.exits.isTrapDue) return true;
    if (interrupts.isNmiDue()) {
      interrupts.takeNmi();
      this.#deliverOutside(engine, NMI, 2);
    }
    if (this.cpu.lines.isNmiRaised() && interrupts.acceptsNmi()) {
      // Intercepted, it waits until software sets GIF
      if (guest.interceptsNmi) {
        exit.reset(ExitCode.nmi);
        return true;
      }
      this.cpu.lines.takeNmi();
      engine.u32[ACTIVITY] = 0;
      this.#deliverOutside(engine, NMI, 2);
      interrupts.tookNmi();
    }
    if (interrupts.isPhysicalEnabled() && (now >= this.cpu.timerDeadline || this.cpu.lines.isRaised())) {
      if (guest.interceptsInterrupts) {
        exit.reset(ExitCode.intr);
        return true;
      }
      this.#deliverOutside(engine, INTERRUPT, this.cpu.takeInterrupt());
    }
    const { apic } = guest;
    // Answered in any case: what rings on keeps a guest that halts awake
    if (this.cpu.lines.answerDoorbell() && apic.isEnabled) apic.evaluate();
    if (apic.isDeliverable()) {
      engine.u32[ACTIVITY] = 0;
      this.#deliverOutside(engine, INTERRUPT, apic.acknowledge());
      return false;
    }
    if (!interrupts.isInterruptDue()) return false;
    if (guest.interceptsVirtualInterrupts) {
      exit.reset(ExitCode.vintr);
      return true;
    }
    interrupts.takeInterrupt();
    this.#deliverOutside(engine, INTERRUPT, interrupts.vector);
    return false;
  }
}
