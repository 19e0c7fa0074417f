/** The PCI root and its DMA test function, as software in root mode drives them. */
import { describe, expect, it } from "vitest";
import { type Hpa, hpa } from "../src/addresses.ts";
import { RAX, RCX } from "../src/engine/cpu-state.ts";
import { createIntelModel } from "../src/engine/system/cpuid.ts";
import { IntelCpu } from "../src/intel-cpu.ts";
import { createMachine } from "../src/machine.ts";
import { DmaCommand, DmaError, DmaRegister, DmaStatus } from "../src/pci/dma-test-function.ts";
import { ECAM_BASE } from "../src/pci/pci-root.ts";
import { ExitReason } from "../src/vmx/controls.ts";
import { guest, HLT } from "./halting-guest.ts";
import { BANK, CODE, type VmxHarness } from "./vmx-harness.ts";

const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const DEVICE = 1;
const MASTER_AND_MEMORY = 6;
const MSIX = 0x40;
const VECTOR = 0x51;
const DONE = DmaStatus.done;
const FAILED = DmaStatus.done | DmaStatus.failed;

/** A driver, small as it is. */
class Driver {
  readonly cpu: VmxHarness["cpu"];
  constructor(cpu: VmxHarness["cpu"]) {
    this.cpu = cpu;
  }
  select(offset: number, device = DEVICE): void {
    this.cpu.devices.out(CONFIG_ADDRESS, 4, (0x8000_0000 | (device << 11) | (offset & 0xfc)) >>> 0);
  }
  config(offset: number, bytes: 1 | 2 | 4 = 4, device = DEVICE): number {
    this.select(offset, device);
    return this.cpu.devices.in(CONFIG_DATA + (offset & 3), bytes);
  }
  setConfig(offset: number, bytes: 1 | 2 | 4, value: number): void {
    this.select(offset);
    this.cpu.devices.out(CONFIG_DATA + (offset & 3), bytes, value);
  }
  bar(index: number): number {
    return this.config(0x14 + 4 * index) * 2 ** 32 + ((this.config(0x10 + 4 * index) & ~0xf) >>> 0);
  }
  get(register: number): number {
    return Number(this.cpu.devices.read((this.bar(0) + register) as Hpa, 4));
  }
  set(register: number, value: bigint | number, bytes: 4 | 8 = 4): void {
    this.cpu.devices.write((this.bar(0) + register) as Hpa, bytes, BigInt(value));
  }
  copy(source: number, destination: number, length: number, flags = 0): void {
    this.set(DmaRegister.source, source, 8);
    this.set(DmaRegister.destination, destination, 8);
    this.set(DmaRegister.length, length);
    this.set(DmaRegister.command, DmaCommand.copy | flags);
  }
  message(entry: number, cpu: number, data: number): void {
    const at = this.bar(2) + entry * 16;
    this.cpu.devices.write(at as Hpa, 8, BigInt((0xfee0_0000 | (cpu << 12)) >>> 0));
    this.cpu.devices.write((at + 8) as Hpa, 8, BigInt(data));
  }
}

function machine(code: readonly number[] = [HLT]): { h: VmxHarness; driver: Driver } {
  const h = guest(code);
  const driver = new Driver(h.cpu);
  driver.setConfig(0x04, 2, MASTER_AND_MEMORY);
  return { h, driver };
}

describe("configuration space", () => {
  it("has a host bridge and the test function, and nothing else", () => {
    const { driver } = machine();
    expect([0, 1, 2, 31].map((device) => driver.config(0, 4, device))).toEqual([
      0x0000_6d6b, 0x0001_6d6b, 0xffff_ffff, 0xffff_ffff,
    ]);
    expect([driver.config(8, 4, 0), driver.config(8)]).toEqual([0x0600_0000, 0xff00_0001]);
    expect([driver.config(0x0e, 1), driver.config(0x2c), driver.config(0x3d, 1)]).toEqual([0, 0x0001_6d6b, 0]);
    // Function 1, bus 1, and CF8 without its enable bit
    for (const address of [0x8000_0900, 0x8001_0800, 0x0000_0800]) {
      driver.cpu.devices.out(CONFIG_ADDRESS, 4, address);
      expect(driver.cpu.devices.in(CONFIG_DATA, 4)).toBe(0xffff_ffff);
    }
    expect([driver.cpu.devices.in(0x70, 1), driver.cpu.devices.in(CONFIG_ADDRESS, 2)]).toEqual([0xff, 0xffff]);
  });

  it("says how large BARs are, and moves them", () => {
    const { driver } = machine();
    for (const bar of [0, 2]) {
      const before = driver.bar(bar);
      expect(driver.config(0x10 + 4 * bar) & 0xf).toBe(4);
      driver.setConfig(0x10 + 4 * bar, 4, 0xffff_ffff);
      driver.setConfig(0x14 + 4 * bar, 4, 0xffff_ffff);
      expect([driver.config(0x10 + 4 * bar), driver.config(0x14 + 4 * bar)]).toEqual([0xffff_f004, 0xffff_ffff]);
      driver.setConfig(0x14 + 4 * bar, 4, 0x8_0000);
      driver.setConfig(0x10 + 4 * bar, 4, 0x10_0000 + bar * 0x1000);
      expect([driver.bar(bar), before > driver.bar(bar)]).toEqual([0x8_0000 * 2 ** 32 + 0x10_0000 + bar * 0x1000, true]);
    }
    expect(driver.get(DmaRegister.id)).toBe(0x6d6b_0001);
    driver.setConfig(0x04, 2, 0);
    expect(driver.get(DmaRegister.id)).toBe(0xffff_ffff);
  });

  it("keeps what is read-only, and is the same through the ECAM window", () => {
    const { driver } = machine();
    driver.setConfig(0x00, 4, 0);
    driver.setConfig(0x08, 4, 0);
    driver.setConfig(0x34, 1, 0);
    driver.setConfig(MSIX, 2, 0);
    const ecam = (offset: number, bytes: 1 | 2 | 4 | 8) =>
      driver.cpu.devices.read((ECAM_BASE + (DEVICE << 15) + offset) as Hpa, bytes);
    expect([ecam(0, 4), ecam(8, 4), ecam(0x34, 1), ecam(MSIX, 2), ecam(0x100, 4)]).toEqual([
      0x1_6d6bn,
      0xff00_0001n,
      0x40n,
      0x11n,
      0n,
    ]);
    driver.cpu.devices.write((ECAM_BASE + (DEVICE << 15) + 0x3c) as Hpa, 1, 11n);
    expect([driver.config(0x3c, 1), ecam(0, 8)]).toEqual([11, 0x10_0006_0001_6d6bn]);
    expect(driver.cpu.devices.read((ECAM_BASE + (2 << 15)) as Hpa, 8)).toBe(0xffff_ffff_ffff_ffffn);
  });
});

describe("DMA", () => {
  it("copies memory, across pages and from any offset to any other", () => {
    const { h, driver } = machine();
    const from = h.page(4);
    const to = h.page(4);
    for (let i = 0; i < 0x3000; i++) h.bank.u8[from + 5 + i] = (i * 7) & 0xff;
    driver.copy(hpa(BANK, from + 5), hpa(BANK, to + 4090), 0x2345);
    expect([driver.get(DmaRegister.status), driver.get(DmaRegister.error), driver.get(DmaRegister.transferred)]).toEqual([
      DONE,
      DmaError.none,
      0x2345,
    ]);
    expect(h.bank.u8.slice(to + 4090, to + 4090 + 0x2345)).toEqual(h.bank.u8.slice(from + 5, from + 5 + 0x2345));
    expect([h.bank.u8[to + 4089], h.bank.u8[to + 4090 + 0x2345]]).toEqual([0, 0]);
    driver.set(DmaRegister.status, DONE);
    expect(driver.get(DmaRegister.status)).toBe(0);
  });

  it("ends where no memory answers, and does nothing without bus mastering", () => {
    const { h, driver } = machine();
    const page = h.page();
    const outcome = () =>
      [DmaRegister.status, DmaRegister.error, DmaRegister.transferred].map((register) => driver.get(register));
    const masterAbort = () => (driver.config(0x06, 2) >>> 13) & 1;
    const end = h.bank.sizeBytes;
    driver.copy(hpa(BANK, end - 4096), hpa(BANK, page), 4097);
    expect([...outcome(), masterAbort()]).toEqual([FAILED, DmaError.sourceAbort, 4096, 1]);
    driver.setConfig(0x06, 2, 1 << 13);
    expect(masterAbort()).toBe(0);
    driver.copy(hpa(BANK, page), hpa(BANK + 1, page), 8);
    expect([...outcome(), masterAbort()]).toEqual([FAILED, DmaError.destinationAbort, 0, 1]);
    // What the CPU keeps for itself in a bank is no memory
    driver.copy(hpa(BANK, page), hpa(BANK, 0x1000), 8);
    expect(outcome()).toEqual([FAILED, DmaError.destinationAbort, 0]);
    driver.setConfig(0x04, 2, 2);
    driver.copy(hpa(BANK, page), hpa(BANK, page + 64), 8);
    expect(outcome()).toEqual([FAILED, DmaError.noBusMaster, 0]);
  });

  it("into code is seen by whoever runs it next", () => {
    // A loop that was translated: inc rax; dec rcx; jnz. Then dec rax in its place
    const { h, driver } = machine([0x48, 0xff, 0xc0, 0x48, 0xff, 0xc9, 0x75, 0xf8, HLT]);
    const rounds = 20_000n;
    const run = () => {
      h.write("GUEST_RIP", CODE);
      h.cpu.setGpr(RCX, rounds);
      expect(h.run().reason).toBe(ExitReason.hlt);
      return h.cpu.gpr(RAX);
    };
    expect([run(), run()]).toEqual([rounds, 2n * rounds]);
    const page = h.page();
    h.bank.u8.set([0x48, 0xff, 0xc8], page);
    driver.copy(hpa(BANK, page), hpa(BANK, h.guestMemory + CODE), 3);
    expect([run(), run()]).toEqual([rounds, 0n]);
  });
});

describe("MSI-X", () => {
  it("raises a vector on the CPU that the message names, at the end of a copy", () => {
    const { h, driver } = machine([0xeb, 0xfe]);
    expect([driver.config(MSIX, 1), driver.config(MSIX + 2, 2), driver.config(MSIX + 4), driver.config(MSIX + 8)]).toEqual([
      0x11, 3, 2, 0x802,
    ]);
    driver.setConfig(MSIX + 2, 2, 0x8000);
    driver.message(1, 0, VECTOR);
    driver.set(DmaRegister.interrupt, 1);
    const page = h.page();
    driver.copy(hpa(BANK, page), hpa(BANK, page + 64), 8, DmaCommand.interrupt);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.takeInterrupt()).toBe(VECTOR);
  });

  it("waits while the entry or the function is masked, and is nothing while it is off", () => {
    const { h, driver } = machine();
    const pending = () => Number(driver.cpu.devices.read((driver.bar(2) + 0x800) as Hpa, 8));
    driver.message(0, 0, VECTOR);
    driver.set(DmaRegister.trigger, 0);
    expect([h.cpu.interruptPending(), pending()]).toEqual([false, 0]);
    driver.setConfig(MSIX + 2, 2, 0xc000);
    driver.set(DmaRegister.trigger, 0);
    // Entry 3 is masked after power-up, and there is no entry 4
    driver.set(DmaRegister.trigger, 3);
    driver.set(DmaRegister.trigger, 4);
    expect([h.cpu.interruptPending(), pending()]).toEqual([false, 0b1001]);
    driver.cpu.devices.write((driver.bar(2) + 0x800) as Hpa, 4, 0n);
    expect(pending()).toBe(0b1001);
    driver.setConfig(MSIX + 2, 2, 0x8000);
    expect([h.cpu.takeInterrupt(), pending()]).toEqual([VECTOR, 0b1000]);
    driver.message(3, 0, VECTOR + 1);
    expect([h.cpu.takeInterrupt(), pending()]).toEqual([VECTOR + 1, 0]);
  });

  it("writes memory where the message's address is no interrupt's, and aborts where nothing is", () => {
    const { h, driver } = machine();
    const page = h.page();
    driver.setConfig(MSIX + 2, 2, 0x8000);
    const at = driver.bar(2);
    driver.cpu.devices.write(at as Hpa, 8, BigInt(hpa(BANK, page + 8)));
    driver.cpu.devices.write((at + 8) as Hpa, 8, 0x1234_5678n);
    driver.set(DmaRegister.trigger, 0);
    expect(h.bank.u32[(page + 8) >>> 2]).toBe(0x1234_5678);
    driver.cpu.devices.write(at as Hpa, 8, BigInt(hpa(BANK + 1, page)));
    driver.set(DmaRegister.trigger, 0);
    expect((driver.config(0x06, 2) >>> 13) & 1).toBe(1);
  });

  it("is the same function on every CPU of the machine, and reaches each", () => {
    const description = createMachine({ cpus: 2, clock: "icount" });
    const noEngine = () => {
      throw new Error("no guest runs here");
    };
    const [first, second] = [0, 1].map((id) => new IntelCpu(description, id, createIntelModel(), noEngine, () => {}));
    const driver = new Driver(first as IntelCpu);
    driver.setConfig(0x04, 2, MASTER_AND_MEMORY);
    driver.setConfig(MSIX + 2, 2, 0x8000);
    driver.message(2, 1, VECTOR);
    const other = new Driver(second as IntelCpu);
    expect(other.get(DmaRegister.id)).toBe(0x6d6b_0001);
    other.set(DmaRegister.trigger, 2);
    expect([first?.interruptPending(), second?.takeInterrupt()]).toEqual([false, VECTOR]);
    // An NMI by message
    driver.message(2, 0, 4 << 8);
    other.set(DmaRegister.trigger, 2);
    expect([first?.nmiPending(), second?.nmiPending()]).toEqual([true, false]);
    first?.losePower();
    expect([driver.get(DmaRegister.id), other.config(MSIX + 2, 2)]).toEqual([0xffff_ffff, 3]);
  });
});
