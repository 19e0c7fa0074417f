/** The I/O APIC. Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller data sheet. */
import { KVM_IOAPIC_NUM_PINS, type KvmIoapicState, type StructValue, type VmIrqchip } from "@mkvm/kvm-abi";
import { type InterruptMessage, Shorthand } from "./interrupt-message.ts";

export interface IoapicHost {
  /** To the local APICs; as DeliverInterrupt. */
  deliver(message: InterruptMessage): number;
  /** The guest ended the interrupt of this pin. */
  acknowledged(pin: number): void;
}

export type IoapicSaved = Pick<
  StructValue<(typeof VmIrqchip)["fixed"]["fields"]>,
  | "ioapic_base_address"
  | "ioapic_ioregsel"
  | "ioapic_id"
  | "ioapic_irr"
  | "ioapic_irr_delivered"
  | "ioapic_redirtbl"
  | "ioapic_lines"
>;

/** 82093AA with 24 pins at 0xfec00000. */
export interface Ioapic {
  readonly baseAddress: number;
  /** Sets pin 0 to 23 for one source (IrqSource bit). As Pic.setLine. */
  setLine(pin: number, source: number, level: boolean): number;
  /** Offset in the register page, `length` 1, 2, 4, 8. */
  mmioRead(offset: number, length: number): Uint8Array;
  mmioWrite(offset: number, data: Uint8Array): void;
  /** EOI broadcast by a local APIC, see LapicHost.broadcastEoi. */
  endOfInterrupt(vector: number, levelTriggered: boolean): void;
  /** True when a pin delivers this vector: the vectors whose EOI matters. */
  handlesVector(vector: number): boolean;
  /** Changes whenever redirection entries do. */
  readonly generation: number;
  /** Sets the bits, of 256, of the vectors that `endOfInterrupt` has to be told of. */
  markVectors(bits: Uint32Array): void;
  getState(): StructValue<(typeof KvmIoapicState)["fields"]>;
  setState(state: StructValue<(typeof KvmIoapicState)["fields"]>): void;
  /** All of the state, as section vm.irqchip has it; `restore` delivers nothing. */
  save(): IoapicSaved;
  restore(saved: IoapicSaved): void;
  /** Which sources drive each pin, 24 numbers. */
  readonly lines: Uint32Array;
  reset(): void;
}

const BASE_ADDRESS = 0xfec0_0000;
const VERSION = 0x11 | ((KVM_IOAPIC_NUM_PINS - 1) << 16);
const Register = { select: 0x00, window: 0x10 } as const;
/** Bits in the low half of a redirection entry. */
const Entry = { logical: 1 << 11, deliveryStatus: 1 << 12, remoteIrr: 1 << 14, level: 1 << 15, masked: 1 << 16 } as const;
const READ_ONLY = Entry.deliveryStatus | Entry.remoteIrr;

export function createIoapic(host: IoapicHost): Ioapic {
  const low = new Uint32Array(KVM_IOAPIC_NUM_PINS);
  const high = new Uint32Array(KVM_IOAPIC_NUM_PINS);
  const lines = new Uint32Array(KVM_IOAPIC_NUM_PINS);
  let select = 0;
  let id = 0;
  let baseAddress = BASE_ADDRESS;
  /** Pins that ask for service. */
  let irr = 0;
  /** Edges in `irr` that were delivered: the bit stays while the line is high. */
  let irrDelivered = 0;
  let generation = 0;

  /** Sends the pin's interrupt, if it may. -1: masked, or the last one is not ended. */
  function service(pin: number): number {
    const entry = low[pin];
    const level = (entry & Entry.level) !== 0;
    if (entry & Entry.masked || (level && entry & Entry.remoteIrr)) return -1;
    if (!level) irrDelivered |= 1 << pin;
    const result = host.deliver({
      vector: entry & 0xff,
      deliveryMode: (entry >> 8) & 7,
      logical: (entry & Entry.logical) !== 0,
      levelTriggered: level,
      asserted: true,
      destination: high[pin] >>> 24,
      shorthand: Shorthand.none,
    });
    if (level && result >= 0) low[pin] |= Entry.remoteIrr;
    return result;
  }
  function setInput(pin: number, level: boolean): number {
    const mask = 1 << pin;
    if (!level) {
      irr &= ~mask;
      irrDelivered &= ~mask;
      return 1;
    }
    const before = irr;
    irr |= mask;
    if (!(low[pin] & Entry.level)) {
      if (before & mask) return 0;
      irrDelivered &= ~mask;
    }
    return service(pin);
  }
  function writeIndirect(value: number): void {
    if (select === 0) {
      id = (value >>> 24) & 0xf;
      return;
    }
    const pin = (select - 0x10) >> 1;
    if (select < 0x10 || pin >= KVM_IOAPIC_NUM_PINS) return;
    generation++;
    if (select & 1) high[pin] = value;
    else {
      low[pin] = (value & ~READ_ONLY) | (low[pin] & READ_ONLY);
      // Linux switches an entry to edge and back to clear a stuck remote IRR
      if (!(low[pin] & Entry.level)) low[pin] &= ~Entry.remoteIrr;
    }
    if (low[pin] & Entry.level && irr & (1 << pin)) service(pin);
  }
  function readIndirect(): number {
    if (select === 0 || select === 2) return id << 24;
    if (select === 1) return VERSION;
    const pin = (select - 0x10) >> 1;
    if (select < 0x10 || pin >= KVM_IOAPIC_NUM_PINS) return 0;
    return select & 1 ? high[pin] : low[pin];
  }
  const redirtbl = () => Array.from(low, (bits, pin) => (BigInt(high[pin]) << 32n) | BigInt(bits));
  function setRedirtbl(entries: readonly bigint[]): void {
    generation++;
    entries.forEach((entry, pin) => {
      low[pin] = Number(entry & 0xffff_ffffn);
      high[pin] = Number(entry >> 32n);
    });
  }
  function reset(): void {
    generation++;
    low.fill(Entry.masked);
    high.fill(0);
    lines.fill(0);
    select = 0;
    id = 0;
    irr = 0;
    irrDelivered = 0;
    baseAddress = BASE_ADDRESS;
  }
  reset();

  return {
    lines,
    get baseAddress() {
      return baseAddress;
    },
    setLine(pin, source, level) {
      lines[pin] = level ? lines[pin] | source : lines[pin] & ~source;
      return setInput(pin, lines[pin] !== 0);
    },
    mmioRead(offset, length) {
      const out = new Uint8Array(length);
      const register = offset & 0xff;
      const value = register === Register.select ? select : register === Register.window ? readIndirect() : 0;
      for (let i = 0; i < Math.min(length, 4); i++) out[i] = (value >>> (8 * i)) & 0xff;
      return out;
    },
    mmioWrite(offset, data) {
      let value = 0;
      for (let i = 0; i < Math.min(data.length, 4); i++) value |= data[i] << (8 * i);
      const register = offset & 0xff;
      if (register === Register.select) select = value & 0xff;
      else if (register === Register.window) writeIndirect(value >>> 0);
    },
    endOfInterrupt(vector, levelTriggered) {
      for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        if ((low[pin] & 0xff) !== vector) continue;
        host.acknowledged(pin); // may lower the line
        if (!levelTriggered || !(low[pin] & Entry.level)) continue;
        low[pin] &= ~Entry.remoteIrr;
        if (irr & (1 << pin)) service(pin);
      }
    },
    handlesVector(vector) {
      return low.some((entry) => !(entry & Entry.masked) && (entry & 0xff) === vector);
    },
    get generation() {
      return generation;
    },
    markVectors(bits) {
      // Those of masked pins too, whose last interrupt may still be in service
      for (const entry of low) bits[(entry & 0xff) >>> 5] |= 1 << (entry & 31);
    },
    getState: () => ({
      base_address: BigInt(baseAddress),
      ioregsel: select,
      id,
      irr: (irr & ~irrDelivered) >>> 0,
      pad: 0,
      redirtbl: redirtbl(),
    }),
    setState(state) {
      baseAddress = Number(state.base_address);
      select = state.ioregsel & 0xff;
      id = state.id & 0xf;
      setRedirtbl(state.redirtbl);
      irr = 0;
      irrDelivered = 0;
      for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) if (state.irr & (1 << pin)) setInput(pin, true);
    },
    save: () => ({
      ioapic_base_address: BigInt(baseAddress),
      ioapic_ioregsel: select,
      ioapic_id: id,
      ioapic_irr: irr >>> 0,
      ioapic_irr_delivered: irrDelivered >>> 0,
      ioapic_redirtbl: redirtbl(),
      ioapic_lines: [...lines],
    }),
    restore(saved) {
      baseAddress = Number(saved.ioapic_base_address);
      select = saved.ioapic_ioregsel;
      id = saved.ioapic_id;
      irr = saved.ioapic_irr;
      irrDelivered = saved.ioapic_irr_delivered;
      setRedirtbl(saved.ioapic_redirtbl);
      lines.set(saved.ioapic_lines);
    },
    reset,
  };
}
