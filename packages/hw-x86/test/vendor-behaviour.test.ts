/**
 * Each difference between the vendors' processors (engine/vendor-behaviour.ts), pinned for both: what the instruction leaves on
 * either. The expectations are what Xeon and EPYC processors did; silicon.test.ts compares with the processor at hand.
 */
import { describe, expect, test } from "vitest";
import type { CpuModel } from "../src/engine/cpu.ts";
import { RAX, RBX, RCX, RDI, RSI, RSP } from "../src/engine/cpu-state.ts";
import { behaviourOf, VendorBehaviour } from "../src/engine/vendor-behaviour.ts";
import { type CaseCodeSize, CODE, codeBase, DATA, DATA_BYTES } from "./silicon/case-generator.ts";
import { EngineRunner, emptyOutcome, type Outcome } from "./silicon/engine-runner.ts";
import { initialFx } from "./silicon/fpu-state.ts";

type Vendor = CpuModel["vendor"];
const VENDORS: readonly Vendor[] = ["intel", "amd"];
const BP = 3,
  SS = 12,
  GP = 13,
  PF = 14;
const FILL = 0x41;
const END = BigInt(DATA + DATA_BYTES);
const UNMAPPED = 0x5000_0000n;
const NOT_CANONICAL = 1n << 60n;
const UPPER = 0xdead_0000_0000_0000n;

interface Ran extends Outcome {
  /** RIP from the start of the code. */
  readonly at: number;
  readonly data: Uint8Array;
}

interface Start {
  readonly codeSize?: CaseCodeSize;
  readonly registers?: Readonly<Record<number, bigint>>;
  readonly flags?: number;
  readonly fx?: Uint8Array;
  readonly ymm?: Uint8Array;
}

const runners = new Map(VENDORS.map((vendor) => [vendor, new EngineRunner(new Uint8Array(DATA_BYTES).fill(FILL), vendor)]));

function run(vendor: Vendor, code: readonly number[], start: Start): Ran {
  const runner = runners.get(vendor);
  if (runner === undefined) throw new Error(`no engine for ${vendor}`);
  const codeSize = start.codeSize ?? 64;
  const gpr = new BigUint64Array(16);
  gpr[RSP] = BigInt(DATA + 0x1000);
  for (const [register, value] of Object.entries(start.registers ?? {})) gpr[Number(register)] = value;
  const outcome = emptyOutcome();
  const ymm = start.ymm ?? new Uint8Array(256);
  const rest = { starts: [0], undefinedFlags: [0], names: [], fx: start.fx ?? initialFx(), ymm };
  runner.run({ codeSize, gpr, rflags: start.flags ?? 0x202, code: Uint8Array.from([...code, 0xcc]), ...rest }, outcome);
  return { ...outcome, at: Number(outcome.rip - BigInt(codeBase(codeSize))), data: runner.data() };
}

test("only vendors that are known behave as one: a bit for each difference", () => {
  const bits = Object.values(VendorBehaviour);
  expect(new Set(bits).size).toBe(bits.length);
  expect(behaviourOf("intel")).toBe(2 ** bits.length - 1);
  expect(behaviourOf("amd")).toBe(0);
});

describe("repeated string instructions with 32-bit addresses in 64-bit mode", () => {
  const opcodes = { MOVS: 0xa4, CMPS: 0xa6, STOS: 0xaa, LODS: 0xac, SCAS: 0xae };
  const cleared: Record<string, readonly number[]> = {
    MOVS: [RCX, RSI, RDI],
    CMPS: [RCX],
    STOS: [RCX, RDI],
    LODS: [RCX],
    SCAS: [RCX],
  };
  const cases = Object.entries(opcodes).flatMap(([name, opcode]) =>
    [0xf3, 0xf2].flatMap((prefix) =>
      [0, 1].flatMap((width) => [0n, 5n].map((count) => ({ name, prefix, opcode: opcode + width, count }))),
    ),
  );
  test.for(cases)("$prefix $name $opcode, $count times", ({ name, prefix, opcode, count }) => {
    const before: Record<number, bigint> = {
      [RCX]: UPPER | count,
      [RSI]: UPPER | UNMAPPED,
      [RDI]: UPPER | (UNMAPPED + 0x1000n),
    };
    for (const vendor of VENDORS) {
      const ran = run(vendor, [0x67, prefix, opcode], { registers: before });
      expect(ran.vector).toBe(count === 0n ? BP : PF);
      for (const register of [RCX, RSI, RDI]) {
        const isCleared = vendor === "intel" && (cleared[name] as readonly number[]).includes(register);
        const old = before[register] as bigint;
        expect(ran.gpr[register]).toBe(isCleared ? BigInt.asUintN(32, old) : old);
      }
    }
  });

  test("do the same on both where an element was done, and with 64-bit addresses", () => {
    for (const vendor of VENDORS) {
      const registers = { [RCX]: UPPER | 5n, [RDI]: UPPER | (END - 2n) };
      const done = run(vendor, [0x67, 0xf3, 0xaa], { registers });
      expect([done.vector, done.gpr[RCX], done.gpr[RDI]]).toEqual([PF, 3n, END]);
      const wide = run(vendor, [0xf3, 0xaa], { registers: { [RDI]: UPPER } });
      expect([wide.vector, wide.gpr[RDI]]).toEqual([BP, UPPER]);
    }
  });

  test("without a prefix leave registers alone when they fault", () => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, [0x67, 0xa4], { registers: { [RSI]: UPPER | UNMAPPED, [RCX]: UPPER } });
      expect([ran.vector, ran.gpr[RSI], ran.gpr[RCX]]).toEqual([PF, UPPER | UNMAPPED, UPPER]);
    }
  });
});

describe("flags of comparisons that repeat", () => {
  const ALL = 0x8d5;
  const TF = 0x100;
  // [prefix and opcode, what AL holds]: each goes on over bytes of FILL
  const cases: [string, number[], number][] = [
    ["REPE CMPSB", [0xf3, 0xa6], 0],
    ["REPE SCASB", [0xf3, 0xae], FILL],
    ["REPNE SCASB", [0xf2, 0xae], 0],
  ];
  // 0 - FILL: CF, AF, SF and, by its low byte 0xbf, odd parity
  const ofElement = (name: string): number => (name.startsWith("REPE") ? 0x44 : 0x91);
  test.for(cases)("%s: a fault on the way", ([name, code, al]) => {
    for (const vendor of VENDORS) {
      for (const flags of [0x202, 0x202 | ALL]) {
        const registers = { [RAX]: BigInt(al), [RCX]: 100n, [RSI]: END - 40n, [RDI]: END - 10n };
        const ran = run(vendor, code, { registers, flags });
        expect([ran.vector, ran.at, ran.gpr[RCX]]).toEqual([PF, 0, 90n]);
        expect(ran.rflags & ALL).toBe(vendor === "intel" ? flags & ALL : ofElement(name));
      }
    }
  });
  test.for(cases)("%s: a trap after the first element", ([name, code, al]) => {
    for (const vendor of VENDORS) {
      const registers = { [RAX]: BigInt(al), [RCX]: 100n, [RSI]: END - 400n, [RDI]: END - 300n };
      const ran = run(vendor, code, { registers, flags: 0x202 | TF | ALL });
      expect([ran.vector, ran.at, ran.gpr[RCX]]).toEqual([1, 0, 99n]);
      expect(ran.rflags & ALL).toBe(vendor === "intel" ? ALL : ofElement(name));
    }
  });
  test.for(cases)("%s: are those of the last element in the end", ([name, code, al]) => {
    for (const vendor of VENDORS) {
      const registers = { [RAX]: BigInt(al), [RCX]: 10n, [RSI]: END - 40n, [RDI]: END - 20n };
      const ran = run(vendor, code, { registers, flags: 0x202 | ALL });
      expect([ran.vector, ran.gpr[RCX], ran.rflags & ALL]).toEqual([BP, 0n, ofElement(name)]);
    }
  });
});

describe("a near call that is refused", () => {
  /** The 8 bytes below 0x1000, where the stack pointer is. */
  const pushed = (ran: Ran): number => Buffer.from(ran.data.buffer).readUInt32LE(0x1000 - 8);
  const FILLED = FILL * 0x0101_0101;
  test("has written the return address on Intel's", () => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, [0xff, 0xd0], { registers: { [RAX]: NOT_CANONICAL } });
      expect([ran.vector, ran.error, ran.at, ran.gpr[RSP]]).toEqual([GP, 0, 0, BigInt(DATA + 0x1000)]);
      expect(pushed(ran)).toBe(vendor === "intel" ? CODE + 2 : FILLED);
    }
  });
  test("faults at the stack first on Intel's", () => {
    for (const [stack, vector] of [
      [UNMAPPED, PF],
      [NOT_CANONICAL, SS],
    ] as const) {
      for (const vendor of VENDORS) {
        const ran = run(vendor, [0xff, 0xd0], { registers: { [RAX]: NOT_CANONICAL, [RSP]: stack } });
        expect([ran.vector, ran.gpr[RSP]]).toEqual([vendor === "intel" ? vector : GP, stack]);
      }
    }
  });
  test("beyond the limit of a 16-bit segment, direct and not", () => {
    for (const code of [
      [0x66, 0xff, 0xd0],
      [0x66, 0xe8, 0, 0, 1, 0],
    ]) {
      for (const vendor of VENDORS) {
        const ran = run(vendor, code, { codeSize: 16, registers: { [RAX]: 0x1_0000n, [RSP]: 0x1000n } });
        expect([ran.vector, ran.at, ran.gpr[RSP]]).toEqual([GP, 0, 0x1000n]);
        const word = Buffer.from(ran.data.buffer).readUInt32LE(0x1000 - 4);
        expect(word).toBe(vendor === "intel" ? code.length : FILLED);
      }
    }
  });
  test("is no jump: that leaves the stack alone on both", () => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, [0xff, 0xe0], { registers: { [RAX]: NOT_CANONICAL } });
      expect([ran.vector, pushed(ran)]).toEqual([GP, FILLED]);
    }
  });
});

describe("MMX with a memory operand that faults", () => {
  function deepStack(): Uint8Array {
    const fx = initialFx();
    fx[3] = 3 << 3;
    fx[4] = 0x0f;
    return fx;
  }
  // [name, code, abridged tags on Intel's]: TOP is 3, four registers are in use
  const stores: [string, number[], number][] = [
    ["MOVQ store", [0x0f, 0x7f, 0x06], 0x0f],
    ["MOVD store", [0x0f, 0x7e, 0x06], 0x0f],
    ["MOVNTQ", [0x0f, 0xe7, 0x06], 0x0f],
    ["MASKMOVQ", [0x0f, 0xf7, 0xc1], 0xff],
  ];
  test.for(stores)("%s has set TOP on Intel's", ([, code, tags]) => {
    const fx = deepStack();
    fx[32 + 4 * 16 + 7] = 0x80;
    // MM1, in ST(1 - TOP) of the image: its mask chooses a byte
    fx[32 + 6 * 16 + 7] = 0x80;
    for (const vendor of VENDORS) {
      for (const address of [UNMAPPED, NOT_CANONICAL]) {
        const ran = run(vendor, code, { fx, registers: { [RSI]: address, [RDI]: address } });
        expect([ran.vector, ran.at]).toEqual([address === UNMAPPED ? PF : GP, 0]);
        expect([ran.fx[3], ran.fx[4]]).toEqual(vendor === "intel" ? [0, tags] : [3 << 3, 0x0f]);
      }
    }
  });
  test.for([
    ["MOVQ load", [0x0f, 0x6f, 0x06]],
    ["PADDB", [0x0f, 0xfc, 0x06]],
  ] as [string, number[]][])("%s has changed nothing", ([, code]) => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, code, { fx: deepStack(), registers: { [RSI]: UNMAPPED } });
      expect([ran.vector, ran.fx[3], ran.fx[4]]).toEqual([PF, 3 << 3, 0x0f]);
    }
  });
  test.for(stores)("%s that does not fault ends the same", ([, code]) => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, code, { fx: deepStack(), registers: { [RSI]: BigInt(DATA), [RDI]: BigInt(DATA) } });
      expect([ran.vector, ran.fx[3], ran.fx[4]]).toEqual([BP, 0, 0xff]);
    }
  });
});

describe("an x87 store that stores nothing", () => {
  // An empty stack: underflow is invalid
  const stores: [string, number[]][] = [
    ["FST m32", [0xd9, 0x16]],
    ["FSTP m32", [0xd9, 0x1e]],
    ["FSTP m64", [0xdd, 0x1e]],
    ["FSTP m80", [0xdb, 0x3e]],
    ["FIST m16", [0xdf, 0x16]],
    ["FISTP m32", [0xdb, 0x1e]],
    ["FISTP m64", [0xdf, 0x3e]],
    ["FBSTP", [0xdf, 0x36]],
  ];
  const withControl = (control: number): Uint8Array => {
    const fx = initialFx();
    fx[0] = control;
    return fx;
  };
  test.for(stores)("%s does not touch its operand on Intel's", ([, code]) => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, code, { fx: withControl(0x7e), registers: { [RSI]: UNMAPPED } });
      expect(ran.vector).toBe(vendor === "intel" ? BP : PF);
      // IE, SF, ES, B; or nothing
      expect((ran.fx[2] as number) | ((ran.fx[3] as number) << 8)).toBe(vendor === "intel" ? 0x80c1 : 0);
    }
  });
  test.for(stores)("%s with the exception masked faults", ([, code]) => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, code, { fx: withControl(0x7f), registers: { [RSI]: UNMAPPED } });
      expect([ran.vector, ran.fx[2]]).toEqual([PF, 0]);
    }
  });
});

describe("sines of tiny angles", () => {
  // ST(0) of 2^-100, rounding down
  function angle(exponent: number): Uint8Array {
    const fx = initialFx();
    const view = new DataView(fx.buffer);
    view.setUint16(0, 0x77f, true);
    view.setUint16(2, 7 << 11, true);
    fx[4] = 0x80;
    view.setBigUint64(32, 1n << 63n, true);
    view.setUint16(40, 0x3fff + exponent, true);
    return fx;
  }
  const st0 = (fx: Uint8Array): string => Buffer.from(fx.subarray(32, 42)).reverse().toString("hex");
  test.for([
    ["FSIN", [0xd9, 0xfe], -100, "3f9b8000000000000000", "3f9affffffffffffffff"],
    ["FCOS", [0xd9, 0xff], -100, "3fff8000000000000000", "3ffeffffffffffffffff"],
    ["FSINCOS", [0xd9, 0xfb], -100, "3fff8000000000000000", "3ffeffffffffffffffff"],
    ["FSIN at the limit", [0xd9, 0xfe], -69, "3fba8000000000000000", "3fb9ffffffffffffffff"],
    ["FSIN above it", [0xd9, 0xfe], -68, "3fbaffffffffffffffff", "3fbaffffffffffffffff"],
  ] as [string, number[], number, string, string][])("%s", ([, code, exponent, intel, amd]) => {
    for (const vendor of VENDORS) {
      const ran = run(vendor, code, { fx: angle(exponent) });
      expect([ran.vector, st0(ran.fx)]).toEqual([BP, vendor === "intel" ? intel : amd]);
      expect((ran.fx[2] as number) & 0x3f).toBe(0x20);
    }
  });
});

describe("SHA with a memory operand that is not aligned", () => {
  const forms: Readonly<Record<string, readonly number[]>> = {
    SHA1NEXTE: [0x0f, 0x38, 0xc8],
    SHA1MSG1: [0x0f, 0x38, 0xc9],
    SHA1MSG2: [0x0f, 0x38, 0xca],
    SHA256RNDS2: [0x0f, 0x38, 0xcb],
    SHA256MSG1: [0x0f, 0x38, 0xcc],
    SHA256MSG2: [0x0f, 0x38, 0xcd],
    SHA1RNDS4: [0x0f, 0x3a, 0xcc],
  };
  test.for(Object.entries(forms))("%s", ([name, opcode]) => {
    const immediate = name === "SHA1RNDS4" ? [0] : [];
    for (const vendor of VENDORS) {
      const [odd, even] = [1n, 0n].map((offset) =>
        run(vendor, [...opcode, 0x06, ...immediate], { registers: { [RSI]: BigInt(DATA) + offset } }),
      );
      expect(odd?.vector).toBe(vendor === "intel" ? GP : BP);
      expect(even?.vector).toBe(BP);
    }
  });
});

test("a gather that faults leaves what was not loaded a mask of ones on Intel's, and the mask that was on AMD's", () => {
  // vpgatherdd xmm1, [rax + xmm2], xmm3: the first element is there, the others are not
  const code = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x10];
  const fx = initialFx();
  const view = new DataView(fx.buffer);
  const xmm = (index: number, lanes: readonly number[]): void =>
    lanes.forEach((lane, i) => {
      view.setUint32(160 + index * 16 + i * 4, lane, true);
    });
  xmm(2, [0, 0x4000_0000, 0x4000_0000, 0x4000_0000]);
  xmm(3, [0x8000_0001, 0x8000_0002, 0x0000_0003, 0xffff_ffff]);
  const mask = (vendor: Vendor): number[] => {
    const ran = run(vendor, code, { fx, registers: { [RAX]: BigInt(DATA) } });
    expect(ran.vector).toBe(14);
    const after = new DataView(ran.fx.buffer);
    expect(after.getUint32(160 + 16, true)).toBe(FILL * 0x0101_0101);
    return [0, 1, 2, 3].map((lane) => after.getUint32(160 + 48 + lane * 4, true));
  };
  expect(mask("intel")).toEqual([0, 0xffff_ffff, 0, 0xffff_ffff]);
  expect(mask("amd")).toEqual([0, 0x8000_0002, 0x0000_0003, 0xffff_ffff]);
});

test.for([
  ["LFS", 0xb4],
  ["LGS", 0xb5],
] as [string, number][])("%s with REX.W reads 64 bits and a selector on Intel's, 32 and a selector on AMD's", ([, opcode]) => {
  const stores = [0x48, 0x89, 0x1e, 0x48, 0x89, 0x4e, 0x08]; // mov [rsi], rbx; mov [rsi+8], rcx
  const pointer = 0x9999_0000_8765_4321n;
  const registers = { [RAX]: UPPER, [RBX]: pointer, [RCX]: 0n, [RSI]: BigInt(DATA) };
  for (const vendor of VENDORS) {
    const wide = run(vendor, [...stores, 0x48, 0x0f, opcode, 0x06], { registers });
    expect([wide.vector, wide.gpr[RAX]]).toEqual([BP, vendor === "intel" ? pointer : 0x8765_4321n]);
    const narrow = run(vendor, [...stores, 0x0f, opcode, 0x06], { registers });
    expect([narrow.vector, narrow.gpr[RAX]]).toEqual([BP, 0x8765_4321n]);
    // Of the last six bytes of the page a pointer of 64 bits has no more than these
    const end = run(vendor, [0x31, 0xc0, 0x48, 0x89, 0x06, 0x48, 0x0f, opcode, 0x46, 0x02], {
      registers: { [RAX]: UPPER, [RSI]: END - 8n },
    });
    expect([end.vector, end.gpr[RAX]]).toEqual(vendor === "intel" ? [PF, 0n] : [BP, 0n]);
  }
});

test("SERIALIZE is an instruction of Intel's processors, as CPUID says", () => {
  const UD = 6;
  for (const vendor of VENDORS) {
    const { vector } = run(vendor, [0x0f, 0x01, 0xe8], {});
    expect(vector).toBe(vendor === "intel" ? BP : UD);
  }
});
