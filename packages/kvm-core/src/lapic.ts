/** The local APIC. Source: Intel SDM Vol. 3A, Advanced Programmable Interrupt Controller (APIC). */
import { type Clock, KVM_APIC_REG_SIZE, LapicEvent, LapicTimerMode, type StructValue, type VcpuLapic } from "@mkvm/kvm-abi";
import { DeliveryMode, type InterruptMessage, Shorthand } from "./interrupt-message.ts";
import { ApicBase, IcrBit, LVT_MASKS, LvtBit, ApicRegister as Reg, SVR_SOFTWARE_ENABLE } from "./lapic-registers.ts";
import { createLapicTimer } from "./lapic-timer.ts";

/** What a local APIC needs of its vCPU and VM. */
export interface LapicHost {
  readonly clock: Clock;
  /** Guest TSC now. */
  guestTsc(): bigint;
  /** Guest TSC ticks a millisecond. */
  guestTscKhz(): number;
  /** Something became pending (IRR, NMI, INIT, SIPI): wake the vCPU if it waits, make it leave guest mode if it runs. */
  kick(): void;
  /** A vector was accepted that was not pending. */
  requested?(vector: number): void;
  /** An NMI arrived. */
  nmi(): void;
  /** A message that this APIC's ICR sends. */
  send(message: InterruptMessage, source: Lapic): void;
  /** The guest ended an interrupt; `levelTriggered` as its TMR bit says. For the IOAPIC, which is told of edges as well. */
  broadcastEoi(vector: number, levelTriggered: boolean): void;
}

/** Local APIC of one vCPU. Offsets are within the APIC page, vectors 0 to 255. */
export interface Lapic {
  readonly id: number;
  /** IA32_APIC_BASE. */
  readonly apicBase: bigint;
  /** false: #GP (reserved bits, or a forbidden change of mode). `byHost` (KVM_SET_SREGS): any change of mode. */
  setApicBase(value: bigint, byHost?: boolean): boolean;
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
  /** Highest vector in service, or -1. */
  highestInService(): number;
  /** The processor has ended an interrupt in the registers: what is left is to tell the IOAPIC. */
  interruptEnded(vector: number): void;
  /** The processor has written a register: what is left is what comes of it. */
  registerWritten(offset: number): void;
  /** True when ExtINT from the 8259 reaches this vCPU (LVT LINT0, or the APIC is off). */
  acceptsPicInterrupts(): boolean;
  /** LINT0 (0) or LINT1 (1) is asserted; NMI, ExtINT and fixed modes. */
  localInterrupt(lint: number): void;

  /** LapicEvent bits: INIT and SIPI not yet acted on. */
  readonly pendingEvents: number;
  sipiVector: number;
  /** User space says that these have arrived. */
  noteEvents(events: number): void;
  /** The vCPU acted on these. */
  clearEvents(events: number): void;

  /** INIT keeps the APIC id and base; a reset does not. */
  reset(kind: "power-on" | "init"): void;
  /** The guest's TSC jumped or changed its rate: a TSC deadline is computed anew. */
  guestTscChanged(): void;
  /** KVM_GET_LAPIC, KVM_SET_LAPIC: 1024 bytes. */
  getState(): Uint8Array;
  setState(registers: Uint8Array): void;
  /** Fixed part of section vcpu.lapic. */
  save(): StructValue<(typeof VcpuLapic)["fixed"]["fields"]>;
  restore(value: StructValue<(typeof VcpuLapic)["fixed"]["fields"]>): void;
  /** Cancels the timer. */
  dispose(): void;
}

export interface LapicOptions {
  readonly bootCpu: boolean;
  /** Where the registers lie, if a processor that virtualizes them is to reach them there: KVM_APIC_REG_SIZE bytes or more. */
  readonly registers?: Uint8Array | undefined;
}

/** `id`: vCPU id, and APIC id after reset. */
export function createLapic(id: number, options: LapicOptions, host: LapicHost): Lapic {
  const bytes = options.registers?.subarray(0, KVM_APIC_REG_SIZE) ?? new Uint8Array(KVM_APIC_REG_SIZE);
  /** Register at offset `r` of the page is word r / 4. */
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, KVM_APIC_REG_SIZE / 4);
  const get = (register: number) => words[register >> 2];
  const set = (register: number, value: number) => {
    words[register >> 2] = value;
  };
  let apicBase = 0n;
  let features = { x2apic: true, tscDeadline: true };
  let pendingEvents = 0;
  let sipiVector = 0;
  const timer = createLapicTimer(host, () => deliverLocal(Reg.lvtTimer));

  const enabled = () => (apicBase & ApicBase.enable) !== 0n;
  const x2apic = () => enabled() && (apicBase & ApicBase.x2apic) !== 0n;
  const softwareEnabled = () => (get(Reg.svr) & SVR_SOFTWARE_ENABLE) !== 0;
  const apicId = () => (x2apic() ? get(Reg.id) : get(Reg.id) >>> 24);

  // Vectors: 8 registers of 32 bits, 16 bytes apart
  const wordOf = (block: number, vector: number) => (block >> 2) + (vector >> 5) * 4;
  const test = (block: number, vector: number) => (words[wordOf(block, vector)] & (1 << (vector & 31))) !== 0;
  const mark = (block: number, vector: number) => {
    words[wordOf(block, vector)] |= 1 << (vector & 31);
  };
  const unmark = (block: number, vector: number) => {
    words[wordOf(block, vector)] &= ~(1 << (vector & 31));
  };
  function highest(block: number): number {
    for (let i = 7; i >= 0; i--) {
      const word = words[(block >> 2) + i * 4];
      if (word !== 0) return i * 32 + 31 - Math.clz32(word);
    }
    return -1;
  }

  /** A processor that virtualizes self-IPIs leaves the vector where there is nothing to read. */
  function settleRegisters(): void {
    set(Reg.selfIpi, 0);
    updatePpr();
  }
  function updatePpr(): number {
    const tpr = get(Reg.tpr);
    const inService = Math.max(highest(Reg.isr), 0);
    const ppr = (tpr & 0xf0) >= (inService & 0xf0) ? tpr & 0xff : inService & 0xf0;
    set(Reg.ppr, ppr);
    return ppr;
  }
  function pendingVector(): number {
    if (!enabled()) return -1;
    const vector = highest(Reg.irr);
    return vector >= 0 && (vector & 0xf0) > (updatePpr() & 0xf0) ? vector : -1;
  }

  function acceptVector(vector: number, levelTriggered: boolean): boolean {
    if (vector < 16) {
      receiveIllegalVector();
      return true;
    }
    const isNew = !test(Reg.irr, vector);
    mark(Reg.irr, vector);
    if (levelTriggered) mark(Reg.tmr, vector);
    else unmark(Reg.tmr, vector);
    if (isNew) {
      host.requested?.(vector);
      host.kick();
    }
    return isNew;
  }
  function receiveIllegalVector(): void {
    set(Reg.esr, get(Reg.esr) | 0x40);
    // An error entry with an illegal vector must not report itself for ever
    if ((get(Reg.lvtError) & 0xff) >= 16) deliverLocal(Reg.lvtError);
  }

  function deliverLocal(lvt: number): void {
    const entry = get(lvt);
    if (entry & LvtBit.masked || !enabled()) return;
    const isTimerOrError = lvt === Reg.lvtTimer || lvt === Reg.lvtError;
    const mode = isTimerOrError ? DeliveryMode.fixed : (entry >> 8) & 7;
    if (mode === DeliveryMode.fixed) acceptVector(entry & 0xff, !isTimerOrError && (entry & LvtBit.level) !== 0);
    else if (mode === DeliveryMode.nmi) host.nmi();
    else if (mode === DeliveryMode.extInt) host.kick();
  }

  function endOfInterrupt(): void {
    const vector = highest(Reg.isr);
    if (vector < 0) return;
    unmark(Reg.isr, vector);
    updatePpr();
    host.broadcastEoi(vector, test(Reg.tmr, vector));
    if (pendingVector() >= 0) host.kick();
  }

  function sendIcr(low: number, destination: number): void {
    const message: InterruptMessage = {
      vector: low & 0xff,
      deliveryMode: (low >> 8) & 7,
      logical: (low & IcrBit.logical) !== 0,
      asserted: (low & IcrBit.assert) !== 0,
      levelTriggered: (low & IcrBit.level) !== 0,
      shorthand: (low >> 18) & 3,
      destination,
    };
    host.send(message, lapic);
  }

  function writeLvt(register: number, value: number): void {
    set(register, (value & LVT_MASKS[(register - Reg.lvtTimer) >> 4]) | (softwareEnabled() ? 0 : LvtBit.masked));
  }

  /** Also for x2APIC MSRs, after their own checks. */
  function writeRegister(register: number, value: number): void {
    switch (register) {
      case Reg.id:
        if (!x2apic()) set(Reg.id, value & 0xff00_0000);
        break;
      case Reg.tpr:
        set(Reg.tpr, value & 0xff);
        if (pendingVector() >= 0) host.kick();
        break;
      case Reg.eoi:
        endOfInterrupt();
        break;
      case Reg.ldr:
        if (!x2apic()) set(Reg.ldr, value & 0xff00_0000);
        break;
      case Reg.dfr:
        if (!x2apic()) set(Reg.dfr, value | 0x0fff_ffff);
        break;
      case Reg.svr: {
        set(Reg.svr, value & 0x3ff);
        if (!softwareEnabled())
          for (let lvt: number = Reg.lvtTimer; lvt <= Reg.lvtError; lvt += 16) set(lvt, get(lvt) | LvtBit.masked);
        break;
      }
      case Reg.esr:
        set(Reg.esr, 0);
        break;
      case Reg.icrLow: {
        const low = value & ~IcrBit.pending;
        set(Reg.icrLow, low);
        sendIcr(low >>> 0, x2apic() ? get(Reg.icrHigh) : get(Reg.icrHigh) >>> 24);
        break;
      }
      case Reg.icrHigh:
        set(Reg.icrHigh, x2apic() ? value : value & 0xff00_0000);
        break;
      case Reg.lvtTimer: {
        const allowed = features.tscDeadline ? value : value & ~LvtBit.tscDeadline;
        writeLvt(register, allowed);
        if (timer.setMode((allowed >> 17) & 3)) set(Reg.initialCount, 0);
        break;
      }
      case Reg.lvtThermal:
      case Reg.lvtPerformance:
      case Reg.lvtLint0:
      case Reg.lvtLint1:
      case Reg.lvtError:
        writeLvt(register, value);
        break;
      case Reg.initialCount:
        if (timer.mode === LapicTimerMode.tscDeadline) break;
        set(Reg.initialCount, value);
        timer.start(value);
        break;
      case Reg.divide:
        set(Reg.divide, value & 0xb);
        timer.setDivide(value);
        break;
      case Reg.selfIpi:
        if (x2apic()) sendIcr((value & 0xff) | (Shorthand.self << 18) | IcrBit.assert, 0);
        break;
      default: // reserved and read-only registers: the write goes nowhere
    }
  }

  function readRegister(register: number): number {
    switch (register) {
      case Reg.ppr:
        return updatePpr();
      case Reg.currentCount:
        return timer.currentCount();
      case Reg.eoi:
      case Reg.selfIpi:
        return 0;
      default:
        return register < KVM_APIC_REG_SIZE ? get(register) : 0;
    }
  }

  /** What changes with the mode: format of the ID, logical id. */
  function applyMode(was: bigint): void {
    if (x2apic()) {
      set(Reg.id, id);
      set(Reg.ldr, ((id >> 4) << 16) | (1 << (id & 15)));
    } else if ((was & ApicBase.x2apic) !== 0n || (enabled() && (was & ApicBase.enable) === 0n)) {
      set(Reg.id, id << 24);
      set(Reg.ldr, 0);
      set(Reg.dfr, 0xffff_ffff);
    }
  }

  const lapic: Lapic = {
    id,
    get apicBase() {
      return apicBase;
    },
    setApicBase(value, byHost = false) {
      if (value & ApicBase.reserved) return false;
      const mode = value & ApicBase.modeMask;
      const from = apicBase & ApicBase.modeMask;
      if (mode === ApicBase.x2apic || (mode & ApicBase.x2apic && !features.x2apic && !byHost)) return false;
      if (!byHost && mode !== from) {
        const isX2apic = (from & ApicBase.x2apic) !== 0n;
        if (isX2apic && mode !== 0n) return false; // x2APIC only goes to disabled
        if (from === 0n && mode & ApicBase.x2apic) return false; // disabled only goes to xAPIC
      }
      const was = apicBase;
      apicBase = value;
      if (mode !== from) applyMode(was);
      return true;
    },
    get enabled() {
      return enabled();
    },
    get x2apic() {
      return x2apic();
    },
    get softwareEnabled() {
      return softwareEnabled();
    },
    get pageAddress() {
      return Number(apicBase & ApicBase.addressMask);
    },
    setFeatures(next) {
      features = { ...next };
    },
    mmioRead(offset, length) {
      const out = new Uint8Array(length);
      // In the last 12 bytes of each register's 16 there is nothing
      if (!enabled() || x2apic()) return out.fill(0xff);
      if ((offset & 15) + length > 4) return out;
      const value = readRegister(offset & 0xff0);
      for (let i = 0; i < length; i++) out[i] = (value >>> (8 * ((offset & 3) + i))) & 0xff;
      return out;
    },
    mmioWrite(offset, data) {
      if (!enabled() || x2apic() || data.length !== 4 || offset & 15) return;
      writeRegister(offset & 0xff0, (data[0] | (data[1] << 8) | (data[2] << 16) | (data[3] << 24)) >>> 0);
    },
    msrRead(index) {
      if (!x2apic()) return undefined;
      const register = (index - 0x800) << 4;
      if (register === Reg.icrLow) return (BigInt(get(Reg.icrHigh)) << 32n) | BigInt(get(Reg.icrLow));
      if (!X2APIC_READABLE.has(register)) return undefined;
      return BigInt(readRegister(register));
    },
    msrWrite(index, value) {
      if (!x2apic()) return false;
      const register = (index - 0x800) << 4;
      const low = Number(value & 0xffff_ffffn);
      if (register === Reg.icrLow) {
        set(Reg.icrHigh, Number(value >> 32n));
        writeRegister(Reg.icrLow, low);
        return true;
      }
      if (value >> 32n || !X2APIC_WRITABLE.has(register)) return false;
      if ((register === Reg.eoi || register === Reg.esr) && low !== 0) return false;
      if ((register === Reg.selfIpi || register === Reg.tpr) && low > 0xff) return false;
      writeRegister(register, low);
      return true;
    },
    get tscDeadline() {
      return timer.tscDeadline;
    },
    setTscDeadline: (value) => timer.setTscDeadline(value),
    get cr8() {
      return (get(Reg.tpr) >> 4) & 15;
    },
    setCr8(value) {
      writeRegister(Reg.tpr, (value & 15) << 4);
    },
    accept(message) {
      switch (message.deliveryMode) {
        case DeliveryMode.fixed:
        case DeliveryMode.lowestPriority:
          return acceptVector(message.vector, message.levelTriggered);
        case DeliveryMode.nmi:
          host.nmi();
          return true;
        case DeliveryMode.init:
          pendingEvents = LapicEvent.init;
          host.kick();
          return true;
        case DeliveryMode.startUp:
          sipiVector = message.vector;
          pendingEvents |= LapicEvent.sipi;
          host.kick();
          return true;
        default: // SMI and ExtINT have no way into this machine
          return false;
      }
    },
    matches(message, source) {
      // The bus does not reach an APIC that IA32_APIC_BASE turns off
      if (!enabled()) return false;
      switch (message.shorthand) {
        case Shorthand.self:
          return source === lapic;
        case Shorthand.allIncludingSelf:
          return true;
        case Shorthand.allExcludingSelf:
          return source !== lapic;
        default:
      }
      const { destination } = message;
      if (x2apic()) {
        // Devices have 8 bits for a destination, and mean everybody by 0xff
        if (destination === 0xffff_ffff || (destination === 0xff && source === undefined)) return true;
        if (!message.logical) return destination === apicId();
        const ldr = get(Reg.ldr);
        return ldr >>> 16 === destination >>> 16 && (ldr & destination & 0xffff) !== 0;
      }
      if (destination === 0xff || (destination === 0xffff_ffff && source !== undefined)) return true;
      if (!message.logical) return destination === apicId();
      const ldr = get(Reg.ldr) >>> 24;
      if (get(Reg.dfr) >>> 28 === 0xf) return (ldr & destination & 0xff) !== 0;
      return ldr >> 4 === (destination & 0xff) >> 4 && (ldr & destination & 15) !== 0;
    },
    pendingVector,
    highestRequest: () => highest(Reg.irr),
    acknowledge() {
      const vector = pendingVector();
      if (vector < 0) return -1;
      unmark(Reg.irr, vector);
      mark(Reg.isr, vector);
      updatePpr();
      return vector;
    },
    get processorPriority() {
      return updatePpr();
    },
    endOfInterrupt,
    highestInService: () => highest(Reg.isr),
    interruptEnded: (vector) => host.broadcastEoi(vector, test(Reg.tmr, vector)),
    registerWritten(offset) {
      const register = offset & 0xff0;
      const value = get(register);
      // A register that no write reaches in this mode has kept what it had, which was nothing
      if (register === Reg.initialCount && timer.mode === LapicTimerMode.tscDeadline) set(register, 0);
      else writeRegister(register, value);
      if (register === Reg.selfIpi) set(register, 0);
    },
    acceptsPicInterrupts() {
      if (!enabled()) return true;
      const lint0 = get(Reg.lvtLint0);
      return !(lint0 & LvtBit.masked) && ((lint0 >> 8) & 7) === DeliveryMode.extInt;
    },
    localInterrupt: (lint) => deliverLocal(lint === 0 ? Reg.lvtLint0 : Reg.lvtLint1),
    get pendingEvents() {
      return pendingEvents;
    },
    get sipiVector() {
      return sipiVector;
    },
    set sipiVector(vector) {
      sipiVector = vector;
    },
    noteEvents(events) {
      pendingEvents |= events;
    },
    clearEvents(events) {
      pendingEvents &= ~events;
    },
    reset(kind) {
      timer.reset();
      words.fill(0);
      if (kind === "power-on") {
        apicBase = ApicBase.default | ApicBase.enable | (options.bootCpu ? ApicBase.bootCpu : 0n);
        pendingEvents = 0;
        sipiVector = 0;
      }
      set(Reg.version, 0x14 | (5 << 16)); // integrated APIC with 6 LVT entries
      set(Reg.dfr, x2apic() ? 0 : 0xffff_ffff);
      set(Reg.svr, 0xff);
      set(Reg.id, x2apic() ? id : id << 24);
      if (x2apic()) set(Reg.ldr, ((id >> 4) << 16) | (1 << (id & 15)));
      for (let lvt: number = Reg.lvtTimer; lvt <= Reg.lvtError; lvt += 16) set(lvt, LvtBit.masked);
      // As firmware leaves it: the 8259 reaches the boot CPU through LINT0
      if (options.bootCpu) set(Reg.lvtLint0, DeliveryMode.extInt << 8);
    },
    guestTscChanged: () => timer.guestTscChanged(),
    getState() {
      settleRegisters();
      const out = bytes.slice();
      const view = new DataView(out.buffer);
      view.setUint32(Reg.currentCount, timer.currentCount(), true);
      // KVM_X2APIC_API_USE_32BIT_IDS is not offered: the id is where xAPIC mode has it
      if (x2apic()) view.setUint32(Reg.id, get(Reg.id) << 24, true);
      return out;
    },
    setState(registers) {
      bytes.set(registers.subarray(0, KVM_APIC_REG_SIZE));
      const remaining = get(Reg.currentCount);
      set(Reg.currentCount, 0);
      set(Reg.version, 0x14 | (5 << 16));
      if (x2apic()) applyMode(apicBase);
      timer.setDivide(get(Reg.divide));
      timer.setMode((get(Reg.lvtTimer) >> 17) & 3);
      timer.resume(get(Reg.initialCount), remaining);
      host.kick();
    },
    save() {
      settleRegisters();
      return {
        registers: bytes.slice(),
        apic_base: apicBase,
        timer_pending: 0,
        ...timer.save(),
        pending_events: pendingEvents,
        sipi_vector: sipiVector,
        reserved: [0, 0, 0],
      };
    },
    restore(value) {
      bytes.set(value.registers);
      apicBase = value.apic_base;
      pendingEvents = value.pending_events;
      sipiVector = value.sipi_vector;
      timer.restore(value);
      if (value.timer_pending > 0) deliverLocal(Reg.lvtTimer);
    },
    dispose: () => timer.dispose(),
  };
  lapic.reset("power-on");
  return lapic;
}

/** Offsets of the registers that x2APIC mode can read and write. */
export const X2APIC_READABLE: ReadonlySet<number> = new Set([
  Reg.id,
  Reg.version,
  Reg.tpr,
  Reg.ppr,
  Reg.ldr,
  Reg.svr,
  ...[0, 1, 2, 3, 4, 5, 6, 7].flatMap((i) => [Reg.isr + i * 16, Reg.tmr + i * 16, Reg.irr + i * 16]),
  Reg.esr,
  Reg.lvtTimer,
  Reg.lvtThermal,
  Reg.lvtPerformance,
  Reg.lvtLint0,
  Reg.lvtLint1,
  Reg.lvtError,
  Reg.initialCount,
  Reg.currentCount,
  Reg.divide,
]);
const X2APIC_WRITABLE: ReadonlySet<number> = new Set([
  Reg.tpr,
  Reg.eoi,
  Reg.svr,
  Reg.esr,
  Reg.lvtTimer,
  Reg.lvtThermal,
  Reg.lvtPerformance,
  Reg.lvtLint0,
  Reg.lvtLint1,
  Reg.lvtError,
  Reg.initialCount,
  Reg.divide,
  Reg.selfIpi,
]);
