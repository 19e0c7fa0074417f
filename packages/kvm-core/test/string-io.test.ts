import { describe, expect, it } from "vitest";
import { type StringIo, stringIoCount, stringIoFinished, stringIoIn, stringIoOut } from "../src/string-io.ts";
import { emulatedMachine, MMIO } from "./emulated-machine.ts";

const [RCX, RSI, RDI] = [1, 6, 7];
const io = (more: Partial<StringIo> = {}): StringIo => ({
  isIn: false,
  rep: true,
  size: 2,
  addressSize: 8,
  segment: 3,
  ...more,
});

describe("string I/O", () => {
  it("counts items up to the page's end, the limit, and RCX", () => {
    const { cpu, gprs } = emulatedMachine();
    gprs[RSI] = 0x3ff8n;
    gprs[RCX] = 100n;
    expect(stringIoCount(cpu, io(), 4096)).toBe(4);
    gprs[RSI] = 0x3000n;
    expect(stringIoCount(cpu, io(), 64)).toBe(32);
    gprs[RCX] = 3n;
    expect(stringIoCount(cpu, io(), 4096)).toBe(3);
    gprs[RSI] = 0x3fffn; // an item over the end
    expect(stringIoCount(cpu, io(), 4096)).toBe(1);
    gprs[RCX] = 0x1_0000_0000n;
    expect(stringIoCount(cpu, io({ addressSize: 4 }), 4096)).toBe(0);
    expect(stringIoCount(cpu, io({ rep: false }), 4096)).toBe(1);
    gprs[RCX] = 9n;
    cpu.rflags |= 0x400n;
    expect(stringIoCount(cpu, io(), 4096)).toBe(1);
  });
  it("reads for OUTS over a page's end, and moves the registers", () => {
    const { cpu, gprs, ram } = emulatedMachine();
    gprs[RSI] = 0x3fffn;
    gprs[RCX] = 2n;
    ram.set([0x11, 0x22], 0x3fff);
    expect(stringIoOut(cpu, io(), 1)).toEqual(Uint8Array.of(0x11, 0x22));
    expect([gprs[RSI], gprs[RCX]]).toEqual([0x4001n, 1n]);
    expect(stringIoFinished(cpu, io())).toBe(false);
    stringIoOut(cpu, io(), 1);
    expect(stringIoFinished(cpu, io())).toBe(true);
  });
  it("writes for INS, downwards with DF, in 16-bit addresses", () => {
    const machine = emulatedMachine(16);
    const { cpu, gprs, ram } = machine;
    machine.bases[0] = 0x2000n;
    gprs[RDI] = 0xdead_0000n;
    gprs[RCX] = 0xdead_0001n;
    cpu.rflags |= 0x400n;
    expect(stringIoIn(cpu, io({ isIn: true, addressSize: 2 }), Uint8Array.of(5, 6))).toBeUndefined();
    expect([...ram.subarray(0x2000, 0x2002)]).toEqual([5, 6]);
    expect([gprs[RDI], gprs[RCX]]).toEqual([0xdead_fffen, 0xdead_0000n]);
  });
  it("faults before anything has moved", () => {
    const machine = emulatedMachine();
    machine.absent.add(4n);
    machine.gprs[RDI] = 0x3fffn;
    expect(stringIoIn(machine.cpu, io({ isIn: true, rep: false }), Uint8Array.of(5, 6))).toEqual({
      vector: 14,
      errorCode: 2,
      cr2: 0x4000n,
    });
    expect([machine.ram[0x3fff], machine.gprs[RDI]]).toEqual([0, 0x3fffn]);
    machine.gprs[RSI] = 0x4000n;
    expect(stringIoOut(machine.cpu, io({ rep: false }), 1)).toMatchObject({ vector: 14 });
  });
  it("reads ones where nothing is", () => {
    const { cpu, gprs } = emulatedMachine();
    gprs[RSI] = BigInt(MMIO);
    expect(stringIoOut(cpu, io({ rep: false }), 1)).toEqual(Uint8Array.of(0xff, 0xff));
  });
});
