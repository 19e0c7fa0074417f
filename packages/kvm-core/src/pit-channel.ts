/** One counter of the 8254. Source: Intel 8254 Programmable Interval Timer data sheet, Mode Definitions. */
import type { KvmPitChannelState, StructValue } from "@mkvm/kvm-abi";

type ChannelState = StructValue<(typeof KvmPitChannelState)["fields"]>;

export const PIT_HZ = 1_193_182;
/** How a count is read and written, and how far a two-byte access is. */
export const Access = { low: 1, high: 2, word: 3, wordHigh: 4 } as const;
/** Before the first control word. */
const NO_MODE = 0xff;

export interface PitChannel {
  readonly mode: number;
  /** Set where a timer stands for the counter: the next expiry and its period, monotonic ns. */
  nextTickNs: number | undefined;
  periodNs: number;
  /** Time from load to the end of the count, ns. */
  durationNs(): number;
  write(value: number): void;
  read(): number;
  writeControl(value: number): void;
  latchCount(): void;
  latchStatus(): void;
  /** 0 stands for 65536 (10000 in BCD). Starts the count. */
  load(count: number): void;
  setGate(level: boolean): void;
  /** OUT. */
  output(): boolean;
  getState(): ChannelState;
  setState(state: ChannelState): void;
  reset(): void;
}

const fromBcd = (value: number) => (value >> 12) * 1000 + ((value >> 8) & 15) * 100 + ((value >> 4) & 15) * 10 + (value & 15);
const toBcd = (value: number) =>
  ((Math.floor(value / 1000) % 10) << 12) |
  ((Math.floor(value / 100) % 10) << 8) |
  ((Math.floor(value / 10) % 10) << 4) |
  (value % 10);

/** `gate`: level of the gate input after a reset. `loaded` is called when a count was loaded. */
export function createPitChannel(gate: boolean, nowNs: () => number, loaded: () => void): PitChannel {
  let state: ChannelState = initial();
  function initial(): ChannelState {
    return {
      count: 0x10000,
      latched_count: 0,
      count_latched: 0,
      status_latched: 0,
      status: 0,
      read_state: 0,
      write_state: 0,
      write_latch: 0,
      rw_mode: 0,
      mode: NO_MODE,
      bcd: 0,
      gate: Number(gate),
      count_load_time: BigInt(nowNs()),
    };
  }

  /** Clocks since the count was loaded. */
  function elapsed(): number {
    const ns =
      channel.periodNs > 0 && channel.nextTickNs !== undefined
        ? channel.periodNs - (channel.nextTickNs - nowNs())
        : nowNs() - Number(state.count_load_time);
    return Math.max(0, Math.floor((ns / 1e9) * PIT_HZ));
  }
  function counter(): number {
    const d = elapsed();
    const { count } = state;
    let value: number;
    if (state.mode === 3) value = count - ((2 * d) % count);
    else if (state.mode === 2) value = count - (d % count);
    else value = (((count - d) % modulus()) + modulus()) % modulus();
    return state.bcd ? toBcd(value % 10000) : value & 0xffff;
  }
  const modulus = () => (state.bcd ? 10000 : 0x10000);
  function output(): boolean {
    const d = elapsed();
    const { count } = state;
    switch (state.mode) {
      case 1:
        return d >= count;
      case 2:
        return d % count !== count - 1;
      case 3:
        return d % count < (count + 1) >> 1;
      case 4:
      case 5:
        return d !== count;
      default:
        return d >= count;
    }
  }
  function load(count: number): void {
    state.count = count === 0 ? modulus() : count;
    state.count_load_time = BigInt(nowNs());
    loaded();
  }
  const loadRegister = (register: number) => load(state.bcd ? fromBcd(register) : register);

  const channel: PitChannel = {
    nextTickNs: undefined,
    periodNs: 0,
    get mode() {
      return state.mode;
    },
    durationNs: () => Math.floor((state.count * 1e9) / PIT_HZ),
    write(value) {
      switch (state.write_state) {
        case Access.low:
          loadRegister(value);
          break;
        case Access.high:
          loadRegister(value << 8);
          break;
        case Access.word:
          state.write_latch = value;
          state.write_state = Access.wordHigh;
          break;
        case Access.wordHigh:
          state.write_state = Access.word;
          loadRegister(state.write_latch | (value << 8));
          break;
        default: // no control word yet
      }
    },
    read() {
      if (state.status_latched) {
        state.status_latched = 0;
        return state.status;
      }
      if (state.count_latched) {
        const value = state.latched_count;
        if (state.count_latched === Access.word) {
          state.count_latched = Access.high;
          return value & 0xff;
        }
        const half = state.count_latched === Access.high ? value >> 8 : value & 0xff;
        state.count_latched = 0;
        return half;
      }
      const value = counter();
      switch (state.read_state) {
        case Access.high:
          return value >> 8;
        case Access.word:
          state.read_state = Access.wordHigh;
          return value & 0xff;
        case Access.wordHigh:
          state.read_state = Access.word;
          return value >> 8;
        default:
          return value & 0xff;
      }
    },
    writeControl(value) {
      const access = (value >> 4) & 3;
      if (access === 0) {
        channel.latchCount();
        return;
      }
      state.rw_mode = access;
      state.read_state = access;
      state.write_state = access;
      const mode = (value >> 1) & 7;
      state.mode = mode > 5 ? mode - 4 : mode;
      state.bcd = value & 1;
    },
    latchCount() {
      if (state.count_latched) return;
      state.latched_count = counter();
      state.count_latched = state.rw_mode;
    },
    latchStatus() {
      if (state.status_latched) return;
      state.status = (Number(output()) << 7) | (state.rw_mode << 4) | ((state.mode & 7) << 1) | state.bcd;
      state.status_latched = 1;
    },
    load,
    setGate(level) {
      const rising = level && !state.gate;
      state.gate = Number(level);
      // Modes 1, 2, 3 and 5 count anew; in modes 0 and 4 the gate only lets the count go on
      if (rising && state.mode !== 0 && state.mode !== 4) state.count_load_time = BigInt(nowNs());
    },
    output,
    getState: () => ({ ...state }),
    setState(next) {
      state = { ...next };
    },
    reset() {
      state = initial();
      channel.nextTickNs = undefined;
      channel.periodNs = 0;
    },
  };
  return channel;
}
