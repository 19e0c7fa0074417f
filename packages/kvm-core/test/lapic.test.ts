import { LapicEvent } from "@mkvm/kvm-abi";
import { describe, expect, it } from "vitest";
import { DeliveryMode, deliverInterrupt, type InterruptMessage, Shorthand } from "../src/interrupt-message.ts";
import { createLapic, type Lapic } from "../src/lapic.ts";
import { ApicRegister as Reg } from "../src/lapic-registers.ts";
import { fakeClock } from "./fake-clock.ts";

const TSC_KHZ = 2_000_000;

function machine(cpus = 1) {
  const clock = fakeClock(0);
  const log: string[] = [];
  const guestTsc = () => BigInt(Math.floor((clock.monotonicNs() * TSC_KHZ) / 1e6));
  const lapics: Lapic[] = Array.from({ length: cpus }, (_, id) =>
    createLapic(
      id,
      { bootCpu: id === 0 },
      {
        clock,
        guestTsc,
        guestTscKhz: () => TSC_KHZ,
        kick: () => log.push(`kick ${id}`),
        nmi: () => log.push(`nmi ${id}`),
        send: (message, source) => log.push(`sent ${deliverInterrupt(lapics, message, source)}`),
        broadcastEoi: (vector, level) => log.push(`eoi ${vector} ${level ? "level" : "edge"}`),
      },
    ),
  );
  for (const lapic of lapics) write(lapic, Reg.svr, 0x1ff);
  log.length = 0;
  return { clock, log, lapics, lapic: lapics[0], guestTsc };
}
function write(lapic: Lapic, register: number, value: number): void {
  lapic.mmioWrite(register, new Uint8Array(Uint32Array.of(value).buffer));
}
function read(lapic: Lapic, register: number): number {
  return new Uint32Array(lapic.mmioRead(register, 4).buffer)[0];
}
const fixed = (vector: number, more: Partial<InterruptMessage> = {}): InterruptMessage => ({
  vector,
  deliveryMode: DeliveryMode.fixed,
  destination: 0,
  logical: false,
  levelTriggered: false,
  asserted: true,
  shorthand: Shorthand.none,
  ...more,
});

describe("registers", () => {
  it("are as after reset", () => {
    const { lapics } = machine(2);
    lapics[1].reset("power-on");
    expect(read(lapics[1], Reg.id)).toBe(0x0100_0000);
    expect(read(lapics[1], Reg.version)).toBe(0x5_0014);
    expect(read(lapics[1], Reg.svr)).toBe(0xff);
    expect(read(lapics[1], Reg.dfr)).toBe(0xffff_ffff);
    expect(read(lapics[1], Reg.lvtLint0)).toBe(0x1_0000);
    expect(lapics.map((lapic) => lapic.apicBase)).toEqual([0xfee0_0900n, 0xfee0_0800n]);
    expect(lapics.map((lapic) => lapic.acceptsPicInterrupts())).toEqual([true, false]);
  });
  it("keep the bits that exist", () => {
    const { lapic } = machine();
    write(lapic, Reg.lvtTimer, 0xffff_ffff);
    expect(read(lapic, Reg.lvtTimer)).toBe(0x7_00ff);
    write(lapic, Reg.lvtLint1, 0xffff_ffff);
    expect(read(lapic, Reg.lvtLint1)).toBe(0x1_a7ff);
    write(lapic, Reg.ldr, 0x1234_5678);
    expect(read(lapic, Reg.ldr)).toBe(0x1200_0000);
    write(lapic, Reg.dfr, 0);
    expect(read(lapic, Reg.dfr)).toBe(0x0fff_ffff);
    write(lapic, Reg.version, 0);
    expect(read(lapic, Reg.version)).toBe(0x5_0014);
    lapic.mmioWrite(Reg.tpr, Uint8Array.of(0x40));
    expect(read(lapic, Reg.tpr)).toBe(0);
    expect([...lapic.mmioRead(Reg.version + 2, 2)]).toEqual([5, 0]);
    expect([...lapic.mmioRead(Reg.version + 4, 4)]).toEqual([0, 0, 0, 0]);
  });
  it("mask all local interrupts while the APIC is off by SVR, and refuse interrupts then", () => {
    const { lapic, lapics } = machine();
    write(lapic, Reg.lvtTimer, 0x30);
    write(lapic, Reg.svr, 0xff);
    expect(read(lapic, Reg.lvtTimer)).toBe(0x1_0030);
    write(lapic, Reg.lvtTimer, 0x30);
    expect(read(lapic, Reg.lvtTimer)).toBe(0x1_0030);
    expect(deliverInterrupt(lapics, fixed(0x40))).toBe(-1);
  });
});

describe("priorities", () => {
  it("deliver the highest vector above the processor priority", () => {
    const { lapic, log } = machine();
    lapic.accept(fixed(0x31));
    lapic.accept(fixed(0x52));
    expect(lapic.pendingVector()).toBe(0x52);
    expect(lapic.acknowledge()).toBe(0x52);
    expect(lapic.processorPriority).toBe(0x50);
    expect(lapic.pendingVector()).toBe(-1);
    lapic.accept(fixed(0x5f));
    expect(lapic.pendingVector()).toBe(-1);
    lapic.accept(fixed(0x60));
    expect(lapic.acknowledge()).toBe(0x60);
    write(lapic, Reg.eoi, 0);
    write(lapic, Reg.eoi, 0);
    expect(lapic.acknowledge()).toBe(0x5f);
    write(lapic, Reg.eoi, 0);
    expect(lapic.acknowledge()).toBe(0x31);
    expect(log).toContain("eoi 96 edge");
  });
  it("obey the task priority, by TPR and by CR8", () => {
    const { lapic } = machine();
    lapic.accept(fixed(0x61));
    lapic.setCr8(6);
    expect(read(lapic, Reg.tpr)).toBe(0x60);
    expect(lapic.pendingVector()).toBe(-1);
    expect(lapic.highestRequest()).toBe(0x61);
    write(lapic, Reg.tpr, 0x5f);
    expect(lapic.cr8).toBe(5);
    expect(read(lapic, Reg.ppr)).toBe(0x5f);
    expect(lapic.acknowledge()).toBe(0x61);
  });
  it("keep one pending interrupt a vector, and its trigger mode", () => {
    const { lapic, log } = machine();
    expect(lapic.accept(fixed(0x40, { levelTriggered: true }))).toBe(true);
    expect(lapic.accept(fixed(0x40, { levelTriggered: true }))).toBe(false);
    expect(log).toEqual(["kick 0"]);
    lapic.acknowledge();
    lapic.endOfInterrupt();
    expect(log).toContain("eoi 64 level");
    lapic.endOfInterrupt();
    expect(log.filter((line) => line.startsWith("eoi"))).toHaveLength(1);
  });
  it("report vectors that are none", () => {
    const { lapic } = machine();
    write(lapic, Reg.lvtError, 0xfe);
    lapic.accept(fixed(5));
    expect(lapic.acknowledge()).toBe(0xfe);
    expect(read(lapic, Reg.esr)).toBe(0x40);
    write(lapic, Reg.esr, 0);
    expect(read(lapic, Reg.esr)).toBe(0);
  });
});

describe("the bus", () => {
  const takers = (lapics: Lapic[], message: InterruptMessage, source?: Lapic) => {
    deliverInterrupt(lapics, message, source);
    return lapics.filter((lapic) => lapic.acknowledge() >= 0).map(({ id }) => id);
  };
  it("names APICs by id, by logical id in both models, and all of them", () => {
    const { lapics } = machine(4);
    lapics.forEach((lapic, i) => {
      write(lapic, Reg.ldr, (1 << i) << 24);
    });
    expect(takers(lapics, fixed(0x40, { destination: 2 }))).toEqual([2]);
    expect(takers(lapics, fixed(0x50, { destination: 0xff }))).toEqual([0, 1, 2, 3]);
    expect(takers(lapics, fixed(0x60, { destination: 0b1010, logical: true }))).toEqual([1, 3]);
    lapics.forEach((lapic, i) => {
      write(lapic, Reg.dfr, 0);
      write(lapic, Reg.ldr, (((i >> 1) << 4) | (1 << (i & 1))) << 24);
    });
    expect(takers(lapics, fixed(0x70, { destination: 0x13, logical: true }))).toEqual([2, 3]);
    expect(deliverInterrupt(lapics, fixed(0x40, { destination: 9 }))).toBe(-1);
  });
  it("uses shorthands from the sender", () => {
    const { lapics } = machine(3);
    expect(takers(lapics, fixed(0x40, { shorthand: Shorthand.self }), lapics[1])).toEqual([1]);
    expect(takers(lapics, fixed(0x50, { shorthand: Shorthand.allIncludingSelf }), lapics[1])).toEqual([0, 1, 2]);
    expect(takers(lapics, fixed(0x60, { shorthand: Shorthand.allExcludingSelf }), lapics[1])).toEqual([0, 2]);
  });
  it("gives a lowest-priority interrupt to one: the least busy", () => {
    const { lapics } = machine(3);
    lapics[0].setCr8(5);
    lapics[2].setCr8(2);
    lapics[1].setCr8(3);
    const message = fixed(0x80, { deliveryMode: DeliveryMode.lowestPriority, destination: 0xff });
    expect(takers(lapics, message)).toEqual([2]);
  });
  it("carries what the ICR says: NMI, INIT, SIPI, fixed", () => {
    const { lapics, log } = machine(2);
    write(lapics[0], Reg.icrHigh, 1 << 24);
    write(lapics[0], Reg.icrLow, 0x4041);
    expect(lapics[1].acknowledge()).toBe(0x41);
    write(lapics[0], Reg.icrLow, 0x4400);
    expect(log).toContain("nmi 1");
    write(lapics[0], Reg.icrLow, 0xc500);
    expect(lapics[1].pendingEvents).toBe(LapicEvent.init);
    write(lapics[0], Reg.icrLow, 0x8500); // de-assert
    write(lapics[0], Reg.icrLow, 0x4607);
    expect(lapics[1].pendingEvents).toBe(LapicEvent.init | LapicEvent.sipi);
    expect(lapics[1].sipiVector).toBe(7);
    lapics[1].clearEvents(LapicEvent.init);
    expect(lapics[1].pendingEvents).toBe(LapicEvent.sipi);
    expect(read(lapics[0], Reg.icrLow)).toBe(0x4607);
  });
  it("takes no interrupts for an APIC that is off in IA32_APIC_BASE", () => {
    const { lapics } = machine(2);
    lapics[1].setApicBase(0xfee0_0000n);
    expect(deliverInterrupt(lapics, fixed(0x40, { destination: 1 }))).toBe(-1);
    expect([...lapics[1].mmioRead(Reg.id, 4)]).toEqual([0xff, 0xff, 0xff, 0xff]);
    expect(lapics[1].acceptsPicInterrupts()).toBe(true);
  });
});

describe("local interrupts", () => {
  it("come through LINT0 and LINT1 as programmed", () => {
    const { lapic, log } = machine();
    write(lapic, Reg.lvtLint1, 0x400);
    lapic.localInterrupt(1);
    expect(log).toEqual(["nmi 0"]);
    write(lapic, Reg.lvtLint0, 0x45);
    lapic.localInterrupt(0);
    expect(lapic.acknowledge()).toBe(0x45);
    expect(lapic.acceptsPicInterrupts()).toBe(false);
    write(lapic, Reg.lvtLint0, 0x700);
    expect(lapic.acceptsPicInterrupts()).toBe(true);
    write(lapic, Reg.lvtLint0, 0x1_0700);
    expect(lapic.acceptsPicInterrupts()).toBe(false);
  });
});

describe("timer", () => {
  it("expires once, and counts down meanwhile", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x30);
    write(lapic, Reg.divide, 0xb); // by 1
    write(lapic, Reg.initialCount, 1_000_000);
    clock.advance(400_000);
    expect(read(lapic, Reg.currentCount)).toBe(600_000);
    clock.advance(599_999);
    expect(lapic.pendingVector()).toBe(-1);
    clock.advance(1);
    expect(lapic.acknowledge()).toBe(0x30);
    expect(read(lapic, Reg.currentCount)).toBe(0);
    lapic.endOfInterrupt();
    clock.advance(1e9);
    expect(lapic.pendingVector()).toBe(-1);
    expect(clock.armed).toBe(0);
  });
  it("divides by what the register says", () => {
    for (const [register, divide] of [
      [0, 2],
      [1, 4],
      [2, 8],
      [3, 16],
      [8, 32],
      [9, 64],
      [10, 128],
      [11, 1],
    ]) {
      const { lapic, clock } = machine();
      write(lapic, Reg.lvtTimer, 0x30);
      write(lapic, Reg.divide, register);
      write(lapic, Reg.initialCount, 1000);
      clock.advance(1000 * divide - 1);
      expect(lapic.pendingVector()).toBe(-1);
      clock.advance(1);
      expect(lapic.pendingVector()).toBe(0x30);
    }
  });
  it("is periodic, and one interrupt stands for ticks that were missed", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x2_0030);
    write(lapic, Reg.divide, 0xb);
    write(lapic, Reg.initialCount, 1_000_000);
    for (let i = 0; i < 3; i++) {
      clock.advance(1_000_000);
      expect(lapic.acknowledge()).toBe(0x30);
      lapic.endOfInterrupt();
    }
    clock.advance(10_000_000);
    expect(lapic.acknowledge()).toBe(0x30);
    lapic.endOfInterrupt();
    expect(lapic.pendingVector()).toBe(-1);
    write(lapic, Reg.initialCount, 0);
    expect(clock.armed).toBe(0);
  });
  it("in TSC-deadline mode fires when the guest's TSC is there, also when that is past", () => {
    const { lapic, clock, guestTsc } = machine();
    lapic.setTscDeadline(100n);
    expect(lapic.tscDeadline).toBe(0n); // not in that mode
    write(lapic, Reg.lvtTimer, 0x4_0031);
    write(lapic, Reg.initialCount, 1000);
    expect(read(lapic, Reg.initialCount)).toBe(0);
    const deadline = guestTsc() + 2_000_001n;
    lapic.setTscDeadline(deadline);
    expect(lapic.tscDeadline).toBe(deadline);
    clock.advance(1_000_000);
    expect(lapic.pendingVector()).toBe(-1);
    clock.advance(1);
    expect(lapic.acknowledge()).toBe(0x31);
    expect(lapic.tscDeadline).toBe(0n);
    lapic.endOfInterrupt();
    lapic.setTscDeadline(1n);
    clock.advance(0);
    expect(lapic.acknowledge()).toBe(0x31);
  });
  it("is disarmed by leaving TSC-deadline mode and by a deadline of 0", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x4_0031);
    lapic.setTscDeadline(1_000_000n);
    lapic.setTscDeadline(0n);
    expect(clock.armed).toBe(0);
    lapic.setTscDeadline(1_000_000n);
    write(lapic, Reg.lvtTimer, 0x31);
    expect(clock.armed).toBe(0);
  });
  it("takes a TSC deadline that never comes, and saves it", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x4_0031);
    lapic.setTscDeadline(0xffff_ffff_ffff_ffffn);
    expect(lapic.save().deadline).toBe(BigInt(Number.MAX_SAFE_INTEGER));
    clock.advance(1e15);
    expect(lapic.pendingVector()).toBe(-1);
    expect(lapic.tscDeadline).toBe(0xffff_ffff_ffff_ffffn);
  });
  it("keeps whole nanoseconds whatever the divider", () => {
    const { lapic } = machine();
    write(lapic, Reg.lvtTimer, 0x2_0030);
    write(lapic, Reg.divide, 10);
    write(lapic, Reg.initialCount, 1001);
    for (const register of [0xb, 3, 8]) {
      write(lapic, Reg.divide, register);
      expect(() => lapic.save()).not.toThrow();
    }
  });
  it("runs while masked, without an interrupt", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x1_0030);
    write(lapic, Reg.initialCount, 1000);
    clock.advance(1e6);
    expect(lapic.highestRequest()).toBe(-1);
  });
  it("goes on with what is left when the divider changes", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x30);
    write(lapic, Reg.divide, 0xb);
    write(lapic, Reg.initialCount, 1000);
    clock.advance(500);
    write(lapic, Reg.divide, 0);
    clock.advance(999);
    expect(lapic.pendingVector()).toBe(-1);
    clock.advance(1);
    expect(lapic.pendingVector()).toBe(0x30);
  });
});

describe("x2APIC", () => {
  const X2APIC = 0xfee0_0c00n;
  it("is entered from xAPIC mode only, and left to disabled only", () => {
    const { lapic } = machine();
    expect(lapic.setApicBase(0xfee0_0400n)).toBe(false);
    expect(lapic.setApicBase(0xfee0_0801n)).toBe(false);
    expect(lapic.setApicBase(X2APIC)).toBe(true);
    expect(lapic.setApicBase(0xfee0_0800n)).toBe(false);
    expect(lapic.setApicBase(0xfee0_0000n)).toBe(true);
    expect(lapic.setApicBase(X2APIC)).toBe(false);
    expect(lapic.setApicBase(X2APIC, true)).toBe(true);
    lapic.setFeatures({ x2apic: false, tscDeadline: true });
    lapic.setApicBase(0xfee0_0000n);
    lapic.setApicBase(0xfee0_0800n);
    expect(lapic.setApicBase(X2APIC)).toBe(false);
  });
  it("has its registers as MSRs, with their own rules", () => {
    const { lapics, log } = machine(20);
    const lapic = lapics[17];
    expect(lapic.msrRead(0x802)).toBeUndefined();
    for (const each of lapics) each.setApicBase(X2APIC);
    expect(lapic.msrRead(0x802)).toBe(17n);
    expect(lapic.msrRead(0x80d)).toBe(0x1_0002n);
    expect(lapic.msrWrite(0x802, 1n)).toBe(false);
    expect(lapic.msrWrite(0x80e, 0n)).toBe(false);
    expect(lapic.msrRead(0x831)).toBeUndefined();
    expect(lapic.msrWrite(0x80b, 1n)).toBe(false);
    expect(lapic.msrWrite(0x80b, 0n)).toBe(true);
    expect(lapic.msrWrite(0x808, 0x100n)).toBe(false);
    expect(lapic.msrWrite(0x808, 1n << 32n)).toBe(false);
    expect(lapic.msrWrite(0x830, (3n << 32n) | 0x4055n)).toBe(true);
    expect(lapic.msrRead(0x830)).toBe((3n << 32n) | 0x4055n);
    expect(lapics[3].acknowledge()).toBe(0x55);
    expect(lapic.msrWrite(0x830, (0x1_0003n << 32n) | 0x4856n)).toBe(true); // logical: 16 and 17
    expect(lapics.filter((each) => each.acknowledge() === 0x56).map(({ id }) => id)).toEqual([16, 17]);
    expect(lapic.msrWrite(0x83f, 0x67n)).toBe(true);
    expect(lapic.acknowledge()).toBe(0x67);
    expect(lapic.msrRead(0x83f)).toBeUndefined();
    expect(deliverInterrupt(lapics, fixed(0x60, { destination: 0xff }))).toBe(20); // a device's broadcast
    expect(log).toContain("sent 1");
    expect([...lapic.mmioRead(Reg.id, 4)]).toEqual([0xff, 0xff, 0xff, 0xff]);
  });
});

describe("state", () => {
  it("comes back the same, with the timer at the same time", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x2_0030);
    write(lapic, Reg.divide, 3);
    write(lapic, Reg.initialCount, 100_000);
    lapic.setCr8(1);
    lapic.accept(fixed(0x41, { levelTriggered: true }));
    lapic.accept(fixed(0x82));
    lapic.acknowledge();
    lapic.accept(fixed(0, { deliveryMode: DeliveryMode.init }));
    clock.advance(700_001);
    const saved = lapic.save();
    const other = machine();
    other.clock.advance(700_001);
    other.lapic.restore(saved);
    expect(other.lapic.save()).toEqual(saved);
    for (const each of [
      { lapic, clock },
      { lapic: other.lapic, clock: other.clock },
    ]) {
      each.lapic.endOfInterrupt();
      each.lapic.acknowledge();
      each.lapic.endOfInterrupt();
      each.clock.advance(899_998);
      expect(each.lapic.pendingVector()).toBe(-1);
      each.clock.advance(1);
      expect(each.lapic.acknowledge()).toBe(0x30);
    }
  });
  it("in x2APIC mode with a TSC deadline comes back the same", () => {
    const { lapic } = machine();
    lapic.setApicBase(0xfee0_0d00n);
    lapic.msrWrite(0x832, 0x4_0031n);
    lapic.setTscDeadline(12_345_677n);
    const saved = lapic.save();
    const other = machine();
    other.lapic.restore(saved);
    expect(other.lapic.save()).toEqual(saved);
    other.clock.advance(10_000_000);
    expect(other.lapic.acknowledge()).toBe(0x31);
  });
  it("goes through KVM_GET_LAPIC and KVM_SET_LAPIC with the count that is left", () => {
    const { lapic, clock } = machine();
    write(lapic, Reg.lvtTimer, 0x30);
    write(lapic, Reg.divide, 0xb);
    write(lapic, Reg.initialCount, 1_000_000);
    clock.advance(250_000);
    const state = lapic.getState();
    const other = machine();
    other.lapic.setState(state);
    expect(other.lapic.getState()).toEqual(state);
    other.clock.advance(749_999);
    expect(other.lapic.pendingVector()).toBe(-1);
    other.clock.advance(1);
    expect(other.lapic.pendingVector()).toBe(0x30);
    clock.advance(1e9);
    other.lapic.setState(lapic.getState());
    expect(other.clock.armed).toBe(0);
    other.lapic.dispose();
  });
  it("after INIT keeps the base and what is pending, after power-on nothing", () => {
    const { lapic, clock } = machine();
    lapic.setApicBase(0xfee0_1900n);
    lapic.accept(fixed(0x41));
    write(lapic, Reg.initialCount, 1000);
    lapic.reset("init");
    expect(lapic.apicBase).toBe(0xfee0_1900n);
    expect(lapic.pageAddress).toBe(0xfee0_1000);
    expect(lapic.highestRequest()).toBe(-1);
    expect(clock.armed).toBe(0);
    lapic.reset("power-on");
    expect(lapic.apicBase).toBe(0xfee0_0900n);
  });
});
