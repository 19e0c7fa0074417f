import { expect, test } from "vitest";
import { memoryBytes, parseArguments } from "../src/arguments.ts";
import { GuestMemory } from "../src/guest-memory.ts";
import { ImageFile } from "../src/image-file.ts";
import type { FlatFormat } from "../src/loaders/flat.ts";
import type { EntryPoint } from "../src/loaders/guest-image.ts";
import { loadImage } from "../src/loaders/load-image.ts";
import { COMMAND_LINE, ZERO_PAGE } from "../src/memory-layout.ts";
import { fakeSystem } from "./fake-system.ts";

const MIB = 1 << 20;

function load(
  file: Uint8Array,
  options: { format?: FlatFormat; ramBytes?: number; commandLine?: string; initrd?: Uint8Array } = {},
): { entry: EntryPoint; memory: GuestMemory; byte(gpa: number): number; u32(gpa: number): number } {
  const sys = fakeSystem({ image: file, initrd: options.initrd ?? new Uint8Array(0) });
  const ramBytes = options.ramBytes ?? 16 * MIB;
  const memory = new GuestMemory(sys.memory, (bytes) => sys.mmap(bytes, -1, 0), ramBytes);
  const image = ImageFile.open(sys, "image", "kernel image");
  const initrd = options.initrd ? ImageFile.open(sys, "initrd", "initrd") : undefined;
  const request = { image, head: image.read(0, 65536), memory, commandLine: options.commandLine ?? "", cpus: 1, initrd };
  const entry = loadImage(request, options.format);
  const byte = (gpa: number) => sys.memory.u8[memory.at(gpa, 1)];
  return { entry, memory, byte, u32: (gpa) => sys.memory.view.getUint32(memory.at(gpa, 4), true) };
}

/** A bzImage of boot protocol 2.15 with `kernel` as its protected-mode part. */
function bzImage(kernel: Uint8Array, is64 = true): Uint8Array {
  const SETUP_BYTES = 1024;
  const file = new Uint8Array(SETUP_BYTES + kernel.length);
  const view = new DataView(file.buffer);
  file[0x1f1] = 1;
  view.setUint16(0x1fe, 0xaa55, true);
  file[0x201] = 0x6a;
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, 0x020f, true);
  file[0x211] = 1;
  view.setUint32(0x214, 0x10_0000, true);
  view.setUint32(0x22c, 0x7fff_ffff, true);
  view.setUint16(0x236, is64 ? 1 : 0, true);
  view.setUint32(0x238, 255, true);
  view.setUint32(0x260, 4 * MIB, true);
  file.set(kernel, SETUP_BYTES);
  return file;
}

function multibootImage(code: Uint8Array): Uint8Array {
  const file = new Uint8Array(32 + code.length);
  const FLAGS = 0x1_0003;
  const words = [
    0x1badb002,
    FLAGS,
    -(0x1badb002 + FLAGS) >>> 0,
    0x10_0000,
    0x10_0000,
    0,
    0x10_0000 + file.length + 4096,
    0x10_0020,
  ];
  words.forEach((word, index) => {
    new DataView(file.buffer).setUint32(index * 4, word, true);
  });
  file.set(code, 32);
  return file;
}

const someCode = Uint8Array.of(0xfa, 0xf4, 0xeb, 0xfd);

test("a bzImage is loaded at 1 MiB with its zero page, command line and initrd", () => {
  const initrd = Uint8Array.of(1, 2, 3);
  const { entry, byte, u32 } = load(bzImage(someCode), { commandLine: "console=ttyS0", initrd });
  expect(entry).toEqual({ mode: "long", rip: 0x10_0200, registers: { rsi: ZERO_PAGE, rsp: expect.any(Number) } });
  expect(byte(0x10_0000)).toBe(0xfa);
  expect(u32(ZERO_PAGE + 0x228)).toBe(COMMAND_LINE);
  expect(String.fromCharCode(byte(COMMAND_LINE), byte(COMMAND_LINE + 1))).toBe("co");
  expect(byte(u32(ZERO_PAGE + 0x218) + 2)).toBe(3);
  expect(u32(ZERO_PAGE + 0x21c)).toBe(3);
  expect(byte(ZERO_PAGE + 0x1e8)).toBe(4);
});

test("a bzImage without 64-bit entry starts in protected mode", () => {
  expect(load(bzImage(someCode, false)).entry).toMatchObject({ mode: "protected", rip: 0x10_0000 });
});

test("the ACPI root pointer and every table it leads to have right checksums", () => {
  const { byte, u32 } = load(bzImage(someCode));
  const sum = (at: number, length: number) =>
    Array.from({ length }, (_, index) => byte(at + index)).reduce((a, b) => a + b, 0) & 0xff;
  const rsdp = u32(ZERO_PAGE + 0x70);
  expect(sum(rsdp, 20)).toBe(0);
  expect(sum(rsdp, 36)).toBe(0);
  const xsdt = u32(rsdp + 24);
  const tables = [xsdt, u32(xsdt + 36), u32(xsdt + 44), u32(u32(xsdt + 36) + 40)];
  for (const table of tables) expect(sum(table, u32(table + 4))).toBe(0);
});

test("a multiboot image is placed by the addresses in its header", () => {
  const { entry, byte } = load(multibootImage(someCode));
  expect(entry).toMatchObject({ mode: "protected", rip: 0x10_0020, registers: { rax: 0x2badb002 } });
  expect(byte(0x10_0020)).toBe(0xfa);
});

test.each([
  ["flat16", "real", 0x7c00],
  ["flat32", "protected", 0x10_0000],
  ["flat64", "long", 0x10_0000],
] as const)("a %s image starts in %s mode", (format, mode, rip) => {
  const { entry, byte } = load(someCode, { format });
  expect(entry).toMatchObject({ mode, rip });
  expect(byte(rip)).toBe(0xfa);
});

test.each([
  ["a file that is no kernel", () => load(new TextEncoder().encode("#!/bin/sh\n".repeat(100))), /not a kernel image.*--format/],
  [
    "too little memory for the kernel",
    () => load(bzImage(someCode), { ramBytes: 4 * MIB }),
    /too little memory.*needs 5 MiB.*--memory/,
  ],
  [
    "too little memory for the initrd",
    () => load(bzImage(someCode), { ramBytes: 6 * MIB, initrd: new Uint8Array(2 * MIB) }),
    /too little memory/,
  ],
  [
    "a command line that is too long",
    () => load(bzImage(someCode), { commandLine: "x".repeat(300) }),
    /300 bytes; this kernel takes 255/,
  ],
  ["an empty flat image", () => load(new Uint8Array(0), { format: "flat64" }), /empty/],
  ["an ELF file for another machine", () => load(elfFor(183)), /not for x86/],
  ["a truncated bzImage", () => load(truncatedElf()), /truncated|no kernel/],
  ["a missing file", () => ImageFile.open(fakeSystem({}), "nowhere", "kernel image"), /no such file/],
])("%s is refused in one line", (_name, work, message) => {
  expect(work).toThrow(message);
});

function elfFor(machine: number): Uint8Array {
  const file = new Uint8Array(128);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  new DataView(file.buffer).setUint16(18, machine, true);
  return file;
}

function truncatedElf(): Uint8Array {
  const file = elfFor(62);
  const view = new DataView(file.buffer);
  view.setBigUint64(32, 64n, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true);
  view.setBigUint64(64 + 24, 0x10_0000n, true);
  view.setBigUint64(64 + 32, 0x1000n, true);
  view.setBigUint64(64 + 40, 0x1000n, true);
  return file;
}

test.each([
  ["256M", 256 * MIB],
  ["1G", 1024 * MIB],
  ["4194304", 4 * MIB],
  ["8192k", 8 * MIB],
])("--memory %s is a size", (text, bytes) => {
  expect(memoryBytes(text)).toBe(bytes);
});

test.each([["12Q"], ["-5M"], ["1M"], ["4194305"], [""]])("--memory '%s' is refused", (text) => {
  expect(() => memoryBytes(text)).toThrow(/--memory/);
});

test.each([
  [[], /--kernel/],
  [["--kernel", "k", "--cpus", "0"], /--cpus 0 is out of range/],
  [["--kernel", "k", "--format", "elf"], /unknown format elf/],
  [["--kernel", "k", "--wat"], /wat/],
])("arguments %j are refused", (args, message) => {
  expect(() => parseArguments(args)).toThrow(message);
});
