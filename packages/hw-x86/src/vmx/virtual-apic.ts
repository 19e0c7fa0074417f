/**
 * The virtual-APIC page and what the processor does with it: TPR, PPR, EOI and self-IPI virtualization, evaluation and delivery of
 * virtual interrupts, posted interrupts. Source: Intel SDM Vol. 3C, APIC Virtualization and Virtual Interrupts.
 */
import { Apic, ApicPage, HeldTime, VECTOR_CLASS } from "../apic-page.ts";
import type { ApicAccess } from "../engine/apic-access.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { RootCpu } from "../root-interface.ts";
import { virtualizedReads, virtualizedWrites } from "./apic-registers.ts";
import { ExitReason, Pin, Primary, Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

/** ICR bits that must be clear, and those that say "self", for a self-IPI without software: reserved, status, level, mode, delivery. */
const ICR_SELF_MASK = 0xfff0_0000 | (3 << 18) | (3 << 16) | 0xb000 | 0x700;
const ICR_SELF = 1 << 18;
const isSelfIpi = (icr: number): boolean => (icr & ICR_SELF_MASK) === ICR_SELF && (icr & VECTOR_CLASS) !== 0;
/** Words of the posted-interrupt descriptor: eight of requests, then ON in bit 0. */
const REQUEST_WORDS = 8;
const OUTSTANDING = 1;

/** What the guest around it does for its local APIC. */
export interface ApicGuest {
  /** Leaves guest mode for a linear access to the page. */
  leaveForApicAccess(offset: number, isWrite: boolean): never;
  /** The instruction at hand is the last before a look at what is pending. */
  stopAfterInstruction(): void;
  /** RFLAGS.IF is set and nothing blocks interrupts. */
  acceptsInterrupts(): boolean;
}

export class VirtualApic implements ApicAccess {
  readonly #cpu: RootCpu;
  readonly #vmcs: Vmcs;
  readonly #guest: ApicGuest;
  /** The virtual-APIC page. */
  readonly #page = new ApicPage();
  readonly #time: HeldTime;
  #reads: Uint8Array = virtualizedReads(false);
  #writes: Uint8Array = virtualizedWrites(false, false);
  #registers = false;
  #isX2apic = false;
  usesShadow = false;
  delivers = false;
  posts = false;
  notificationVector = 0;
  #descriptor: MemoryBank | undefined;
  #descriptorOffset = 0;
  /** Host physical address of the APIC-access page; -1: accesses are not virtualized. */
  accessPage = -1;
  /** A pending virtual interrupt is recognized. */
  #isRecognized = false;
  /** A trap-like exit is due before the next instruction: its reason, 0 for none. */
  due = 0;
  dueQualification = 0;

  constructor(cpu: RootCpu, vmcs: Vmcs, guest: ApicGuest) {
    this.#cpu = cpu;
    this.#vmcs = vmcs;
    this.#guest = guest;
    this.#time = new HeldTime(cpu);
  }

  /** Takes the controls of the current VMCS over. */
  useControls(pin: number, primary: number, secondary: number): void {
    const vmcs = this.#vmcs;
    this.usesShadow = (primary & Primary.useTprShadow) !== 0;
    this.#registers = (secondary & Secondary.apicRegisterVirtualization) !== 0;
    this.delivers = (secondary & Secondary.virtualInterruptDelivery) !== 0;
    this.#isX2apic = (secondary & Secondary.virtualizeX2apicMode) !== 0;
    this.posts = (pin & Pin.processPostedInterrupts) !== 0;
    this.accessPage = (secondary & Secondary.virtualizeApicAccesses) !== 0 ? vmcs.number(slot.APIC_ACCESS_ADDRESS) : -1;
    this.#reads = virtualizedReads(this.#registers);
    this.#writes = virtualizedWrites(this.#registers, this.delivers);
    if (this.usesShadow) this.#pointPage(vmcs.number(slot.VIRTUAL_APIC_ADDRESS));
    else this.#page.point(undefined, 0);
    if (!this.posts) return;
    this.notificationVector = vmcs.low(slot.POSTED_INTERRUPT_VECTOR) & 0xff;
    const descriptor = vmcs.number(slot.POSTED_INTERRUPT_DESCRIPTOR);
    this.#descriptor = this.#cpu.memory.holding(descriptor, 64);
    this.#descriptorOffset = descriptor % 0x1_0000_0000;
    if (this.#descriptor === undefined)
      this.#cpu.log(`posted-interrupt descriptor ${descriptor.toString(16)}: no memory there`);
  }

  #pointPage(address: number): void {
    const bank = this.#cpu.memory.holding(address, 4096);
    this.#page.point(bank, address % 0x1_0000_0000);
    if (bank === undefined) this.#cpu.log(`virtual-APIC page ${address.toString(16)}: no memory there`);
  }

  /** What is wrong with the TPR threshold at a VM entry. */
  checkTprThreshold(): string | undefined {
    if (!this.usesShadow || this.delivers || this.accessPage >= 0) return undefined;
    return (this.#vmcs.low(slot.TPR_THRESHOLD) & 15) > this.#taskClass() ? "TPR threshold above the task priority" : undefined;
  }

  /** VM entry: with the guest's state loaded, before an event is injected. */
  enter(): void {
    this.due = 0;
    this.#isRecognized = false;
    if (this.delivers) {
      this.#updatePpr();
      this.#evaluate();
    } else if (this.usesShadow && this.accessPage >= 0) this.#compareTpr();
  }

  #taskClass(): number {
    return (this.#page.get(Apic.tpr) >>> 4) & 15;
  }

  // Guest interrupt status

  get #requesting(): number {
    return this.#vmcs.low(slot.GUEST_INTERRUPT_STATUS) & 0xff;
  }
  get #servicing(): number {
    return (this.#vmcs.low(slot.GUEST_INTERRUPT_STATUS) >>> 8) & 0xff;
  }
  #setStatus(requesting: number, servicing: number): void {
    this.#vmcs.set(slot.GUEST_INTERRUPT_STATUS, requesting | (servicing << 8));
  }

  #updatePpr(): void {
    const task = this.#page.get(Apic.tpr) & 0xff;
    const servicing = this.#servicing & VECTOR_CLASS;
    this.#page.set(Apic.ppr, (task & VECTOR_CLASS) >= servicing ? task : servicing);
  }
  /** Evaluation of pending virtual interrupts. */
  #evaluate(): void {
    const isHeld = (this.#vmcs.low(slot.PRIMARY_CONTROLS) & Primary.interruptWindowExiting) !== 0;
    this.#isRecognized = !isHeld && (this.#requesting & VECTOR_CLASS) > (this.#page.get(Apic.ppr) & VECTOR_CLASS);
  }
  #evaluateInGuest(): void {
    this.#evaluate();
    // Whether it can be delivered shows behind the instruction, which may be the one that STI shadows
    if (this.#isRecognized) this.#guest.stopAfterInstruction();
  }

  /** A virtual interrupt is to be delivered before the next instruction. */
  isDeliverable(): boolean {
    return this.#isRecognized && this.#guest.acceptsInterrupts();
  }
  /** Takes it from the page; its vector. */
  acknowledge(): number {
    const vector = this.#requesting;
    this.#page.mark(Apic.isr, vector);
    this.#page.set(Apic.ppr, vector & VECTOR_CLASS);
    this.#page.unmark(Apic.irr, vector);
    this.#setStatus(this.#page.highest(Apic.irr), vector);
    this.#isRecognized = false;
    return vector;
  }

  /** The notification has arrived: requests of the descriptor become the page's. */
  processPosted(): void {
    const bank = this.#descriptor;
    if (bank === undefined) return;
    const at = this.#descriptorOffset >>> 2;
    Atomics.and(bank.u32, at + REQUEST_WORDS, ~OUTSTANDING);
    let highest = 0;
    for (let i = 0; i < REQUEST_WORDS; i++) {
      const posted = Atomics.exchange(bank.u32, at + i, 0);
      if (posted === 0) continue;
      this.#page.set(Apic.irr + i * 16, this.#page.get(Apic.irr + i * 16) | posted);
      highest = i * 32 + 31 - Math.clz32(posted);
    }
    this.#setStatus(Math.max(this.#requesting, highest), this.#servicing);
    this.#evaluate();
  }

  // What registers do when they are written

  #trap(reason: number, qualification = 0): void {
    this.due = reason;
    this.dueQualification = qualification;
    this.#guest.stopAfterInstruction();
  }
  #compareTpr(): void {
    if (this.#taskClass() < (this.#vmcs.low(slot.TPR_THRESHOLD) & 15)) this.#trap(ExitReason.tprBelowThreshold);
  }
  #tprWritten(): void {
    if (!this.delivers) {
      this.#compareTpr();
      return;
    }
    this.#updatePpr();
    this.#evaluateInGuest();
  }
  #endOfInterrupt(): void {
    const vector = this.#servicing;
    this.#page.unmark(Apic.isr, vector);
    this.#setStatus(this.#requesting, this.#page.highest(Apic.isr));
    this.#updatePpr();
    const bitmap = slot.EOI_EXIT_BITMAP0 + 2 * (vector >>> 6);
    const half = (vector & 32) === 0 ? this.#vmcs.low(bitmap) : this.#vmcs.high(bitmap);
    if (((half >>> (vector & 31)) & 1) !== 0) this.#trap(ExitReason.virtualizedEoi, vector);
    else this.#evaluateInGuest();
  }
  #selfIpi(vector: number): void {
    this.#page.mark(Apic.irr, vector);
    this.#setStatus(Math.max(this.#requesting, vector), this.#servicing);
    this.#evaluateInGuest();
  }

  /** APIC-write emulation. Source: Intel SDM Vol. 3C, APIC-Write Emulation. */
  #written(register: number, offset: number): void {
    if (register === Apic.tpr) {
      this.#page.set(Apic.tpr, this.#page.get(Apic.tpr) & 0xff);
      this.#tprWritten();
    } else if (register === Apic.icrHigh) this.#page.set(Apic.icrHigh, this.#page.get(Apic.icrHigh) & 0xff00_0000);
    else if (this.delivers && register === Apic.eoi) {
      this.#page.set(Apic.eoi, 0);
      this.#endOfInterrupt();
    } else if (this.delivers && register === Apic.icrLow && isSelfIpi(this.#page.get(Apic.icrLow)))
      this.#selfIpi(this.#page.get(Apic.icrLow) & 0xff);
    else this.#trap(ExitReason.apicWrite, offset);
  }

  // Accesses to the page

  #isVirtualized(set: Uint8Array, offset: number, bytes: number): boolean {
    if (!this.usesShadow || (offset & 15) + bytes > 4 || set[offset >>> 4] === 0) return false;
    return this.#registers || (offset & 15) === 0;
  }
  read(offset: number, bytes: number): number {
    if (!this.#isVirtualized(this.#reads, offset, bytes)) this.#guest.leaveForApicAccess(offset, false);
    this.#time.hold();
    const value = this.#page.get(offset & 0xff0) >>> (8 * (offset & 3));
    return bytes === 4 ? value : value & (2 ** (8 * bytes) - 1);
  }
  checkWrite(offset: number, bytes: number): void {
    if (!this.#isVirtualized(this.#writes, offset, bytes)) this.#guest.leaveForApicAccess(offset, true);
  }
  write(offset: number, bytes: number, value: number): void {
    this.checkWrite(offset, bytes);
    this.#time.hold();
    const register = offset & 0xff0;
    const shift = 8 * (offset & 3);
    const mask = bytes === 4 ? 0xffff_ffff : (2 ** (8 * bytes) - 1) << shift;
    this.#page.set(register, (this.#page.get(register) & ~mask) | ((value << shift) & mask));
    this.#written(register, offset);
  }

  // x2APIC mode

  readMsr(index: number): bigint | undefined {
    if (!this.#isX2apic) return undefined;
    const offset = (index & 0xff) << 4;
    if (!this.#registers && offset !== Apic.tpr) return undefined;
    this.#time.hold();
    return (BigInt(this.#page.get(offset + 4)) << 32n) | BigInt(this.#page.get(offset));
  }
  writeMsr(index: number, value: bigint): boolean | undefined {
    const offset = (index & 0xff) << 4;
    const isOurs = offset === Apic.tpr || (this.delivers && (offset === Apic.eoi || offset === Apic.selfIpi));
    if (!this.#isX2apic || !isOurs) return undefined;
    if (value > (offset === Apic.eoi ? 0n : 0xffn)) return false;
    this.#time.hold();
    this.#page.set(offset, Number(value));
    this.#page.set(offset + 4, 0);
    if (offset === Apic.tpr) this.#tprWritten();
    else if (offset === Apic.eoi) this.#endOfInterrupt();
    else if (Number(value) >= 16) this.#selfIpi(Number(value));
    else this.#trap(ExitReason.apicWrite, offset);
    return true;
  }

  // CR8

  readCr8(): bigint {
    this.#time.hold();
    return BigInt(this.#taskClass());
  }
  writeCr8(value: number): void {
    this.#time.hold();
    this.#page.set(Apic.tpr, value << 4);
    this.#tprWritten();
  }
}
