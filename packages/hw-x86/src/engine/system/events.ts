/** Delivery of interrupts and exceptions (Intel SDM Vol. 3A, Interrupt and Exception Handling). */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { GUEST_FAULT } from "../guest-mode.ts";
import type { GuestEvent } from "../system-interface.ts";
import { Vector } from "./bits.ts";
import { Dr6, Dr7 } from "./breakpoints.ts";
import { deliverLong, deliverProtected, deliverReal, returnRip } from "./event-gates.ts";
import { isLongMode, isProtected } from "./processor-mode.ts";
import { cachesOf } from "./translation-caches.ts";
import { enterRedirected, isInjectionRedirected } from "./virtual-8086-extensions.ts";

const CONTRIBUTORY = (1 << Vector.DE) | (1 << Vector.TS) | (1 << Vector.NP) | (1 << Vector.SS) | (1 << Vector.GP);
const isContributory = (vector: number): boolean => ((CONTRIBUTORY >>> vector) & 1) !== 0;

/** Error codes of contributory faults, #PF, #DF and #AC. */
export function hasErrorCode(vector: number): boolean {
  return vector === Vector.DF || (vector >= Vector.TS && vector <= Vector.PF) || vector === Vector.AC;
}

/** What a fault met while delivering `first` becomes: itself, a double fault or a triple fault. */
function combine(first: GuestEvent, second: number): "serial" | "double" | "triple" {
  if (first.type !== 3) return "serial";
  const isGrave = isContributory(second) || second === Vector.PF;
  if (first.vector === Vector.DF) return isGrave ? "triple" : "serial";
  if (isContributory(first.vector)) return isContributory(second) ? "double" : "serial";
  if (first.vector === Vector.PF) return isGrave ? "double" : "serial";
  return "serial";
}

/** Bits of DR6 that a debug exception may set: B0 to B3, BD, BS, BT. */
const DR6_CAUSES = 0xe00f;
/** LBR and BTF: a debug exception ends both. */
const DEBUGCTL_ENDED = 3;

/** CR2, DR6 and DR7 as the event leaves them. An injected event has had that from whoever injected it. */
function loadPayload(cpu: Cpu, event: GuestEvent): void {
  if (event.injected || event.type !== 3) return;
  if (event.vector === Vector.PF) cpu.set64(state.cr2, event.payload);
  else if (event.vector === Vector.DB) {
    cpu.u32[(state.dr + 48) >>> 2] |= Dr6.fixed | (Number(event.payload & 0xffffn) & DR6_CAUSES);
    cpu.u32[(state.dr + 56) >>> 2] &= ~Dr7.GD;
    cpu.u32[state.debugctl >>> 2] &= ~DEBUGCTL_ENDED;
  }
}

/** INT n, as GuestEvent.type. */
const SOFTWARE_INTERRUPT = 4;

/** AMD64 APM Vol. 2, Control-Transfer Recording. */
const RECORDS = 1;
function recordTransfer(cpu: Cpu, from: bigint): void {
  cpu.set64(state.exceptionFrom, cpu.get64(state.branchFrom));
  cpu.set64(state.exceptionTo, cpu.get64(state.branchTo));
  cpu.set64(state.branchFrom, from);
  cpu.set64(state.branchTo, cpu.get64(state.rip));
}

function deliverOnce(cpu: Cpu, event: GuestEvent): void {
  loadPayload(cpu, event);
  const from = (cpu.u32[state.debugctl >>> 2] & RECORDS) !== 0 ? cpu.get64(state.rip) : undefined;
  const isInjectedInterrupt = event.injected && event.type === SOFTWARE_INTERRUPT;
  if (isInjectedInterrupt && isInjectionRedirected(cpu, event.vector))
    enterRedirected(cpu, event.vector, returnRip(cpu, event));
  else if (!isProtected(cpu)) deliverReal(cpu, event);
  else if (isLongMode(cpu)) deliverLong(cpu, event);
  else deliverProtected(cpu, event);
  if (from !== undefined) recordTransfer(cpu, from);
  cpu.set32(state.activity, 0);
  // Blocking by STI and MOV SS ends with an event; an NMI blocks further ones.
  const blocking = cpu.u32[state.interruptibility >>> 2] & ~3;
  cpu.set32(state.interruptibility, event.type === 2 ? blocking | 8 : blocking);
}

/** The fault that `Cpu.raise` recorded, as an event of its own. */
function pendingFault(cpu: Cpu): GuestEvent {
  const vector = cpu.u32[state.faultVector >>> 2];
  return {
    vector,
    type: 3,
    errorCode: cpu.u32[state.faultHasError >>> 2] !== 0 ? cpu.u32[state.faultError >>> 2] : undefined,
    instructionLength: 0,
    payload: vector === Vector.PF ? cachesOf(cpu).faultAddress : 0n,
    injected: false,
  };
}

/** INT n, INT1, INT3 and INTO; the latter two are injected as exceptions by SVM, which has no type of its own for them. */
export function isOfInstruction({ type, vector }: GuestEvent): boolean {
  return type >= SOFTWARE_INTERRUPT || (type === 3 && (vector === Vector.BP || vector === Vector.OF));
}

/**
 * Delivers an event through the IDT, with the faults that delivery meets: they are delivered in its place, or become a double
 * or triple fault. May throw VM_EXIT, and then no register but CR2 and DR6 has changed.
 */
export function deliverEvent(cpu: Cpu, event: GuestEvent): void {
  cpu.deliveries++;
  let current = event;
  try {
    for (let isFirst = true; ; isFirst = false) {
      // Interception comes before delivery starts, so that for a fault met in delivery the vectoring information is of the event
      // before it.
      if (!(isFirst && event.injected) && (current.type === 3 || current.type === 5 || current.type === 6)) {
        cpu.guest.exception(current.vector, current.type, current.errorCode, current.payload);
      }
      cpu.guest.vectoring(current);
      try {
        deliverOnce(cpu, current);
        return;
      } catch (thrown) {
        if (thrown !== GUEST_FAULT) throw thrown;
      }
      const fault = pendingFault(cpu);
      switch (combine(current, fault.vector)) {
        case "serial":
          current = fault;
          break;
        case "double":
          current = { ...fault, vector: Vector.DF, errorCode: 0, payload: 0n };
          break;
        case "triple":
          cpu.guest.tripleFault();
          cpu.set32(state.activity, 2);
          cpu.requestStop();
          return;
      }
    }
  } finally {
    cpu.guest.vectoring(undefined);
  }
}
