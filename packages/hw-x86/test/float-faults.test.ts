/** Which exceptions x87, MMX and SSE instructions raise, and when, on the whole engine. */
import { describe, expect, it } from "vitest";
import { state } from "../src/engine/cpu-state.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const UD = 6,
  NM = 7,
  GP = 13,
  MF = 16,
  XM = 19;

function machine(code: readonly number[]): FlatMachine {
  const made = createFlatMachine(64, 4 << 20);
  made.ram.set([...code, 0xf4], CODE);
  made.engine.set64(state.rip, BigInt(CODE));
  made.engine.set64(state.cr4, 0x620n);
  for (let i = 0; i < 16; i++) made.engine.setReg(i, 0x8000n);
  const record = made.guest.exception.bind(made.guest);
  made.guest.exception = (vector, type, errorCode, payload) => {
    record(vector, type, errorCode, payload);
    made.guest.exit();
  };
  return made;
}

/** The vector of the first exception and the offset in the code at which it was raised; undefined if all ran. */
function fault(made: FlatMachine): { vector: number; at: number } | undefined {
  made.engine.run(100);
  const first = made.guest.exceptions[0];
  return first && { vector: first.vector, at: Number(made.engine.get64(state.rip)) - CODE };
}

const FLD1 = [0xd9, 0xe8];
const FWAIT = [0x9b];
const ADDPS = [0x0f, 0x58, 0xc1];
const PADDB = [0x0f, 0xfc, 0xc1];
const CR0 = 0x8001_0031n;
const EM = 4n,
  MP = 2n,
  TS = 8n;

describe("availability", () => {
  const cases: [string, readonly number[], bigint, bigint, number | undefined][] = [
    ["x87 with TS", FLD1, CR0 | TS, 0x620n, NM],
    ["x87 with EM", FLD1, CR0 | EM, 0x620n, NM],
    ["FNSTCW with TS", [0xd9, 0x3e], CR0 | TS, 0x620n, NM],
    ["FXSAVE with TS", [0x0f, 0xae, 0x06], CR0 | TS, 0x620n, NM],
    ["FWAIT with TS", FWAIT, CR0 | TS, 0x620n, undefined],
    ["FWAIT with TS and MP", FWAIT, CR0 | TS | MP, 0x620n, NM],
    ["SSE with TS", ADDPS, CR0 | TS, 0x620n, NM],
    ["SSE with EM", ADDPS, CR0 | EM, 0x620n, UD],
    ["SSE without OSFXSR", ADDPS, CR0 | TS, 0x20n, UD],
    ["MMX with EM", PADDB, CR0 | EM | TS, 0x620n, UD],
    ["MMX with TS", PADDB, CR0 | TS, 0x620n, NM],
    ["MMX without OSFXSR", PADDB, CR0, 0x20n, undefined],
    ["MOVNTI with TS", [0x0f, 0xc3, 0x06], CR0 | TS, 0x20n, undefined],
  ];
  for (const [name, code, cr0, cr4, vector] of cases) {
    it(`${name}: ${vector === undefined ? "runs" : `exception ${vector}`}`, () => {
      const m = machine(code);
      m.engine.set64(state.cr0, cr0);
      m.engine.set64(state.cr4, cr4);
      expect(fault(m)).toEqual(vector === undefined ? undefined : { vector, at: 0 });
    });
  }
});

describe("x87 exceptions", () => {
  // fld1; fldz; fdivp with the zero-divide exception unmasked
  const divide = [0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9];
  const unmasked = (code: readonly number[]): FlatMachine => {
    const m = machine(code);
    m.engine.u16[state.fpuControl >> 1] = 0x37b;
    return m;
  };
  it("are raised by the next waiting instruction", () => {
    expect(fault(unmasked([...divide, ...FLD1]))).toEqual({ vector: MF, at: 6 });
    expect(fault(unmasked([...divide, ...FWAIT]))).toEqual({ vector: MF, at: 6 });
    expect(fault(unmasked([...divide, ...PADDB]))).toEqual({ vector: MF, at: 6 });
  });
  it("do not stop instructions that do not wait", () => {
    // fnstsw ax; fnstcw [rsi]; fnclex; fld1
    const m = unmasked([...divide, 0xdf, 0xe0, 0xd9, 0x3e, 0xdb, 0xe2, ...FLD1]);
    expect(fault(m)).toBeUndefined();
    expect(Number(m.engine.reg(0)) & 0xffff).toBe(0xb084);
  });
  it("leave the operands of a division by zero in place", () => {
    const m = unmasked([...divide, 0xdb, 0xe2]);
    fault(m);
    expect((m.engine.u16[state.fpuStatus >> 1] >> 11) & 7).toBe(6);
  });
});

describe("SSE exceptions", () => {
  // divps xmm0, xmm1 of 1 / 0
  const divide = (cr4: bigint): FlatMachine => {
    const m = machine([0x0f, 0x5e, 0xc1]);
    m.engine.view.setFloat32(state.xmm, 1, true);
    m.engine.set32(state.mxcsr, 0x1d80);
    m.engine.set64(state.cr4, cr4);
    return m;
  };
  it("are #XM with OSXMMEXCPT and #UD without, flags set and the destination as it was", () => {
    for (const [cr4, vector] of [
      [0x620n, XM],
      [0x220n, UD],
    ] as const) {
      const m = divide(cr4);
      expect(fault(m)).toEqual({ vector, at: 0 });
      // 0 / 0 in the other lanes is invalid, which is masked
      expect(m.engine.get32(state.mxcsr)).toBe(0x1d85);
      expect(m.engine.view.getFloat32(state.xmm, true)).toBe(1);
    }
  });
  it("LDMXCSR refuses reserved bits", () => {
    const m = machine([0x0f, 0xae, 0x16]);
    new DataView(m.ram.buffer, m.ram.byteOffset).setUint32(0x8000, 0x1_1f80, true);
    expect(fault(m)).toEqual({ vector: GP, at: 0 });
    expect(m.engine.get32(state.mxcsr)).toBe(0x1f80);
  });
  it("vector operands in memory are aligned, but for MOVUPS and scalars", () => {
    const at = (code: readonly number[]): ReturnType<typeof fault> => {
      const m = machine(code);
      m.engine.setReg(6, 0x8004n);
      return fault(m);
    };
    expect(at([0x0f, 0x28, 0x06])).toEqual({ vector: GP, at: 0 });
    expect(at([0x0f, 0x29, 0x06])).toEqual({ vector: GP, at: 0 });
    expect(at([0x66, 0x0f, 0xfe, 0x06])).toEqual({ vector: GP, at: 0 });
    expect(at([0x0f, 0x10, 0x06])).toBeUndefined();
    expect(at([0xf2, 0x0f, 0x58, 0x06])).toBeUndefined();
    expect(at([0x0f, 0xfc, 0x06])).toBeUndefined();
  });
});

describe("MMX state", () => {
  it("MMX sets TOP and tags, and the exponent of what it writes; EMMS empties the registers", () => {
    const m = machine([...FLD1, ...PADDB]);
    fault(m);
    expect(m.engine.u16[state.fpuTags >> 1]).toBe(0);
    expect(m.engine.u16[state.fpuStatus >> 1]).toBe(0);
    expect(m.engine.u16[(state.fpr + 8) >> 1]).toBe(0xffff);
    const e = machine([...FLD1, ...PADDB, 0x0f, 0x77]);
    fault(e);
    expect(e.engine.u16[state.fpuTags >> 1]).toBe(0xffff);
  });
  it("MASKMOVDQU stores the chosen bytes only", () => {
    const m = machine([0x66, 0x0f, 0xf7, 0xc1]);
    for (let i = 0; i < 16; i++) {
      m.engine.u8[state.xmm + i] = i + 1;
      m.engine.u8[state.xmm + 16 + i] = i % 3 === 0 ? 0x80 : 0x7f;
    }
    m.ram.fill(0xee, 0x8000, 0x8010);
    expect(fault(m)).toBeUndefined();
    expect([...m.ram.slice(0x8000, 0x8010)]).toEqual(Array.from({ length: 16 }, (_, i) => (i % 3 === 0 ? i + 1 : 0xee)));
  });
  it("the approximations of 1/x are within 1.5 * 2^-12", () => {
    const m = machine([0x0f, 0x53, 0xc1, 0x0f, 0x52, 0xd1]);
    [3, 0.1, 1e-20, 12345].forEach((x, i) => {
      m.engine.view.setFloat32(state.xmm + 16 + i * 4, x, true);
    });
    fault(m);
    [3, 0.1, 1e-20, 12345].forEach((x, i) => {
      expect(Math.abs(m.engine.view.getFloat32(state.xmm + i * 4, true) * x - 1)).toBeLessThan(1.5 / 4096);
      expect(Math.abs(m.engine.view.getFloat32(state.xmm + 32 + i * 4, true) * Math.sqrt(x) - 1)).toBeLessThan(1.5 / 4096);
    });
  });
});
