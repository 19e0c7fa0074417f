import { type Section, sectionList, struct, u8, u32 } from "@mkvm/kvm-abi";
import type { PortDevice } from "./port-bus.ts";

/** Registers by offset from the base port, with the divisor latch closed. */
const DATA = 0,
  INTERRUPT_ENABLE = 1,
  INTERRUPT_ID = 2,
  LINE_CONTROL = 3,
  MODEM_CONTROL = 4,
  LINE_STATUS = 5,
  MODEM_STATUS = 6,
  SCRATCH = 7;

const IER_RECEIVED = 1,
  IER_TRANSMIT_EMPTY = 2;
const IIR_NONE = 1,
  IIR_TRANSMIT_EMPTY = 2,
  IIR_RECEIVED = 4,
  IIR_TIMEOUT = 0xc,
  IIR_FIFOS_ON = 0xc0;
const LCR_DIVISOR_LATCH = 0x80;
const MCR_OUT2 = 8,
  MCR_LOOPBACK = 0x10;
const LSR_DATA_READY = 1,
  LSR_OVERRUN = 2,
  LSR_TRANSMIT_EMPTY = 0x60;
/** Data carrier detect, data set ready, clear to send: a terminal is there. */
const MSR_CONNECTED = 0xb0;
const FIFO_BYTES = 16;

/** Entries: bytes that were received, first those in the FIFO, then those that wait for room in it. */
const SerialState = sectionList("vmm.serial", {
  version: 1,
  required: true,
  fixed: struct("vmm_serial", 40, {
    interrupt_enable: u32(0),
    line_control: u32(4),
    modem_control: u32(8),
    scratch: u32(12),
    divisor: u32(16),
    fifos_on: u32(20),
    overrun: u32(24),
    transmit_empty_pending: u32(28),
    level: u32(32), // of the interrupt line, which KVM has been told
    fifo_count: u32(36),
  }),
  entry: struct("vmm_serial_byte", 1, { value: u8(0) }),
});

export interface SerialLines {
  /** A byte left the transmitter. */
  transmit(byte: number): void;
  /** Level of the interrupt line. */
  interrupt(level: boolean): void;
}

/**
 * A 16550A UART. The transmitter is infinitely fast: a byte written has left at once, and the holding register is empty again.
 * Source: National Semiconductor PC16550D data sheet, Registers.
 */
export class Serial16550 implements PortDevice {
  readonly #lines: SerialLines;
  readonly #basePort: number;
  #enabled = 0;
  #lineControl = 0;
  #modemControl = 0;
  #scratch = 0;
  #divisor = 12;
  #fifosOn = false;
  #overrun = false;
  #transmitEmptyPending = false;
  #level = false;
  readonly #received: number[] = [];
  /** What arrived from outside and does not fit in the receiver yet. */
  readonly #waiting: number[] = [];

  constructor(basePort: number, lines: SerialLines) {
    this.#basePort = basePort;
    this.#lines = lines;
  }

  /** Section vmm.serial. */
  save(): Section {
    return SerialState.encode(
      0,
      {
        interrupt_enable: this.#enabled,
        line_control: this.#lineControl,
        modem_control: this.#modemControl,
        scratch: this.#scratch,
        divisor: this.#divisor,
        fifos_on: Number(this.#fifosOn),
        overrun: Number(this.#overrun),
        transmit_empty_pending: Number(this.#transmitEmptyPending),
        level: Number(this.#level),
        fifo_count: this.#received.length,
      },
      [...this.#received, ...this.#waiting].map((value) => ({ value })),
    );
  }
  /** A sentence: why not. The interrupt line is as it was, and not driven anew. */
  restore(sections: readonly Section[]): string | undefined {
    const state = SerialState.find(sections);
    if (typeof state === "string") return state;
    const { fixed, entries } = state;
    this.#enabled = fixed.interrupt_enable;
    this.#lineControl = fixed.line_control;
    this.#modemControl = fixed.modem_control;
    this.#scratch = fixed.scratch;
    this.#divisor = fixed.divisor;
    this.#fifosOn = fixed.fifos_on !== 0;
    this.#overrun = fixed.overrun !== 0;
    this.#transmitEmptyPending = fixed.transmit_empty_pending !== 0;
    this.#level = fixed.level !== 0;
    const bytes = entries.map(({ value }) => value);
    this.#received.splice(0, this.#received.length, ...bytes.slice(0, fixed.fifo_count));
    this.#waiting.splice(0, this.#waiting.length, ...bytes.slice(fixed.fifo_count));
    return undefined;
  }

  /** Bytes from the other end of the line; they enter the receiver as it has room. */
  receive(bytes: Iterable<number>): void {
    this.#waiting.push(...bytes);
    this.#refill();
    this.#update();
  }

  read(port: number, size: number): number {
    if (size !== 1) return size === 4 ? 0xffff_ffff : 0xffff;
    const register = port - this.#basePort;
    if (this.#lineControl & LCR_DIVISOR_LATCH && register <= INTERRUPT_ENABLE) {
      return register === DATA ? this.#divisor & 0xff : this.#divisor >> 8;
    }
    switch (register) {
      case DATA: {
        const byte = this.#received.shift() ?? 0;
        this.#refill();
        this.#update();
        return byte;
      }
      case INTERRUPT_ENABLE:
        return this.#enabled;
      case INTERRUPT_ID: {
        const id = this.#interruptId();
        if (id === IIR_TRANSMIT_EMPTY) this.#transmitEmptyPending = false;
        this.#update();
        return id | (this.#fifosOn ? IIR_FIFOS_ON : 0);
      }
      case LINE_CONTROL:
        return this.#lineControl;
      case MODEM_CONTROL:
        return this.#modemControl;
      case LINE_STATUS: {
        const status = LSR_TRANSMIT_EMPTY | (this.#received.length ? LSR_DATA_READY : 0) | (this.#overrun ? LSR_OVERRUN : 0);
        this.#overrun = false;
        return status;
      }
      case MODEM_STATUS:
        return this.#modemControl & MCR_LOOPBACK ? this.#loopedModemStatus() : MSR_CONNECTED;
      case SCRATCH:
        return this.#scratch;
      default:
        return 0xff;
    }
  }

  write(port: number, size: number, value: number): void {
    if (size !== 1) return;
    const register = port - this.#basePort;
    if (this.#lineControl & LCR_DIVISOR_LATCH && register <= INTERRUPT_ENABLE) {
      this.#divisor = register === DATA ? (this.#divisor & 0xff00) | value : (this.#divisor & 0xff) | (value << 8);
      return;
    }
    switch (register) {
      case DATA:
        if (this.#modemControl & MCR_LOOPBACK) this.#loopBack(value);
        else this.#lines.transmit(value);
        this.#transmitEmptyPending = true;
        break;
      case INTERRUPT_ENABLE:
        if (value & IER_TRANSMIT_EMPTY && !(this.#enabled & IER_TRANSMIT_EMPTY)) this.#transmitEmptyPending = true;
        this.#enabled = value & 0x0f;
        break;
      case INTERRUPT_ID: // FIFO control when written
        this.#fifosOn = (value & 1) !== 0;
        if (value & 2) this.#received.length = 0;
        this.#refill();
        break;
      case LINE_CONTROL:
        this.#lineControl = value;
        break;
      case MODEM_CONTROL:
        this.#modemControl = value & 0x1f;
        break;
      case SCRATCH:
        this.#scratch = value;
        break;
    }
    this.#update();
  }

  #capacity(): number {
    return this.#fifosOn ? FIFO_BYTES : 1;
  }

  #refill(): void {
    if (this.#modemControl & MCR_LOOPBACK) return;
    while (this.#received.length < this.#capacity() && this.#waiting.length) this.#received.push(this.#waiting.shift()!);
  }

  #loopBack(byte: number): void {
    if (this.#received.length < this.#capacity()) this.#received.push(byte);
    else this.#overrun = true;
  }

  /** In loopback the four modem outputs feed the four inputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD. */
  #loopedModemStatus(): number {
    const mcr = this.#modemControl;
    return ((mcr & 1) << 5) | ((mcr & 2) << 3) | ((mcr & 4) << 4) | ((mcr & 8) << 4);
  }

  #interruptId(): number {
    if (this.#enabled & IER_RECEIVED && this.#received.length) return this.#fifosOn ? IIR_TIMEOUT : IIR_RECEIVED;
    if (this.#enabled & IER_TRANSMIT_EMPTY && this.#transmitEmptyPending) return IIR_TRANSMIT_EMPTY;
    return IIR_NONE;
  }

  #update(): void {
    const level = this.#interruptId() !== IIR_NONE && (this.#modemControl & MCR_OUT2) !== 0;
    if (level === this.#level) return;
    this.#level = level;
    this.#lines.interrupt(level);
  }
}
