/** XSAVE and its family: formats, what is written and what is left, faults, XCR0. */
import { beforeEach, describe, expect, it } from "vitest";
import { RAX, RBX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { CODE, createSystemMachine, DATA, type SystemMachine } from "./system-machine.ts";

const UD = 6;
const NM = 7;
const GP = 13;
const OSXSAVE = 0x4_0000n;
const AREA = DATA;
const HEADER = AREA + 512;
const X87 = 1;
const SSE = 2;
const AVX = 4;

// All with the area at [rbx]
const XSAVE = [0x0f, 0xae, 0x23];
const XSAVEOPT = [0x0f, 0xae, 0x33];
const XSAVEC = [0x0f, 0xc7, 0x23];
const XSAVES = [0x0f, 0xc7, 0x2b];
const XRSTOR = [0x0f, 0xae, 0x2b];
const XRSTORS = [0x0f, 0xc7, 0x1b];
const XGETBV = [0x0f, 0x01, 0xd0];
const XSETBV = [0x0f, 0x01, 0xd1];

let m: SystemMachine;

function prepare(mode: 32 | 64 = 64, xcr0 = 7): SystemMachine {
  m = createSystemMachine(mode);
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | OSXSAVE);
  m.engine.set64(state.xcr0, BigInt(xcr0));
  m.engine.setReg(RBX, BigInt(AREA));
  return m;
}

/** Runs the instruction for these components; undefined, or the vector that it ended in. */
function run(code: readonly number[], components = 7): number | undefined {
  m.engine.setReg(RAX, BigInt(components));
  m.engine.setReg(RDX, 0n);
  m.code(...code, 0xf4);
  const vector = m.runToHandler();
  return vector < 0 ? undefined : vector;
}

const fill = (byte: number): void => {
  m.ram.fill(byte, AREA, AREA + 4096);
};
const emptyArea = (): void => {
  m.ram.fill(0, AREA, AREA + 4096);
};
const setXmm = (index: number, value: bigint): void => m.engine.set64(state.xmm + index * 16, value);
const xmm = (index: number): bigint => m.engine.get64(state.xmm + index * 16);
const setYmm = (index: number, value: bigint): void => m.engine.set64(state.ymmHigh + index * 16, value);
const ymm = (index: number): bigint => m.engine.get64(state.ymmHigh + index * 16);
const xstateBv = (): bigint => m.memory.getBigUint64(HEADER, true);
const xcompBv = (): bigint => m.memory.getBigUint64(HEADER + 8, true);
const setHeader = (present: number, layout = 0n): void => {
  m.ram.fill(0, HEADER, HEADER + 64);
  m.memory.setBigUint64(HEADER, BigInt(present), true);
  m.memory.setBigUint64(HEADER + 8, layout, true);
};
const COMPACTED = 1n << 63n;

/** x87, SSE and AVX all in use. */
function useAll(): void {
  m.engine.u16[state.fpuControl >> 1] = 0x27f;
  for (let i = 0; i < 16; i++) {
    setXmm(i, BigInt(0x100 + i));
    setYmm(i, BigInt(0x200 + i));
  }
}

beforeEach(() => {
  prepare();
});

describe("XSAVE", () => {
  it("writes what is asked for and the header's XSTATE_BV, and nothing else", () => {
    useAll();
    fill(0xee);
    m.memory.setBigUint64(HEADER, 0n, true);
    expect(run(XSAVE)).toBeUndefined();
    expect(xstateBv()).toBe(7n);
    expect(m.memory.getUint16(AREA, true)).toBe(0x27f);
    expect(m.memory.getUint32(AREA + 24, true)).toBe(0x1f80);
    expect(m.memory.getBigUint64(AREA + 160 + 15 * 16, true)).toBe(0x10fn);
    expect(m.memory.getBigUint64(AREA + 576 + 15 * 16, true)).toBe(0x20fn);
    // 416 to 511 and the header behind XSTATE_BV are left
    expect(m.ram.subarray(AREA + 416, AREA + 512).every((byte) => byte === 0xee)).toBe(true);
    expect(m.ram.subarray(HEADER + 8, HEADER + 64).every((byte) => byte === 0xee)).toBe(true);
    expect(m.ram[AREA + 832]).toBe(0xee);
  });

  it("keeps XSTATE_BV of components that are not asked for, and writes initial state too", () => {
    emptyArea();
    setHeader(AVX | X87);
    m.ram.fill(0xee, AREA + 576, AREA + 832);
    expect(run(XSAVE, SSE)).toBeUndefined();
    expect(xstateBv()).toBe(BigInt(AVX | X87));
    expect(run(XSAVE, AVX)).toBeUndefined();
    expect(xstateBv()).toBe(BigInt(X87));
    expect(m.ram[AREA + 576]).toBe(0);
  });

  it("asks XCR0 which components there are", () => {
    prepare(64, 3);
    useAll();
    emptyArea();
    expect(run(XSAVE, 0xffff_ffff)).toBeUndefined();
    expect(xstateBv()).toBe(3n);
    expect(m.ram[AREA + 576]).toBe(0);
  });

  it("saves MXCSR with AVX alone, and eight registers outside 64-bit mode", () => {
    prepare(32);
    useAll();
    m.engine.set32(state.mxcsr, 0x1fa0);
    fill(0xee);
    m.memory.setBigUint64(HEADER, 0n, true);
    expect(run(XSAVE, AVX)).toBeUndefined();
    expect(m.memory.getUint32(AREA + 24, true)).toBe(0x1fa0);
    expect(m.memory.getUint32(AREA + 28, true)).toBe(0xffff);
    expect(m.memory.getBigUint64(AREA + 576 + 7 * 16, true)).toBe(0x207n);
    expect(m.ram[AREA + 576 + 128]).toBe(0xee);
    expect(m.ram[AREA + 160]).toBe(0xee);
    expect(run(XSAVE, SSE)).toBeUndefined();
    expect(m.memory.getBigUint64(AREA + 160 + 7 * 16, true)).toBe(0x107n);
    expect(m.ram[AREA + 288]).toBe(0xee);
  });

  it("XSAVEOPT leaves out what is in its initial state", () => {
    setXmm(3, 5n);
    fill(0xee);
    m.memory.setBigUint64(HEADER, 7n, true);
    expect(run(XSAVEOPT)).toBeUndefined();
    expect(xstateBv()).toBe(BigInt(SSE));
    expect(m.memory.getBigUint64(AREA + 160 + 48, true)).toBe(5n);
    expect(m.ram[AREA + 576]).toBe(0xee);
    expect(m.ram[AREA]).toBe(0xee);
    expect(m.memory.getUint32(AREA + 24, true)).toBe(0x1f80);
  });

  it("writes 64-bit pointers with REX.W, selectors without", () => {
    m.engine.set64(state.fpuIp, 0x1234_5678_9abcn);
    m.engine.u16[state.fpuCs >> 1] = 0x77;
    emptyArea();
    expect(run([0x48, ...XSAVE])).toBeUndefined();
    expect(m.memory.getBigUint64(AREA + 8, true)).toBe(0x1234_5678_9abcn);
    expect(run(XSAVE)).toBeUndefined();
    expect(m.memory.getBigUint64(AREA + 8, true)).toBe(0x77_5678_9abcn);
  });
});

describe("the compacted format", () => {
  for (const [name, code] of [
    ["XSAVEC", XSAVEC],
    ["XSAVES", XSAVES],
  ] as const) {
    it(`${name} puts components one behind the other and says which`, () => {
      useAll();
      fill(0xee);
      expect(run(code, AVX | X87)).toBeUndefined();
      expect(xstateBv()).toBe(BigInt(AVX | X87));
      expect(xcompBv()).toBe(COMPACTED | BigInt(AVX | X87));
      expect(m.memory.getBigUint64(AREA + 576 + 16, true)).toBe(0x201n);
      // MXCSR belongs to SSE here
      expect(m.ram[AREA + 24]).toBe(0xee);
      expect(m.ram[HEADER + 16]).toBe(0xee);
    });

    it(`${name} saves SSE for MXCSR alone and leaves out initial state`, () => {
      m.engine.set32(state.mxcsr, 0x1fa0);
      fill(0xee);
      expect(run(code)).toBeUndefined();
      expect(xstateBv()).toBe(BigInt(SSE));
      expect(xcompBv()).toBe(COMPACTED | 7n);
      expect(m.memory.getUint32(AREA + 24, true)).toBe(0x1fa0);
      expect(m.ram[AREA + 576]).toBe(0xee);
    });
  }

  it("comes back through XRSTOR and XRSTORS", () => {
    for (const [save, restore] of [
      [XSAVEC, XRSTOR],
      [XSAVES, XRSTORS],
      [XSAVE, XRSTOR],
    ] as const) {
      prepare();
      useAll();
      emptyArea();
      expect(run(save)).toBeUndefined();
      m.engine.u16[state.fpuControl >> 1] = 0x37f;
      for (let i = 0; i < 16; i++) {
        setXmm(i, 1n);
        setYmm(i, 2n);
      }
      expect(run(restore)).toBeUndefined();
      expect(m.engine.u16[state.fpuControl >> 1]).toBe(0x27f);
      expect([xmm(0), xmm(15), ymm(0), ymm(15)]).toEqual([0x100n, 0x10fn, 0x200n, 0x20fn]);
    }
  });
});

describe("XRSTOR", () => {
  it("initializes what is asked for and absent, and leaves the rest", () => {
    useAll();
    m.engine.set32(state.mxcsr, 0x1fa0);
    emptyArea();
    m.memory.setUint32(AREA + 24, 0x1f80, true);
    setHeader(0);
    expect(run(XRSTOR, AVX)).toBeUndefined();
    expect([xmm(1), ymm(1)]).toEqual([0x101n, 0n]);
    // The standard format loads MXCSR with AVX or SSE, present or not
    expect(m.engine.get32(state.mxcsr)).toBe(0x1f80);
    expect(run(XRSTOR, X87 | SSE)).toBeUndefined();
    expect(m.engine.u16[state.fpuControl >> 1]).toBe(0x37f);
    expect(xmm(1)).toBe(0n);
  });

  it("initializes MXCSR of a compacted area without SSE", () => {
    m.engine.set32(state.mxcsr, 0x1fa0);
    emptyArea();
    m.memory.setUint32(AREA + 24, 0xffff_ffff, true);
    setHeader(0, COMPACTED | 7n);
    expect(run(XRSTOR, AVX)).toBeUndefined();
    expect(m.engine.get32(state.mxcsr)).toBe(0x1fa0);
    expect(run(XRSTOR, SSE)).toBeUndefined();
    expect(m.engine.get32(state.mxcsr)).toBe(0x1f80);
  });

  it("refuses headers that say what cannot be", () => {
    const header = (present: number, layout: bigint, extra = -1): void => {
      emptyArea();
      setHeader(present, layout);
      if (extra >= 0) m.ram[HEADER + extra] = 1;
    };
    header(8, 0n);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, 1n);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, 0n, 16);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, 0n, 24);
    expect(run(XRSTOR, 1)).toBeUndefined();
    prepare();
    header(2, COMPACTED | 1n);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, COMPACTED | 8n);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, COMPACTED | 7n, 63);
    expect(run(XRSTOR, 1)).toBe(GP);
    prepare();
    header(0, 0n);
    expect(run(XRSTORS, 1)).toBe(GP);
  });

  it("refuses bits of MXCSR that do not exist, with nothing changed", () => {
    useAll();
    emptyArea();
    setHeader(7);
    m.memory.setUint32(AREA + 24, 0x1_0000, true);
    expect(run(XRSTOR)).toBe(GP);
    expect([m.engine.u16[state.fpuControl >> 1], xmm(2), ymm(2)]).toEqual([0x27f, 0x102n, 0x202n]);
    // Nobody looks without SSE and AVX
    expect(run(XRSTOR, X87)).toBeUndefined();
  });
});

describe("faults", () => {
  it("is undefined without CR4.OSXSAVE, and waits for CR0.TS", () => {
    for (const code of [XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS, XGETBV, XSETBV]) {
      prepare();
      m.engine.setReg(RCX, 0n);
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) & ~OSXSAVE);
      expect(run(code)).toBe(UD);
    }
    for (const code of [XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS]) {
      prepare();
      m.engine.set64(state.cr0, m.engine.get64(state.cr0) | 8n);
      expect(run(code)).toBe(NM);
    }
  });

  it("needs an area aligned to 64 bytes, and LOCK is undefined", () => {
    for (const code of [XSAVE, XRSTOR, XSAVES]) {
      prepare();
      m.engine.setReg(RBX, BigInt(AREA + 16));
      expect(run(code)).toBe(GP);
      prepare();
      expect(run([0xf0, ...code])).toBe(UD);
    }
  });

  it("keeps XSAVES, XRSTORS and XSETBV to CPL 0", () => {
    for (const code of [XSAVES, XRSTORS, XSETBV]) {
      prepare();
      m.engine.setReg(RCX, 0n);
      m.enterUser();
      expect(run(code)).toBe(GP);
    }
    prepare();
    m.enterUser();
    expect(run([...XSAVE, 0x0f, 0x0b])).toBe(UD);
    expect(m.stacked(0)).toBe(BigInt(CODE + 3));
  });
});

describe("XGETBV and XSETBV", () => {
  const set = (value: bigint, index = 0): number | undefined => {
    m.engine.setReg(RCX, BigInt(index));
    m.engine.setReg(RAX, BigInt.asUintN(32, value));
    m.engine.setReg(RDX, value >> 32n);
    m.code(...XSETBV, 0xf4);
    const vector = m.runToHandler();
    return vector < 0 ? undefined : vector;
  };

  it("reads XCR0, and which of its components are in use", () => {
    setYmm(3, 1n);
    m.engine.setReg(RCX, 0n);
    expect(run(XGETBV, 0)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(7n);
    m.engine.setReg(RCX, 1n);
    expect(run(XGETBV, 0)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(BigInt(AVX));
    m.engine.setReg(RCX, 2n);
    expect(run(XGETBV, 0)).toBe(GP);
  });

  it("takes x87 with SSE, and AVX with both, and nothing that the processor has not", () => {
    for (const good of [1n, 3n, 7n]) {
      expect(set(good)).toBeUndefined();
      expect(m.engine.get64(state.xcr0)).toBe(good);
    }
    for (const bad of [0n, 2n, 5n, 6n, 0xfn, 1n | (1n << 32n), 1n | (1n << 63n)]) {
      prepare();
      expect(set(bad)).toBe(GP);
      expect(m.engine.get64(state.xcr0)).toBe(7n);
    }
    prepare();
    expect(set(1n, 1)).toBe(GP);
  });

  it("shows CR4.OSXSAVE and the size for XCR0 in CPUID", () => {
    // The flat model has no CPUID of its own
    m.engine.setReg(RCX, 0n);
    expect(run([0x0f, 0xa2], 1)).toBeUndefined();
    expect(m.engine.reg(RCX) & (1n << 27n)).toBe(1n << 27n);
  });
});
