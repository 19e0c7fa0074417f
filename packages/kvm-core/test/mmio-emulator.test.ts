import { describe, expect, it } from "vitest";
import { createMmioEmulator } from "../src/instruction-emulator/mmio-emulator.ts";
import { CODE, DEVICE, emulatedMachine, type Machine, MMIO } from "./emulated-machine.ts";

const [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const CF = 1n;
const ZF = 0x40n;
const little = (value: bigint, bytes: number) =>
  Uint8Array.from({ length: bytes }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));

/** Runs the bytes at CODE; user space's MMIO is backed by `memory`, 8 bytes at MMIO. Returns the accesses that it saw. */
function run(machine: Machine, bytes: number[], memory = 0n): { accesses: string[]; memory: bigint; kind: string } {
  machine.put(...bytes);
  const emulator = createMmioEmulator();
  const page = little(memory, 16);
  const accesses: string[] = [];
  let result = emulator.emulate(machine.cpu);
  while (result.kind === "mmio") {
    const { gpa, length, isWrite, data } = result;
    accesses.push(`${isWrite ? "write" : "read"} ${gpa - MMIO} ${length}`);
    if (isWrite) page.set(data, gpa - MMIO);
    result = emulator.complete(machine.cpu, isWrite ? new Uint8Array(8) : page.slice(gpa - MMIO, gpa - MMIO + length));
  }
  expect(emulator.pending).toBe(false);
  return { accesses, memory: new DataView(page.buffer).getBigUint64(0, true), kind: result.kind };
}
function at(mmioRegister = RBX, codeBits: 16 | 32 | 64 = 64): Machine {
  const machine = emulatedMachine(codeBits);
  machine.gprs[mmioRegister] = BigInt(MMIO);
  return machine;
}
const moved = (machine: Machine) => Number(machine.cpu.rip) - CODE;

describe("moves", () => {
  it("read and write every size, with the register rules of each", () => {
    const cases: [number[], bigint, bigint][] = [
      [[0x8a, 0x03], 0x1122_3344_5566_7788n, 0xffff_ffff_ffff_ff88n],
      [[0x8a, 0x23], 0x1122_3344_5566_7788n, 0xffff_ffff_ffff_88ffn], // AH
      [[0x66, 0x8b, 0x03], 0x1122_3344_5566_7788n, 0xffff_ffff_ffff_7788n],
      [[0x8b, 0x03], 0x1122_3344_5566_7788n, 0x5566_7788n],
      [[0x48, 0x8b, 0x03], 0x1122_3344_5566_7788n, 0x1122_3344_5566_7788n],
      [[0x0f, 0xb6, 0x03], 0x88n, 0x88n],
      [[0x0f, 0xbe, 0x03], 0x88n, 0xffff_ff88n],
      [[0x48, 0x0f, 0xbf, 0x03], 0x8877n, 0xffff_ffff_ffff_8877n],
      [[0x48, 0x63, 0x03], 0x8877_6655n, 0xffff_ffff_8877_6655n],
      [[0x66, 0x0f, 0xb6, 0x03], 0x88n, 0xffff_ffff_ffff_0088n],
      [[0x0f, 0x38, 0xf0, 0x03], 0x1122_3344n, 0x4433_2211n],
    ];
    for (const [bytes, memory, expected] of cases) {
      const machine = at();
      machine.gprs[RAX] = 0xffff_ffff_ffff_ffffn;
      expect(run(machine, bytes, memory).kind).toBe("done");
      expect(machine.gprs[RAX].toString(16), bytes.join(" ")).toBe(expected.toString(16));
      expect(moved(machine)).toBe(bytes.length);
    }
    const writes: [number[], bigint][] = [
      [[0x88, 0x03], 0x88n],
      [[0x66, 0x89, 0x03], 0x7788n],
      [[0x89, 0x03], 0x5566_7788n],
      [[0x48, 0x89, 0x03], 0x1122_3344_5566_7788n],
      [[0xc6, 0x03, 0x99], 0x99n],
      [[0x66, 0xc7, 0x03, 0x34, 0x12], 0x1234n],
      [[0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], 0xffff_ffffn],
      [[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], 0xffff_ffff_ffff_fffen],
      [[0x0f, 0xc3, 0x03], 0x5566_7788n],
      [[0x0f, 0x38, 0xf1, 0x03], 0x8877_6655n],
    ];
    for (const [bytes, expected] of writes) {
      const machine = at();
      machine.gprs[RAX] = 0x1122_3344_5566_7788n;
      const { memory, accesses } = run(machine, bytes);
      expect(memory, bytes.join(" ")).toBe(expected);
      expect(accesses).toHaveLength(1);
      expect(moved(machine)).toBe(bytes.length);
    }
  });
  it("use absolute addresses", () => {
    const machine = emulatedMachine();
    expect(run(machine, [0xa1, ...little(BigInt(MMIO), 8)], 0x1234n).kind).toBe("done");
    expect(machine.gprs[RAX]).toBe(0x1234n);
    const small = emulatedMachine(32);
    run(small, [0xa3, ...little(BigInt(MMIO), 4)]);
    expect(moved(small)).toBe(5);
  });
  it("use conditions", () => {
    const machine = at();
    machine.cpu.rflags = 2n | ZF;
    run(machine, [0x0f, 0x44, 0x03], 5n);
    expect(machine.gprs[RAX]).toBe(5n);
    machine.cpu.rip = BigInt(CODE);
    run(machine, [0x0f, 0x45, 0x03], 6n);
    expect(machine.gprs[RAX]).toBe(5n);
    machine.cpu.rip = BigInt(CODE);
    expect(run(machine, [0x0f, 0x94, 0x03]).memory).toBe(1n);
  });
});

describe("addresses", () => {
  const reads = (machine: Machine, bytes: number[], offset: number) =>
    expect(run(machine, bytes).accesses, bytes.join(" ")).toEqual([`read ${offset} 4`]);
  it("of 64-bit code: displacements, SIB, REX, RIP-relative, segments, 32-bit addresses", () => {
    reads(at(), [0x8b, 0x43, 0x08], 8);
    reads(at(), [0x8b, 0x83, 4, 0, 0, 0], 4);
    const sib = at();
    sib.gprs[RCX] = 2n;
    reads(sib, [0x8b, 0x44, 0x8b, 0xfc], 4); // [rbx + rcx * 4 - 4]
    const extended = at(R8 + 4);
    reads(extended, [0x41, 0x8b, 0x04, 0x24], 0); // [r12]
    const index = at(R8 + 4);
    reads(index, [0x42, 0x8b, 0x04, 0x25, 4, 0, 0, 0], 4); // [r12 + 4], no base
    const relative = emulatedMachine();
    reads(relative, [0x8b, 0x05, ...little(BigInt(MMIO - CODE - 6 + 3), 4)], 3);
    const immediateAfter = emulatedMachine();
    expect(run(immediateAfter, [0xc7, 0x05, ...little(BigInt(MMIO - CODE - 10), 4), 1, 0, 0, 0]).memory).toBe(1n);
    const segment = at();
    segment.bases[5] = 7n;
    reads(segment, [0x65, 0x8b, 0x03], 7);
    const ignored = at();
    ignored.bases[3] = 0n;
    reads(ignored, [0x2e, 0x8b, 0x03], 0);
    const narrow = at();
    narrow.gprs[RBX] |= 0xffff_ffff_0000_0000n;
    reads(narrow, [0x67, 0x8b, 0x03], 0);
  });
  it("of 32-bit and 16-bit code", () => {
    const base = at(RBP, 32);
    base.bases[2] = 4n; // SS
    reads(base, [0x8b, 0x45, 0x00], 4);
    const direct = emulatedMachine(32);
    reads(direct, [0x8b, 0x05, ...little(BigInt(MMIO), 4)], 0);
    const real = emulatedMachine(16);
    real.bases[3] = BigInt(MMIO - 0x1_0000);
    real.gprs[RBX] = 0xff00n;
    real.gprs[RSI] = 0x00fen;
    real.bases[3] += 2n;
    expect(run(real, [0x8b, 0x00]).kind).toBe("done"); // [bx + si], RAM below MMIO is nobody's
    const wraps = emulatedMachine(16);
    wraps.bases[3] = BigInt(MMIO);
    wraps.gprs[RBX] = 0xffffn;
    expect(run(wraps, [0x8b, 0x47, 0x02], 0x1234_5678n << 8n).accesses).toEqual(["read 1 2"]);
    const big = emulatedMachine(16);
    big.gprs[RBX] = BigInt(MMIO);
    expect(run(big, [0x67, 0x66, 0x8b, 0x03]).accesses).toEqual(["read 0 4"]);
  });
});

describe("read, change, write", () => {
  it("does arithmetic in memory, with flags", () => {
    const cases: [string, number[], bigint, bigint, bigint][] = [
      ["add", [0x01, 0x03], 0xffff_ffffn, 0n, CF | ZF | 0x14n],
      ["or", [0x09, 0x03], 0x10n, 0x11n, 4n],
      ["adc", [0x11, 0x03], 1n, 3n, 4n],
      ["and", [0x21, 0x03], 0xf0n, 0n, ZF | 4n],
      ["sub", [0x29, 0x03], 0n, 0xffff_ffffn, CF | 0x94n],
      ["xor", [0x31, 0x03], 1n, 0n, ZF | 4n],
      ["or imm", [0x83, 0x0b, 0x80], 0n, 0xffff_ff80n, 0x80n],
      ["and imm", [0x81, 0x23, 0xff, 0, 0, 0], 0x1234n, 0x34n, 0n],
      ["inc", [0xff, 0x03], 0x7fff_ffffn, 0x8000_0000n, CF | 0x894n],
      ["dec", [0xff, 0x0b], 1n, 0n, CF | ZF | 4n],
      ["neg", [0xf7, 0x1b], 1n, 0xffff_ffffn, CF | 0x94n],
      ["bts", [0x0f, 0xba, 0x2b, 4], 0n, 0x10n, -1n],
      ["btr", [0x0f, 0xb3, 0x03], 2n, 0n, -1n],
      ["btc", [0x0f, 0xba, 0x3b, 35], 8n, 0n, -1n],
    ];
    for (const [name, bytes, before, after, flags] of cases) {
      const machine = at();
      machine.gprs[RAX] = 1n;
      machine.cpu.rflags = 2n | CF;
      const { memory, accesses } = run(machine, bytes, before);
      expect(memory.toString(16), name).toBe(after.toString(16));
      expect(accesses, name).toEqual(["read 0 4", "write 0 4"]);
      if (flags >= 0n) expect((machine.cpu.rflags & ~2n).toString(16), name).toBe(flags.toString(16));
    }
  });
  it("compares without writing", () => {
    for (const bytes of [
      [0x39, 0x03],
      [0x3b, 0x03],
      [0x83, 0x3b, 5],
      [0x85, 0x03],
      [0xf7, 0x03, 1, 0, 0, 0],
      [0x0f, 0xa3, 0x03],
    ]) {
      const machine = at();
      machine.gprs[RAX] = 5n;
      expect(run(machine, bytes, 5n).accesses).toEqual(["read 0 4"]);
      expect(moved(machine)).toBe(bytes.length);
    }
  });
  it("exchanges", () => {
    const xchg = at();
    xchg.gprs[RAX] = 7n;
    expect(run(xchg, [0x87, 0x03], 9n).memory).toBe(7n);
    expect(xchg.gprs[RAX]).toBe(9n);
    const xadd = at();
    xadd.gprs[RCX] = 7n;
    expect(run(xadd, [0xf0, 0x0f, 0xc1, 0x0b], 9n).memory).toBe(16n);
    expect(xadd.gprs[RCX]).toBe(9n);
    const equal = at();
    equal.gprs[RAX] = 9n;
    equal.gprs[RCX] = 3n;
    expect(run(equal, [0xf0, 0x0f, 0xb1, 0x0b], 9n).memory).toBe(3n);
    expect(equal.cpu.rflags & ZF).toBe(ZF);
    const unequal = at();
    unequal.gprs[RCX] = 3n;
    expect(run(unequal, [0x0f, 0xb1, 0x0b], 9n).accesses).toEqual(["read 0 4"]);
    expect(unequal.gprs[RAX]).toBe(9n);
    const pair = at(RDI);
    Object.assign(pair.gprs, { [RAX]: 1n, [RDX]: 2n, [RBX]: 3n, [RCX]: 4n });
    expect(run(pair, [0x0f, 0xc7, 0x0f], 0x2_0000_0001n).memory).toBe(0x4_0000_0003n);
  });
  it("pushes what it reads, and pops what it writes", () => {
    const machine = at();
    machine.gprs[RSP] = 0x8000n;
    run(machine, [0xff, 0x33], 0x1122_3344_5566_7788n);
    expect(machine.gprs[RSP]).toBe(0x7ff8n);
    expect(new DataView(machine.ram.buffer).getBigUint64(0x7ff8, true)).toBe(0x1122_3344_5566_7788n);
    machine.cpu.rip = BigInt(CODE);
    expect(run(machine, [0x8f, 0x03]).memory).toBe(0x1122_3344_5566_7788n);
    expect(machine.gprs[RSP]).toBe(0x8000n);
  });
});

describe("string instructions", () => {
  it("make one exit for each item that goes to user space, RIP in place until the last", () => {
    const machine = at(RDI);
    Object.assign(machine.gprs, { [RSI]: 0x3000n, [RCX]: 2n });
    machine.ram.set([1, 2, 3, 4], 0x3000);
    machine.put(0xf3, 0xa4);
    const emulator = createMmioEmulator();
    expect(emulator.emulate(machine.cpu)).toMatchObject({ kind: "mmio", isWrite: true, length: 1, data: Uint8Array.of(1) });
    expect([machine.gprs[RCX], machine.gprs[RSI], moved(machine)]).toEqual([1n, 0x3001n, 0]);
    expect(emulator.complete(machine.cpu, new Uint8Array(8)).kind).toBe("done");
    expect(emulator.emulate(machine.cpu)).toMatchObject({ gpa: MMIO + 1, data: Uint8Array.of(2) });
    expect(moved(machine)).toBe(2);
    expect(emulator.complete(machine.cpu, new Uint8Array(8)).kind).toBe("done");
  });
  it("go on by themselves where a device of the kernel takes it", () => {
    const machine = at(RDI);
    Object.assign(machine.gprs, { [RDI]: BigInt(DEVICE), [RAX]: 0x55n, [RCX]: 3n });
    expect(run(machine, [0xf3, 0xab]).kind).toBe("done");
    expect(machine.log).toEqual(["write 0 85 0 0 0", "write 4 85 0 0 0", "write 8 85 0 0 0"]);
    expect([machine.gprs[RCX], moved(machine)]).toEqual([0n, 2]);
  });
  it("read, compare and scan, downwards too", () => {
    const lods = at(RSI);
    lods.cpu.rflags |= 0x400n;
    run(lods, [0xac], 0x42n);
    expect([lods.gprs[RAX], lods.gprs[RSI]]).toEqual([0x42n, BigInt(MMIO - 1)]);
    const cmps = at(RSI);
    cmps.gprs[RDI] = 0x3000n;
    cmps.ram[0x3000] = 7;
    cmps.gprs[RCX] = 5n;
    run(cmps, [0xf3, 0xa6], 6n);
    expect([cmps.gprs[RCX], cmps.cpu.rflags & CF, moved(cmps)]).toEqual([4n, CF, 2]);
    const scas = at(RDI);
    Object.assign(scas.gprs, { [RAX]: 3n, [RCX]: 2n });
    run(scas, [0xf2, 0xae], 3n);
    expect(scas.cpu.rflags & ZF).toBe(ZF);
    expect(moved(scas)).toBe(2);
    const none = at(RDI);
    expect(run(none, [0xf3, 0xaa]).accesses).toEqual([]);
    expect(moved(none)).toBe(2);
  });
  it("count in 16 and 32 bits", () => {
    const machine = at(RDI);
    machine.gprs[RCX] = 0xffff_ffff_0000_0001n;
    run(machine, [0x67, 0xf3, 0xaa]);
    expect(machine.gprs[RCX]).toBe(0n);
    expect(moved(machine)).toBe(3);
  });
});

describe("what goes wrong", () => {
  it("changes nothing when a page is absent, whichever access finds out", () => {
    const machine = at();
    machine.absent.add(3n);
    Object.assign(machine.gprs, { [RDI]: 0x3000n, [RSI]: BigInt(DEVICE), [RCX]: 5n });
    machine.put(0xf3, 0xa5);
    const before = [...machine.gprs];
    expect(createMmioEmulator().emulate(machine.cpu)).toEqual({
      kind: "fault",
      fault: { vector: 14, errorCode: 2, cr2: 0x3000n },
    });
    expect([...machine.gprs]).toEqual(before);
    expect(moved(machine)).toBe(0);
  });
  it("reports instructions that it does not know with their bytes", () => {
    for (const bytes of [
      [0x0f, 0x10, 0x03], // MOVUPS
      [0xf7, 0x23], // MUL
      [0xd9, 0x03], // FLD
      [0xc7, 0x4b, 0],
      [0xff, 0x13], // CALL
      [0x0f, 0x38, 0x00],
      [0xf2, 0x0f, 0x38, 0xf1, 0x03], // CRC32
    ]) {
      const machine = at();
      machine.put(...bytes);
      const result = createMmioEmulator().emulate(machine.cpu);
      expect(result.kind, bytes.join(" ")).toBe("unsupported");
      if (result.kind === "unsupported") {
        expect(result.bytes).toHaveLength(15);
        expect([...result.bytes.subarray(0, bytes.length)]).toEqual(bytes);
      }
    }
  });
  it("says so when there is no memory to fetch from, and faults when the page is absent", () => {
    const machine = at();
    machine.cpu.rip = BigInt(MMIO);
    expect(createMmioEmulator().emulate(machine.cpu)).toEqual({ kind: "unsupported", bytes: new Uint8Array(0) });
    machine.absent.add(BigInt(MMIO) >> 12n);
    expect(createMmioEmulator().emulate(machine.cpu).kind).toBe("fault");
  });
  it("fetches over a page boundary, and only as far as the instruction goes", () => {
    const machine = at();
    machine.ram.set([0x89, 0x03], 0x1fff);
    machine.cpu.rip = 0x1fffn;
    expect(createMmioEmulator().emulate(machine.cpu)).toMatchObject({ kind: "mmio", isWrite: true });
    expect(machine.cpu.rip).toBe(0x2001n);
    const edge = at();
    edge.ram.set([0x89, 0x03], 0x1ffe);
    edge.cpu.rip = 0x1ffen;
    edge.absent.add(2n);
    expect(createMmioEmulator().emulate(edge.cpu).kind).toBe("mmio");
    edge.cpu.rip = 0x1fffn;
    expect(createMmioEmulator().emulate(edge.cpu).kind).toBe("fault"); // ModRM is on the absent page
  });
});

describe("on the way to user space and back", () => {
  it("splits accesses at pages, and reads a device once", () => {
    const machine = at();
    machine.gprs[RBX] = BigInt(MMIO + 0xffe);
    machine.put(0x8b, 0x03);
    const emulator = createMmioEmulator();
    expect(emulator.emulate(machine.cpu)).toMatchObject({ gpa: MMIO + 0xffe, length: 2 });
    expect(emulator.complete(machine.cpu, Uint8Array.of(1, 2))).toMatchObject({ gpa: MMIO + 0x1000, length: 2 });
    expect(emulator.complete(machine.cpu, Uint8Array.of(3, 4, 9, 9, 9, 9, 9, 9)).kind).toBe("done");
    expect(machine.gprs[RAX]).toBe(0x0403_0201n);

    const both = at(RDI);
    both.gprs[RSI] = BigInt(DEVICE);
    both.put(0xa7); // CMPSD: device, then user space
    const second = createMmioEmulator();
    expect(second.emulate(both.cpu).kind).toBe("mmio");
    expect(second.complete(both.cpu, new Uint8Array(4)).kind).toBe("done");
    expect(both.log).toEqual(["read 0 4"]);
  });
  it("can be saved and restored in the middle of a read and of a write", () => {
    const machine = at();
    machine.gprs[RBX] = BigInt(MMIO + 0xffe);
    machine.put(0x8b, 0x03);
    const emulator = createMmioEmulator();
    expect(emulator.save(3)).toBeUndefined();
    emulator.emulate(machine.cpu);
    emulator.complete(machine.cpu, Uint8Array.of(1, 2));
    const section = emulator.save(3)!;
    expect(section).toMatchObject({ name: "vcpu.pending-exit", instance: 3 });
    const other = createMmioEmulator();
    expect(other.restore(section)).toBeUndefined();
    expect(other.pending).toBe(true);
    expect(other.save(3)).toEqual(section);
    expect(other.complete(machine.cpu, Uint8Array.of(3, 4)).kind).toBe("done");
    expect(machine.gprs[RAX]).toBe(0x0403_0201n);

    const writer = at();
    writer.gprs[RBX] = BigInt(MMIO + 0xffe);
    writer.gprs[RAX] = 0x0403_0201n;
    writer.put(0x89, 0x03);
    emulator.emulate(writer.cpu);
    const writing = emulator.save(0)!;
    expect(other.restore(writing)).toBeUndefined();
    expect(other.save(0)).toEqual(writing);
    expect(other.complete(writer.cpu, new Uint8Array(8))).toMatchObject({ gpa: MMIO + 0x1000, data: Uint8Array.of(3, 4) });
    expect(other.complete(writer.cpu, new Uint8Array(8)).kind).toBe("done");
    expect(other.restore({ ...writing, version: 9 })).toContain("version 9");
  });
  it("forgets a read when user space moved the vCPU, and when told", () => {
    const machine = at();
    machine.put(0x8b, 0x03);
    const emulator = createMmioEmulator();
    emulator.emulate(machine.cpu);
    machine.cpu.rip = 0x2000n;
    expect(emulator.complete(machine.cpu, new Uint8Array(8)).kind).toBe("done");
    expect([machine.gprs[RAX], machine.cpu.rip]).toEqual([0n, 0x2000n]);
    machine.cpu.rip = BigInt(CODE);
    emulator.emulate(machine.cpu);
    emulator.clear();
    expect(emulator.pending).toBe(false);
  });
});
