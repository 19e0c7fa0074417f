import { expect, test } from "vitest";
import { parseArguments } from "../src/arguments.ts";
import { FIRMWARE_CONFIG_PORT, FirmwareConfig } from "../src/devices/firmware-config.ts";
import { FLASH_BLOCK_BYTES, Flash } from "../src/devices/flash.ts";
import { MemoryBus } from "../src/devices/memory-bus.ts";
import { PCI_ADDRESS_PORT, PciHost } from "../src/devices/pci-host.ts";
import { PIIX_POWER_PORT, PiixPower } from "../src/devices/piix-power.ts";
import { GuestMemory } from "../src/guest-memory.ts";
import { ImageFile } from "../src/image-file.ts";
import { loadFlash } from "../src/loaders/firmware.ts";
import { VariablesFile } from "../src/variables-file.ts";
import { fakeSystem } from "./fake-system.ts";

const START = 0xffc0_0000;

function chip(): { flash: Flash; contents: Uint8Array; shown: boolean[]; kept: number[][] } {
  const contents = new Uint8Array(4 * FLASH_BLOCK_BYTES).fill(0x5a);
  const shown: boolean[] = [];
  const kept: number[][] = [];
  const flash = new Flash({
    start: START,
    contents,
    show: (asMemory) => shown.push(asMemory),
    keep: (first, end) => kept.push([first, end]),
  });
  return { flash, contents, shown, kept };
}

test("a flash chip is found as UEFI firmware looks for it, and reads as memory again afterwards", () => {
  const { flash, shown } = chip();
  flash.write(16, 0x50);
  expect(flash.read(16)).toBe(0x5a);
  flash.write(16, 0x70);
  expect(flash.read(16)).toBe(0);
  expect(shown).toEqual([false]);
  flash.write(16, 0xff);
  expect(flash.read(16)).toBe(0x5a);
  expect(shown).toEqual([false, true]);
});

test("programming makes zeros, erasing makes a block of ones, and the status says when it is done", () => {
  const { flash, contents } = chip();
  flash.write(5, 0x10);
  flash.write(5, 0x0f);
  expect([flash.read(5), contents[5], contents[6]]).toEqual([0x80, 0x0a, 0x5a]);
  flash.write(5, 0x40);
  flash.write(6, 0xf0);
  expect(contents[6]).toBe(0x50);
  flash.write(FLASH_BLOCK_BYTES + 7, 0x20);
  flash.write(FLASH_BLOCK_BYTES + 7, 0xd0);
  expect(flash.read(0)).toBe(0x80);
  expect(contents.subarray(FLASH_BLOCK_BYTES, 2 * FLASH_BLOCK_BYTES).every((byte) => byte === 0xff)).toBe(true);
  expect([contents[FLASH_BLOCK_BYTES - 1], contents[2 * FLASH_BLOCK_BYTES]]).toEqual([0x5a, 0x5a]);
});

test("an erase that is not confirmed does nothing, and the status says so", () => {
  const { flash, contents } = chip();
  flash.write(0, 0x20);
  flash.write(0, 0x12);
  expect(flash.read(0) & 0x30).toBe(0x30);
  flash.write(0, 0x50);
  flash.write(0, 0x20);
  flash.write(0, 0xff);
  expect(flash.read(0)).toBe(0x5a);
  expect(contents.every((byte) => byte === 0x5a)).toBe(true);
});

test("a buffered program takes as many bytes as it was told", () => {
  const { flash, contents } = chip();
  flash.write(0x100, 0xe8);
  expect(flash.read(0x100)).toBe(0x80);
  flash.write(0x100, 2);
  for (const index of [0, 1, 2]) flash.write(0x100 + index, index + 1);
  flash.write(0x100, 0xd0);
  expect(flash.read(0x100)).toBe(0x80);
  flash.write(0, 0xff);
  expect([...contents.subarray(0x100, 0x104)]).toEqual([0, 2, 2, 0x5a]);
});

test("what was changed is kept when the chip reads as memory again, when it is saved, and when the VM ends", () => {
  const { flash, kept } = chip();
  for (const offset of [9, 7]) {
    flash.write(offset, 0x10);
    flash.write(offset, 0);
  }
  expect(kept).toEqual([]);
  flash.write(0, 0xff);
  expect(kept).toEqual([[7, 10]]);
  flash.write(FLASH_BLOCK_BYTES + 7, 0x20);
  flash.write(FLASH_BLOCK_BYTES + 7, 0xd0);
  flash.save();
  flash.save();
  flash.flush();
  flash.write(0, 0xff);
  expect(kept.slice(1)).toEqual([[FLASH_BLOCK_BYTES, 2 * FLASH_BLOCK_BYTES]]);
});

test("the chip identifies itself, and has a table of what it is", () => {
  const { flash } = chip();
  flash.write(0, 0x90);
  expect([flash.read(0), flash.read(1)]).toEqual([0x89, 0x18]);
  flash.write(0, 0x98);
  expect(String.fromCharCode(flash.read(0x10), flash.read(0x11), flash.read(0x12))).toBe("QRY");
  expect([flash.read(0x13), flash.read(0x27), flash.read(0x2d), flash.read(0x2f)]).toEqual([1, 14, 3, 0x10]);
});

test("a chip that was saved goes on in the middle of a command", () => {
  const before = chip();
  before.flash.write(8, 0x10);
  const section = before.flash.save();
  expect(Flash.bytesOf([section])).toBe(4 * FLASH_BLOCK_BYTES);
  expect(Flash.bytesOf([])).toBe(0);
  const after = chip();
  expect(after.flash.restore([section])).toBeUndefined();
  after.flash.write(8, 0);
  expect([after.contents[8], after.flash.read(8)]).toEqual([0, 0x80]);
  expect(after.shown).toEqual([false]);
});

test("what is memory-mapped answers in its range, and nobody elsewhere", () => {
  const { flash } = chip();
  const bus = new MemoryBus();
  bus.attach(flash);
  const read = (address: number): number[] => {
    const into = new Uint8Array(2);
    bus.read(address, into);
    return [...into];
  };
  bus.write(START, Uint8Array.of(0x70));
  expect([read(START - 2), read(START), read(START + 4 * FLASH_BLOCK_BYTES)]).toEqual([
    [0xff, 0xff],
    [0x80, 0x80],
    [0xff, 0xff],
  ]);
  bus.write(0xfec0_0000, Uint8Array.of(1));
});

test("the PCI bus has a host bridge, an ISA bridge, power management, and nothing else", () => {
  let resets = 0;
  const pci = new PciHost(() => resets++);
  const config = (device: number, fn: number, register: number): number => {
    pci.write(PCI_ADDRESS_PORT, 4, (0x8000_0000 | (device << 11) | (fn << 8) | register) >>> 0);
    return pci.read(0xcfc, 4);
  };
  expect([config(0, 0, 0), config(1, 0, 0), config(1, 3, 0), config(2, 0, 0), config(1, 1, 0)]).toEqual([
    0x1237_8086, 0x7000_8086, 0x7113_8086, 0xffff_ffff, 0xffff_ffff,
  ]);
  expect([config(1, 0, 8) >>> 16, (config(1, 0, 12) >>> 16) & 0x80]).toEqual([0x601, 0x80]);
  config(1, 3, 0x40);
  pci.write(0xcfc, 4, 0xb001);
  expect(pci.read(0xcfc, 2)).toBe(0xb001);
  config(1, 3, 0x10);
  pci.write(0xcfc, 4, 0xffff_ffff);
  expect(pci.read(0xcfc, 4)).toBe(0);
  config(1, 3, 0x3c);
  pci.write(0xcfc, 1, 9);
  const after = new PciHost(() => undefined);
  expect(after.restore([pci.save()])).toBeUndefined();
  expect(after.read(0xcfc, 1)).toBe(9);
  pci.write(0xcf9, 1, 2);
  expect(resets).toBe(0);
  pci.write(0xcf9, 1, 6);
  expect(resets).toBe(1);
});

test("power management counts time, and turns the machine off", () => {
  let off = 0;
  const power = new PiixPower(
    () => 1e9,
    () => off++,
  );
  expect(power.read(PIIX_POWER_PORT + 8)).toBe(3_579_545);
  power.write(PIIX_POWER_PORT + 4, 2, 1);
  expect(off).toBe(0);
  power.write(PIIX_POWER_PORT + 4, 2, 1 << 13);
  expect(off).toBe(1);
});

test("firmware is told of RAM and CPUs, item by item", () => {
  const config = new FirmwareConfig({ ramBytes: 0x800_0000, cpus: 3 });
  const item = (number: number, count: number): number[] => {
    config.write(FIRMWARE_CONFIG_PORT, 2, number);
    return Array.from({ length: count }, () => config.read(FIRMWARE_CONFIG_PORT + 1));
  };
  expect(String.fromCharCode(...item(0, 4))).toBe("QEMU");
  expect(item(3, 9)).toEqual([0, 0, 0, 8, 0, 0, 0, 0, 0]);
  expect([item(5, 2), item(0x4242, 2)]).toEqual([
    [3, 0],
    [0, 0],
  ]);
  item(3, 3);
  const after = new FirmwareConfig({ ramBytes: 0x800_0000, cpus: 3 });
  expect(after.restore([config.save()])).toBeUndefined();
  expect(after.read(FIRMWARE_CONFIG_PORT + 1)).toBe(8);
});

test("--pflash takes one file or two, and no kernel beside it", () => {
  const flashOf = (...files: string[]) => parseArguments(files.flatMap((file) => ["--pflash", file])).flash;
  expect(flashOf("a.fd", "b.fd")).toEqual({ code: "a.fd", variables: "b.fd" });
  expect(flashOf("a.fd")).toEqual({ code: "a.fd", variables: undefined });
  expect(() => flashOf("a.fd", "b.fd", "c.fd")).toThrow("--pflash is given once or twice: the file with the firmware's code");
  expect(() => parseArguments(["--pflash", "a.fd", "--kernel", "k"])).toThrow("--pflash and --kernel do not go together");
  expect(() => parseArguments([])).toThrow(
    "no kernel given; add --kernel IMAGE, or for UEFI firmware --pflash CODE --pflash VARIABLES",
  );
});

test("the file of the variables is written in its place, and where it cannot be, that is said in a line", () => {
  const file = new Uint8Array(16);
  const sys = fakeSystem({ vars: file });
  sys.memory.u8.set([1, 2, 3], 8192);
  VariablesFile.open(sys, "vars").write(8192, 3, 5);
  expect([...file.subarray(4, 9)]).toEqual([0, 1, 2, 3, 0]);
  expect(() => VariablesFile.open(sys, "nowhere")).toThrow(
    "cannot write firmware variables to nowhere: no such file; give a copy of the VARS file that is yours to write",
  );
});

test("code and variables fill a chip between them, and else are told to be of different builds", () => {
  const sys = fakeSystem({
    code: new Uint8Array(3 * 4096).fill(1),
    vars: new Uint8Array(4096).fill(2),
    other: new Uint8Array(8192),
  });
  const load = (variables: string) => {
    const memory = new GuestMemory(sys.memory, (bytes) => sys.mmap(bytes, -1, 0), 1 << 20);
    loadFlash(memory, ImageFile.open(sys, "code", "firmware"), ImageFile.open(sys, variables, "firmware variables"));
    return memory;
  };
  const memory = load("vars");
  expect([memory.rom?.bytes, memory.flash()?.length, memory.flash()?.[0]]).toEqual([16384, 4096, 2]);
  expect(sys.memory.u8[memory.at(0xffff_fff0, 1)]).toBe(1);
  expect(() => load("other")).toThrow(
    "code and other do not belong together: with 20480 bytes they fill no flash chip; give the VARS file of the same build",
  );
});
