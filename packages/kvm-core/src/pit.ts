/** The 8254 timer of a PC, with port 0x61. Source: Intel 8254 Programmable Interval Timer data sheet. */
import {
  type Clock,
  type KvmPitState2,
  NO_DEADLINE,
  PitFlag,
  type StructInput,
  type StructValue,
  type VmPit,
} from "@mkvm/kvm-abi";
import { createPitChannel, type PitChannel } from "./pit-channel.ts";

export interface PitHost {
  readonly clock: Clock;
  /** Output of channel 0: IRQ line 0, source IrqSource.pit. Same result as Pic.setLine. */
  setIrq(level: boolean): number;
}

/** 8254 with three channels, and the speaker port. */
export interface Pit {
  /** True for 0x40 to 0x43, and 0x61 unless the VMM has the speaker (KVM_PIT_SPEAKER_DUMMY not set). */
  ownsPort(port: number): boolean;
  read(port: number): number;
  write(port: number, value: number): void;
  /** The guest ended IRQ 0 (PIC or IOAPIC pin 2 or 0). */
  acknowledged(): void;
  reinject: boolean;
  /** KVM_GET_PIT2, KVM_SET_PIT2; KVM_GET_PIT is the same without flags. */
  getState(): StructValue<(typeof KvmPitState2)["fields"]>;
  setState(state: StructInput<(typeof KvmPitState2)["fields"]>): void;
  /** Fixed part of section vm.pit. */
  save(): StructValue<(typeof VmPit)["fixed"]["fields"]>;
  restore(value: StructValue<(typeof VmPit)["fixed"]["fields"]>): void;
  reset(): void;
  dispose(): void;
}

const SPEAKER_PORT = 0x61;
const CONTROL_PORT = 0x43;
/** The refresh toggle of port 0x61 changes about every 16 us; BIOSes time short delays by it. */
const REFRESH_SHIFT_NS = 16384;
/** A guest that asks for less would only keep the host busy. */
const MIN_PERIOD_NS = 200_000;

/** Output of channel 0 is an edge on IRQ 0 for each expiry; ticks that the guest does not take are delivered later (`reinject`). */
export function createPit(host: PitHost, options: { speaker: boolean }): Pit {
  const now = () => host.clock.monotonicNs();
  const channels: PitChannel[] = [0, 1, 2].map((i) => createPitChannel(i !== 2, now, () => loaded(i)));
  const [timerChannel, , speakerChannel] = channels;
  const timer = host.clock.createTimer(fire);
  let hpetLegacy = false;
  let speakerData = 0;
  let reinject = true;
  /** The guest took the last tick. */
  let acknowledged = true;
  /** Ticks that are not taken yet, with the one that is under way. */
  let pendingTicks = 0;
  let nextTickNs: number | undefined;
  let periodNs = 0;

  function arm(at: number): void {
    nextTickNs = at;
    timerChannel.nextTickNs = at;
    timer.arm(at);
  }
  function disarm(): void {
    nextTickNs = undefined;
    timerChannel.nextTickNs = undefined;
    timer.cancel();
  }
  function loaded(channel: number): void {
    if (channel !== 0) return;
    pendingTicks = 0;
    acknowledged = true;
    const durationNs = timerChannel.durationNs();
    const periodic = timerChannel.mode === 2 || timerChannel.mode === 3;
    periodNs = periodic ? Math.max(durationNs, MIN_PERIOD_NS) : 0;
    timerChannel.periodNs = periodNs;
    // Modes 1 and 5 start by the gate, which is tied high here
    if (timerChannel.mode > 4 || timerChannel.mode === 1 || hpetLegacy) disarm();
    else arm(now() + (periodic ? periodNs : durationNs));
  }
  function tick(): void {
    if (reinject) {
      if (!acknowledged) return;
      acknowledged = false;
    }
    const taken = host.setIrq(true) >= 0;
    host.setIrq(false);
    // Nobody will acknowledge a masked tick; counting on, the guest would get a burst of them when it unmasks the line
    if (!taken) {
      acknowledged = true;
      pendingTicks = 0;
    }
  }
  function fire(): void {
    if (nextTickNs === undefined) return;
    let ticks = 1;
    if (periodNs > 0) {
      ticks += Math.max(0, Math.floor((now() - nextTickNs) / periodNs));
      arm(nextTickNs + ticks * periodNs);
    } else disarm();
    if (reinject) pendingTicks += ticks;
    tick();
  }

  function writeControl(value: number): void {
    const select = value >> 6;
    if (select < 3) {
      channels[select].writeControl(value);
      return;
    }
    for (let i = 0; i < 3; i++) {
      if (!(value & (2 << i))) continue;
      if (!(value & 0x20)) channels[i].latchCount();
      if (!(value & 0x10)) channels[i].latchStatus();
    }
  }
  const flags = () =>
    (hpetLegacy ? PitFlag.KVM_PIT_FLAGS_HPET_LEGACY : 0) | (speakerData ? PitFlag.KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
  function setFlags(value: number): void {
    hpetLegacy = (value & PitFlag.KVM_PIT_FLAGS_HPET_LEGACY) !== 0;
    speakerData = value & PitFlag.KVM_PIT_FLAGS_SPEAKER_DATA_ON ? 1 : 0;
  }
  function reset(): void {
    setFlags(0);
    disarm();
    pendingTicks = 0;
    acknowledged = true;
    periodNs = 0;
    for (const channel of channels) channel.reset();
  }
  reset();

  return {
    ownsPort: (port) => (port >= 0x40 && port <= CONTROL_PORT) || (port === SPEAKER_PORT && options.speaker),
    read(port) {
      if (port === SPEAKER_PORT) {
        const refresh = Math.floor(now() / REFRESH_SHIFT_NS) & 1;
        const { gate } = speakerChannel.getState();
        return (speakerData << 1) | gate | (Number(speakerChannel.output()) << 5) | (refresh << 4);
      }
      return port === CONTROL_PORT ? 0 : channels[port & 3].read();
    },
    write(port, value) {
      if (port === SPEAKER_PORT) {
        speakerData = (value >> 1) & 1;
        speakerChannel.setGate((value & 1) !== 0);
      } else if (port === CONTROL_PORT) writeControl(value & 0xff);
      else channels[port & 3].write(value & 0xff);
    },
    acknowledged() {
      acknowledged = true;
      if (pendingTicks === 0) return;
      pendingTicks--;
      if (pendingTicks > 0) tick();
    },
    get reinject() {
      return reinject;
    },
    set reinject(value) {
      reinject = value;
      pendingTicks = 0;
      acknowledged = true;
    },
    getState: () => ({ channels: channels.map((channel) => channel.getState()), flags: flags(), reserved: Array(9).fill(0) }),
    setState(state) {
      if (state.flags !== undefined) setFlags(state.flags);
      state.channels?.forEach((value, i) => {
        channels[i].setState(value);
        channels[i].load(value.count);
      });
    },
    save: () => ({
      channels: channels.map((channel) => channel.getState()),
      flags: flags(),
      speaker: (speakerData << 1) | speakerChannel.getState().gate,
      reinject: Number(reinject),
      irq_acknowledged: Number(acknowledged),
      pending_ticks: BigInt(pendingTicks),
      next_tick: nextTickNs === undefined ? NO_DEADLINE : BigInt(nextTickNs),
      period_ns: BigInt(periodNs),
    }),
    restore(value) {
      value.channels.forEach((state, i) => {
        channels[i].setState(state);
      });
      setFlags(value.flags);
      reinject = value.reinject !== 0;
      acknowledged = value.irq_acknowledged !== 0;
      pendingTicks = Number(value.pending_ticks);
      periodNs = Number(value.period_ns);
      timerChannel.periodNs = periodNs;
      if (value.next_tick === NO_DEADLINE) disarm();
      else arm(Number(value.next_tick));
    },
    reset,
    dispose: disarm,
  };
}
