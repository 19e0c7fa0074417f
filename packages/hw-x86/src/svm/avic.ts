/**
 * The advanced virtual interrupt controller: a guest's local APIC in a backing page, which the processor reads and writes for it, delivers
 * interrupts from, and sends IPIs to by the tables of its virtual machine; what it leaves to software exits. Source: AMD64 APM Vol. 2,
 * Advanced Virtual Interrupt Controller.
 */
import { Apic, ApicPage, HeldTime, VECTOR_CLASS } from "../apic-page.ts";
import type { ApicAccess } from "../engine/apic-access.ts";
import { state } from "../engine/cpu-state.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { IcrKind, IpiFailure, IpiTargets } from "./avic-ipis.ts";
import { AvicAccess, accessOf } from "./avic-registers.ts";
import { Control, VInterrupt } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const CR8 = state.cr8 >>> 2;
const PAGE = 4096;
const LOW_52 = 2 ** 52;

/** What the guest around it does for its local APIC. */
export interface AvicGuest {
  readonly engine: GuestEngine;
  /** Leaves guest mode before the access. */
  leaveForAccess(offset: number, isWrite: boolean): never;
  /** Exits behind the instruction at hand. */
  trapAccess(offset: number, vector: number): void;
  trapIpi(high: number, low: number, failure: number, index: number): void;
  /** The instruction at hand is the last before a look at what is pending. */
  stopAfterInstruction(): void;
  /** RFLAGS.IF and the virtual GIF are set and nothing blocks interrupts. */
  acceptsInterrupts(): boolean;
}

export class Avic implements ApicAccess {
  isEnabled = false;
  readonly #cpu: RootCpu;
  readonly #guest: AvicGuest;
  readonly #page = new ApicPage();
  readonly #time: HeldTime;
  readonly #targets: IpiTargets;
  /** Guest-physical page of the registers. */
  #bar = 0;
  /** Highest vectors of IRR and ISR. */
  #requesting = 0;
  #servicing = 0;

  constructor(cpu: RootCpu, guest: AvicGuest) {
    this.#cpu = cpu;
    this.#guest = guest;
    this.#time = new HeldTime(cpu);
    this.#targets = new IpiTargets(cpu);
  }

  /** Takes over what the VMCB says. */
  useControls(vmcb: Vmcb): void {
    this.isEnabled = (vmcb.low(Control.V_INTERRUPT) & VInterrupt.avicEnable) !== 0;
    if (!this.isEnabled) return;
    this.#bar = pageOf(vmcb.number(Control.AVIC_BAR) % LOW_52);
    const address = pageOf(vmcb.number(Control.AVIC_BACKING_PAGE) % LOW_52);
    const bank = this.#cpu.memory.holding(address, PAGE);
    if (bank === undefined) this.#cpu.log(`AVIC backing page ${address.toString(16)}: no memory there`);
    this.#page.point(bank, address % 0x1_0000_0000);
    this.#targets.use(vmcb, address);
  }

  /** VMRUN, with the guest's state loaded. A doorbell that rang in root mode has nothing left to tell. */
  enter(): void {
    this.#cpu.lines.answerDoorbell();
    if (!this.isEnabled) return;
    this.#servicing = this.#page.highest(Apic.isr);
    this.evaluate();
    this.#updatePpr();
  }

  /** Of a guest-physical address: the page of the registers. */
  isRegisters(gpa: number): boolean {
    return this.isEnabled && gpa - (gpa % PAGE) === this.#bar;
  }

  // Interrupts

  get #taskPriority(): number {
    const shadow = (this.#guest.engine.u32[CR8] as number) & 15;
    const register = this.#page.get(Apic.tpr) & 0xff;
    return register >>> 4 === shadow ? register : shadow << 4;
  }
  #updatePpr(): void {
    const task = this.#taskPriority;
    const servicing = this.#servicing & VECTOR_CLASS;
    this.#page.set(Apic.ppr, (task & VECTOR_CLASS) >= servicing ? task : servicing);
  }
  /** Looks at IRR anew. */
  evaluate(): void {
    this.#requesting = this.#page.highest(Apic.irr);
  }
  #stopIfRequested(): void {
    // Whether it can be delivered shows behind the instruction, which may be the one that STI shadows
    if (this.#isRecognized()) this.#guest.stopAfterInstruction();
  }
  #isRecognized(): boolean {
    const priority = Math.max(this.#taskPriority & VECTOR_CLASS, this.#servicing & VECTOR_CLASS);
    return (this.#requesting & VECTOR_CLASS) > priority;
  }
  /** An interrupt is to be delivered before the next instruction. */
  isDeliverable(): boolean {
    return this.isEnabled && this.#requesting !== 0 && this.#isRecognized() && this.#guest.acceptsInterrupts();
  }
  /** Takes it from the page; its vector. */
  acknowledge(): number {
    const vector = this.#requesting;
    this.#page.unmark(Apic.irr, vector);
    this.#page.mark(Apic.isr, vector);
    this.#servicing = vector;
    this.evaluate();
    this.#updatePpr();
    return vector;
  }

  // Accesses to the page

  read(offset: number, bytes: number): number {
    if (!isWord(offset, bytes) || !accessOf(offset).isReadable) this.#guest.leaveForAccess(offset & 0xff0, false);
    this.#time.hold();
    return this.#page.get(offset);
  }
  checkWrite(offset: number, bytes: number): void {
    if (!isWord(offset, bytes) || accessOf(offset).write === AvicAccess.fault) this.#guest.leaveForAccess(offset & 0xff0, true);
  }
  write(offset: number, bytes: number, value: number): void {
    this.checkWrite(offset, bytes);
    this.#time.hold();
    if (offset === Apic.eoi) {
      this.#endOfInterrupt();
      return;
    }
    this.#page.set(offset, offset === Apic.tpr ? value & 0xff : value);
    if (offset === Apic.tpr) {
      this.#guest.engine.u32[CR8] = (value >>> 4) & 15;
      this.#updatePpr();
      this.#stopIfRequested();
    } else if (offset === Apic.icrLow) this.#sendIpi(value);
    else if (accessOf(offset).write === AvicAccess.trap) this.#guest.trapAccess(offset, 0);
  }

  /** The guest wrote CR8, which is its task priority too. */
  taskPriorityWritten(value: number): void {
    this.#page.set(Apic.tpr, (value & 15) << 4);
    this.#updatePpr();
    this.#stopIfRequested();
  }

  /** Of a level-triggered interrupt it is software's. */
  #endOfInterrupt(): void {
    const vector = this.#page.highest(Apic.isr);
    if (vector === 0) return;
    if (this.#page.has(Apic.tmr, vector)) {
      this.#guest.trapAccess(Apic.eoi, vector);
      return;
    }
    this.#page.unmark(Apic.isr, vector);
    this.#servicing = this.#page.highest(Apic.isr);
    this.#updatePpr();
    this.#stopIfRequested();
  }

  #sendIpi(low: number): void {
    const high = this.#page.get(Apic.icrHigh);
    const targets = this.#targets;
    const isFlat = this.#page.get(Apic.dfr) >>> 28 === 15;
    targets.send(IcrKind.of(low), high >>> 24, low & 0xff, isFlat);
    if (targets.includesSelf) {
      this.evaluate();
      this.#stopIfRequested();
    }
    if (targets.failure !== IpiFailure.none) this.#guest.trapIpi(high, low, targets.failure, targets.index);
  }

  // x2AVIC is not offered

  readMsr(): bigint | undefined {
    return undefined;
  }
  writeMsr(): boolean | undefined {
    return undefined;
  }
}

function pageOf(address: number): number {
  return address - (address % PAGE);
}
function isWord(offset: number, bytes: number): boolean {
  return bytes === 4 && (offset & 15) === 0;
}
