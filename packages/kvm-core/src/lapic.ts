import type { Clock, StructValue, VcpuLapic } from "@mkvm/kvm-abi";
import type { InterruptMessage } from "./interrupt-message.ts";

/** What a local APIC needs of its vCPU and VM. */
export interface LapicHost {
  readonly clock: Clock;
  /** Guest TSC now. */
  guestTsc(): bigint;
  /** Guest TSC ticks a millisecond. */
  guestTscKhz(): number;
  /** Something became pending (IRR, NMI, INIT, SIPI): wake the vCPU if it waits, make it leave guest mode if it runs. */
  kick(): void;
  /** An NMI arrived. */
  nmi(): void;
  /** A message that this APIC's ICR sends. */
  send(message: InterruptMessage, source: Lapic): void;
  /** The guest ended an interrupt with EOI broadcast not suppressed. */
  broadcastEoi(vector: number): void;
}

/** Local APIC of one vCPU. Offsets are within the APIC page, vectors 0 to 255. */
export interface Lapic {
  readonly id: number;
  /** IA32_APIC_BASE. */
  readonly apicBase: bigint;
  /** false: #GP (reserved bits, or a forbidden change of mode). */
  setApicBase(value: bigint): boolean;
  /** IA32_APIC_BASE bit 11. */
  readonly enabled: boolean;
  readonly x2apic: boolean;
  readonly softwareEnabled: boolean;
  /** Guest physical address of the register page. */
  readonly pageAddress: number;
  /** CPUID bits that matter: x2APIC and TSC deadline. */
  setFeatures(features: { x2apic: boolean; tscDeadline: boolean }): void;

  /** MMIO in the page; `length` 1, 2, 4 or 8 bytes. Reads return little-endian bytes. */
  mmioRead(offset: number, length: number): Uint8Array;
  mmioWrite(offset: number, data: Uint8Array): void;
  /** x2APIC MSRs, 0x800 to 0x8ff. undefined, false: #GP. */
  msrRead(index: number): bigint | undefined;
  msrWrite(index: number, value: bigint): boolean;
  /** IA32_TSC_DEADLINE. */
  readonly tscDeadline: bigint;
  setTscDeadline(value: bigint): void;

  /** CR8: bits 7:4 of the task priority. */
  readonly cr8: number;
  setCr8(value: number): void;

  /** From the bus. False: it was pending already. INIT and SIPI are noted in `pendingEvents`. */
  accept(message: InterruptMessage): boolean;
  /** True when the message's destination names this APIC. */
  matches(message: InterruptMessage, source?: Lapic): boolean;
  /** Highest vector that may be delivered now (above the processor priority), or -1. */
  pendingVector(): number;
  /** Highest vector in IRR whatever the priority, or -1. */
  highestRequest(): number;
  /** Takes `pendingVector` from IRR to ISR and returns it; -1 when there is none. */
  acknowledge(): number;
  /** Priority of the arbitration for lowest-priority delivery. */
  readonly processorPriority: number;
  endOfInterrupt(): void;
  /** True when ExtINT from the 8259 reaches this vCPU (LVT LINT0, or the APIC is off). */
  acceptsPicInterrupts(): boolean;
  /** LINT0 (0) or LINT1 (1) is asserted; NMI, ExtINT and fixed modes. */
  localInterrupt(lint: number): void;

  /** LapicEvent bits: INIT and SIPI not yet acted on. */
  readonly pendingEvents: number;
  readonly sipiVector: number;
  /** The vCPU acted on these. */
  clearEvents(events: number): void;

  /** INIT keeps the APIC id and base; a reset does not. */
  reset(kind: "power-on" | "init"): void;
  /** The guest's TSC jumped or changed its rate: a TSC deadline is computed anew. */
  guestTscChanged(): void;
  /** True when the timer has expired and its interrupt is not in IRR yet (it goes there by `acknowledgeTimer`). */
  readonly timerPending: boolean;

  /** KVM_GET_LAPIC, KVM_SET_LAPIC: 1024 bytes. */
  getState(): Uint8Array;
  setState(registers: Uint8Array): void;
  /** Fixed part of section vcpu.lapic. */
  save(): StructValue<(typeof VcpuLapic)["fixed"]["fields"]>;
  restore(value: StructValue<(typeof VcpuLapic)["fixed"]["fields"]>): void;
  /** Cancels the timer. */
  dispose(): void;
}

export type CreateLapic = (id: number, options: { bootCpu: boolean }, host: LapicHost) => Lapic;
