/**
 * From a checked VM entry to the decision for the VM exit: event injection, then slices of instructions between which the CPU
 * looks at what is pending, in the manual's order of priority. Source: Intel SDM Vol. 3C, Event Injection; VM-Execution Control
 * Fields; Vol. 3A, Prioritization of Concurrent Events.
 */
import { state } from "../engine/cpu-state.ts";
import { Vector } from "../engine/system/bits.ts";
import type { GuestEvent } from "../engine/system-interface.ts";
import { GuestSlices } from "../guest-slices.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { PREEMPTION_TIMER_SHIFT } from "./capabilities.ts";
import { Activity, Blocking, ExitControl, ExitReason, Interruption, PendingDebug, Pin, Primary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";
import type { VmxGuest } from "./vmx-guest.ts";

/** DR6 bits of traps. */
const TRAP_CAUSES = PendingDebug.breakpoints | PendingDebug.singleStep;
const STI_OR_MOV_SS = Blocking.bySti | Blocking.byMovSs;
/** Interruption types. */
const EXTERNAL_INTERRUPT = 0;
const NMI_TYPE = 2;
const HARDWARE_EXCEPTION = 3;
const INTERRUPTIBILITY = state.interruptibility >>> 2;
const ACTIVITY = state.activity >>> 2;

export class GuestRun extends GuestSlices {
  readonly #vmcs: Vmcs;
  readonly #guest: VmxGuest;
  readonly #event: GuestEvent = { vector: 0, type: 3, errorCode: undefined, instructionLength: 0, payload: 0n, injected: true };
  #engine: GuestEngine | undefined;
  readonly #enter = (): void => {
    this.#trapDue = this.#inject(this.#engine as GuestEngine);
  };
  /** A monitor-trap-flag exit comes next. */
  #trapDue = false;
  /** TSC at which the VMX-preemption timer reaches zero. */
  #preemption = Number.POSITIVE_INFINITY;

  constructor(cpu: RootCpu, vmcs: Vmcs, guest: VmxGuest) {
    super(cpu);
    this.#vmcs = vmcs;
    this.#guest = guest;
  }

  /** Returns with the exit decided and described in `guest.exit`. Throws when the engine itself fails. */
  run(engine: GuestEngine): void {
    this.#startPreemptionTimer();
    this.#engine = engine;
    this.#guest.pauseLoop.enter();
    this.#guest.apic.enter();
    engine.pendingTrap = 0;
    // A monitor-trap-flag exit comes before the traps of the instruction
    engine.holdsTraps = this.isTrapping();
    engine.u32[state.iteratesSingly >>> 2] = engine.holdsTraps ? 1 : 0;
    this.runGuest(engine, this.#enter);
    (engine.exitCounts[this.#guest.exit.reason] as number)++;
  }

  /** What is left of the preemption timer, for the VMCS. */
  preemptionTimerLeft(): number {
    if (this.#preemption === Number.POSITIVE_INFINITY) return 0;
    const unit = 1 << PREEMPTION_TIMER_SHIFT;
    return Math.max(0, Math.floor(this.#preemption / unit) - Math.floor(this.cpu.rdtsc() / unit));
  }

  #startPreemptionTimer(): void {
    if ((this.#guest.pin & Pin.preemptionTimer) === 0) this.#preemption = Number.POSITIVE_INFINITY;
    else {
      const unit = 1 << PREEMPTION_TIMER_SHIFT;
      this.#preemption = (Math.floor(this.cpu.rdtsc() / unit) + this.#vmcs.low(slot.GUEST_PREEMPTION_TIMER)) * unit;
    }
  }

  /** Delivers the event that the VMCS asks for, or a pending debug exception. True when a monitor-trap-flag exit is due. */
  #inject(engine: GuestEngine): boolean {
    const vmcs = this.#vmcs;
    const info = vmcs.low(slot.ENTRY_INTERRUPTION_INFO);
    const event = this.#event;
    const pending = this.#validPending();
    const isHeld = ((engine.u32[INTERRUPTIBILITY] as number) & Blocking.byMovSs) !== 0;
    if ((info & Interruption.valid) === 0) {
      if (pending === 0 || (engine.u32[ACTIVITY] as number) > Activity.hlt) return false;
      if (isHeld) {
        // The step is made anew by the instruction that comes
        engine.pendingTrap = pending & PendingDebug.breakpoints;
        return false;
      }
      return this.#deliver(engine, Vector.DB, HARDWARE_EXCEPTION, BigInt(pending & TRAP_CAUSES), false);
    }
    const type = (info >>> 8) & 7;
    if (type === 7) {
      engine.pendingTrap = pending & TRAP_CAUSES;
      return true;
    }
    // Behind MOV SS a software event takes the traps along; the other kinds make an end of them
    if (isHeld && (type === 4 || type === 6)) engine.pendingTrap = pending & PendingDebug.breakpoints;
    event.vector = info & 0xff;
    event.type = type as GuestEvent["type"];
    event.errorCode = (info & Interruption.errorCodeValid) !== 0 ? vmcs.low(slot.ENTRY_ERROR_CODE) : undefined;
    event.instructionLength = type >= 4 ? vmcs.low(slot.ENTRY_INSTRUCTION_LENGTH) : 0;
    // CR2 and DR6 are what software left there
    event.payload = event.vector === 14 ? engine.get64(state.cr2) : 0n;
    event.injected = true;
    engine.u32[ACTIVITY] = Activity.active;
    const blocking = (engine.u32[INTERRUPTIBILITY] as number) & ~STI_OR_MOV_SS;
    engine.u32[INTERRUPTIBILITY] = type === 2 ? blocking | Blocking.byNmi : blocking;
    engine.deliverEvent(event);
    return (this.#guest.primary & Primary.monitorTrapFlag) !== 0;
  }

  /** Debug exceptions that the VMCS says are pending, 0 unless one of them is enabled or a single step. */
  #validPending(): number {
    const pending = this.#vmcs.low(slot.GUEST_PENDING_DEBUG);
    return (pending & (PendingDebug.enabled | PendingDebug.singleStep)) === 0 ? 0 : pending;
  }

  protected deadline(): number {
    return this.#preemption;
  }
  /** Shutdown blocks external interrupts. */
  protected hearsInterrupts(engine: GuestEngine): boolean {
    return engine.u32[ACTIVITY] !== Activity.shutdown;
  }
  protected isTrapping(): boolean {
    return (this.#guest.primary & Primary.monitorTrapFlag) !== 0;
  }
  protected trapped(): void {
    this.#trapDue = true;
  }
  protected shutDown(): never {
    throw new Error("the guest's triple fault did not exit");
  }

  protected look(engine: GuestEngine, blocking: number, now: number): boolean {
    const { apic, exit } = this.#guest;
    // What a write of an APIC register leaves to software comes before everything else
    if (apic.due !== 0) {
      exit.reset(apic.due);
      exit.qualificationLow = apic.dueQualification;
      return true;
    }
    if (!this.#trapDue && !this.#isPending(engine, blocking, now)) return false;
    if (this.#trapDue) this.#guest.exit.reset(ExitReason.monitorTrapFlag);
    return true;
  }

  /** Decides for an exit by what is pending between two instructions, the most urgent first. */
  #isPending(engine: GuestEngine, blocking: number, now: number): boolean {
    const guest = this.#guest;
    const cpu = this.cpu;
    if (now >= this.#preemption) guest.exit.reset(ExitReason.preemptionTimer);
    else if (guest.nmiWindowOpen()) guest.exit.reset(ExitReason.nmiWindow);
    else if (cpu.lines.isNmiRaised() && this.#nmi(engine, blocking)) return true;
    else if (!this.hearsInterrupts(engine)) return false;
    else if (guest.interruptWindowOpen()) guest.exit.reset(ExitReason.interruptWindow);
    else {
      const isBlocked = ((engine.u32[INTERRUPTIBILITY] as number) & STI_OR_MOV_SS) !== 0;
      const isVirtual = this.#deliverVirtual(engine);
      if (!isBlocked && (now >= cpu.timerDeadline || cpu.lines.isRaised()) && this.#externalInterrupt(engine, now)) return true;
      return isVirtual && this.#trapDue;
    }
    return true;
  }

  /** An NMI waits. True: exits, by itself or for the monitor trap flag. */
  #nmi(engine: GuestEngine, blocking: number): boolean {
    const { pin, exit } = this.#guest;
    // With virtual NMIs the blocking that software sees is that of the guest's own
    const blocks = (pin & Pin.virtualNmis) !== 0 ? STI_OR_MOV_SS : STI_OR_MOV_SS | Blocking.byNmi;
    if ((blocking & blocks) !== 0) return false;
    this.cpu.lines.takeNmi();
    if ((pin & Pin.nmiExiting) !== 0) {
      exit.reset(ExitReason.exceptionOrNmi);
      exit.interruptionInfo = (Interruption.valid | (NMI_TYPE << 8) | Vector.NMI) >>> 0;
      return true;
    }
    engine.u32[ACTIVITY] = Activity.active;
    this.#trapDue = this.#deliver(engine, Vector.NMI, NMI_TYPE, 0n, false);
    return this.#trapDue;
  }

  /** A pending virtual interrupt that can be delivered is. */
  #deliverVirtual(engine: GuestEngine): boolean {
    const { apic } = this.#guest;
    if (!apic.delivers || (engine.u32[ACTIVITY] as number) > Activity.hlt || !apic.isDeliverable()) return false;
    const vector = apic.acknowledge();
    engine.u32[ACTIVITY] = Activity.active;
    this.#trapDue = this.#deliver(engine, vector, EXTERNAL_INTERRUPT, 0n, true);
    return true;
  }

  /** Delivers an event that has no error code and is no instruction. True when a monitor-trap-flag exit is due. */
  #deliver(engine: GuestEngine, vector: number, type: GuestEvent["type"], payload: bigint, injected: boolean): boolean {
    const event = this.#event;
    event.vector = vector;
    event.type = type;
    event.errorCode = undefined;
    event.instructionLength = 0;
    event.payload = payload;
    event.injected = injected;
    engine.deliverEvent(event);
    return (this.#guest.primary & Primary.monitorTrapFlag) !== 0;
  }

  /** True: exits. False: all that came were notifications of posted interrupts. */
  #externalInterrupt(engine: GuestEngine, now: number): boolean {
    const { exit, apic } = this.#guest;
    const { cpu } = this;
    while (apic.posts && cpu.waitingInterrupt(now) === apic.notificationVector) {
      cpu.lines.take(apic.notificationVector);
      apic.processPosted();
    }
    const vector = cpu.waitingInterrupt(now);
    if (vector < 0) {
      this.#deliverVirtual(engine);
      return false;
    }
    exit.reset(ExitReason.externalInterrupt);
    if ((this.#vmcs.low(slot.EXIT_CONTROLS) & ExitControl.acknowledgeInterrupt) !== 0)
      exit.interruptionInfo = (Interruption.valid | vector) >>> 0;
    return true;
  }
}
