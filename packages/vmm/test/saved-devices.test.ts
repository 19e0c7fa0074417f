import { describe, expect, test } from "vitest";
import { AcpiPower, PM1_EVENT_PORT } from "../src/devices/power.ts";
import { RealTimeClock, RTC_INDEX_PORT } from "../src/devices/real-time-clock.ts";
import { Serial16550 } from "../src/devices/serial-16550.ts";
import { readMachine, saveMachine } from "../src/saved-machine.ts";

const BASE = 0x3f8;

function serial(): { device: Serial16550; levels: boolean[]; sent: number[] } {
  const levels: boolean[] = [];
  const sent: number[] = [];
  const device = new Serial16550(BASE, { transmit: (byte) => sent.push(byte), interrupt: (level) => levels.push(level) });
  return { device, levels, sent };
}

describe("a device that was saved goes on as it was", () => {
  test("serial line: registers, FIFO, what waits for room in it, and the level of its interrupt", () => {
    const before = serial();
    before.device.write(BASE + 3, 1, 0x83); // divisor latch open
    before.device.write(BASE, 1, 0x0c);
    before.device.write(BASE + 1, 1, 0x01);
    before.device.write(BASE + 3, 1, 0x1b);
    before.device.write(BASE + 2, 1, 0x01); // FIFOs on
    before.device.write(BASE + 4, 1, 0x0b);
    before.device.write(BASE + 7, 1, 0x5a);
    before.device.write(BASE + 1, 1, 0x03);
    before.device.receive(Array.from({ length: 20 }, (_, index) => 0x41 + index));
    before.device.write(BASE, 1, 0x21);
    expect(before.levels.at(-1)).toBe(true);
    const after = serial();
    expect(after.device.restore([before.device.save()])).toBeUndefined();
    expect(after.levels, "KVM has been told of the level already").toEqual([]);
    expect(after.device.save()).toEqual(before.device.save());
    const look = ({ device }: ReturnType<typeof serial>): number[] => {
      const registers = [2, 3, 4, 5, 6, 7].map((register) => device.read(BASE + register, 1));
      const bytes = Array.from({ length: 22 }, () => device.read(BASE, 1));
      device.write(BASE + 3, 1, 0x80);
      return [...registers, ...bytes, device.read(BASE, 1), device.read(BASE + 1, 1)];
    };
    const seen = look(after);
    expect(seen).toEqual(look(before));
    expect(seen.slice(6, 26)).toEqual(Array.from({ length: 20 }, (_, index) => 0x41 + index));
    expect(after.levels).toEqual(before.levels.slice(before.levels.lastIndexOf(true) + 1));
  });

  test("serial line: an overrun in loopback, and an empty transmitter that is to be told", () => {
    const before = serial();
    before.device.write(BASE + 4, 1, 0x10);
    before.device.write(BASE, 1, 1);
    before.device.write(BASE, 1, 2);
    before.device.write(BASE + 1, 1, 0x02);
    const after = serial();
    expect(after.device.restore([before.device.save()])).toBeUndefined();
    expect(after.device.read(BASE + 5, 1) & 3).toBe(3);
    expect(after.device.read(BASE + 2, 1)).toBe(2);
    expect(after.device.read(BASE + 2, 1)).toBe(1);
  });

  test("real-time clock: its memory and its index, not the time of day", () => {
    const ram = { lowBytes: 64 << 20, highBytes: 0 };
    const clock = (seconds: number) => new RealTimeClock(() => BigInt(seconds) * 1_000_000_000n, ram);
    const before = clock(0);
    before.write(RTC_INDEX_PORT, 1, 0x40);
    before.write(RTC_INDEX_PORT + 1, 1, 0x77);
    const after = clock(42);
    expect(after.restore([before.save()])).toBeUndefined();
    expect(after.read(RTC_INDEX_PORT + 1)).toBe(0x77);
    after.write(RTC_INDEX_PORT, 1, 0);
    expect(after.read(RTC_INDEX_PORT + 1)).toBe(0x42);
  });

  test("power: which events are enabled", () => {
    const before = new AcpiPower(() => {});
    before.write(PM1_EVENT_PORT + 2, 2, 0x120);
    const after = new AcpiPower(() => {});
    expect(after.restore([before.save()])).toBeUndefined();
    expect(after.read(PM1_EVENT_PORT + 2)).toBe(0x120);
  });
});

test("the machine: descriptors, memory, ROM; a section that is missing or of a later version is named", () => {
  const machine = {
    memory: { address: 0x20_0000, bytes: 0x100_0000 },
    rom: { address: 0x8000, bytes: 0x4_0000 },
    systemFd: 3,
    vmFd: 4,
    vcpus: [
      { id: 0, fd: 5 },
      { id: 1, fd: 9 },
    ],
  };
  expect(readMachine([saveMachine(machine)])).toEqual(machine);
  expect(readMachine([saveMachine({ ...machine, rom: undefined })])).toEqual({ ...machine, rom: undefined });
  expect(readMachine([])).toBe("section vmm.machine[0] is missing");
  expect(readMachine([{ ...saveMachine(machine), version: 2 }])).toMatch(/vmm.machine\[0\] has version 2/);
  expect(serial().device.restore([])).toBe("section vmm.serial[0] is missing");
});
