/** VEX-encoded vector instructions: when they are undefined, and what becomes of upper halves; silicon.test.ts compares what they compute. */
import { beforeEach, describe, expect, it } from "vitest";
import { RAX, state } from "../src/engine/cpu-state.ts";
import { CODE, createSystemMachine, DATA, type SystemMachine } from "./system-machine.ts";

const UD = 6;
const NM = 7;
const GP = 13;
const OSXSAVE = 0x4_0000n;
const TS = 8n;
const HLT = 0xf4;

// vaddps xmm1, xmm2, xmm3 and ymm
const VADDPS = [0xc5, 0xe8, 0x58, 0xcb];
const VADDPS_256 = [0xc5, 0xec, 0x58, 0xcb];

let m: SystemMachine;

function prepare(mode: 16 | 32 | 64 = 64): void {
  m = createSystemMachine(mode);
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | OSXSAVE | 0x600n);
  m.engine.set64(state.xcr0, 7n);
  m.engine.setReg(RAX, BigInt(DATA));
}
beforeEach(() => prepare());

/** Undefined, or the vector that the code ended in. */
function run(...code: number[]): number | undefined {
  m.code(...code, HLT);
  const vector = m.runToHandler();
  return vector < 0 ? undefined : vector;
}
/** Low quadwords of a register's halves. */
const low = (index: number): bigint => m.engine.get64(state.xmm + index * 16);
const high = (index: number): bigint => m.engine.get64(state.ymmHigh + index * 16);
function fill(): void {
  for (let i = 0; i < 16; i++) {
    m.engine.set64(state.xmm + i * 16, BigInt(0x100 + i));
    m.engine.set64(state.ymmHigh + i * 16, BigInt(0x200 + i));
  }
}

describe("VEX-encoded vector instructions are undefined", () => {
  it.each([
    ["without CR4.OSXSAVE", () => m.engine.set64(state.cr4, m.engine.get64(state.cr4) & ~OSXSAVE)],
    ["without XCR0.AVX", () => m.engine.set64(state.xcr0, 3n)],
    ["without XCR0.SSE", () => m.engine.set64(state.xcr0, 1n)],
  ])("%s", (_name, disable) => {
    expect(run(...VADDPS)).toBeUndefined();
    disable();
    expect(run(...VADDPS)).toBe(UD);
    expect(run(...VADDPS_256)).toBe(UD);
    // Whatever TS says
    m.engine.set64(state.cr0, m.engine.get64(state.cr0) | TS);
    expect(run(...VADDPS)).toBe(UD);
  });

  it("behind LOCK, 66, F2, F3 and REX, and not behind other prefixes", () => {
    for (const prefix of [0xf0, 0x66, 0xf2, 0xf3, 0x40, 0x48]) expect(run(prefix, ...VADDPS), prefix.toString(16)).toBe(UD);
    for (const prefix of [0x2e, 0x65, 0x67]) expect(run(prefix, ...VADDPS), prefix.toString(16)).toBeUndefined();
  });

  it("with a first source where there is none, a length or a W that the form has not", () => {
    // vsqrtps xmm1, xmm3; vvvv 1111 and 1110
    expect(run(0xc5, 0xf8, 0x51, 0xcb)).toBeUndefined();
    expect(run(0xc5, 0xf0, 0x51, 0xcb)).toBe(UD);
    // vmovhlps xmm1, xmm2, xmm3 with L
    expect(run(0xc5, 0xe8, 0x12, 0xcb)).toBeUndefined();
    expect(run(0xc5, 0xec, 0x12, 0xcb)).toBe(UD);
    // vpermq ymm1, ymm3, 0 without W; vbroadcastss xmm1, xmm3 with W
    expect(run(0xc4, 0xe3, 0xfd, 0x00, 0xcb, 0)).toBeUndefined();
    expect(run(0xc4, 0xe3, 0x7d, 0x00, 0xcb, 0)).toBe(UD);
    expect(run(0xc4, 0xe2, 0x79, 0x18, 0xcb)).toBeUndefined();
    expect(run(0xc4, 0xe2, 0xf9, 0x18, 0xcb)).toBe(UD);
  });

  it("where a gather names one register twice", () => {
    // vpgatherdd xmm1, [rax + xmm2], xmm3, then with xmm1 as mask and with xmm2 as destination
    expect(run(0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x10)).toBeUndefined();
    expect(run(0xc4, 0xe2, 0x71, 0x90, 0x0c, 0x10)).toBe(UD);
    expect(run(0xc4, 0xe2, 0x61, 0x90, 0x14, 0x10)).toBe(UD);
  });
});

it("CR0.TS makes them #NM, and CR0.EM does not matter", () => {
  m.engine.set64(state.cr0, m.engine.get64(state.cr0) | 4n);
  expect(run(...VADDPS)).toBeUndefined();
  m.engine.set64(state.cr0, m.engine.get64(state.cr0) | TS);
  expect(run(...VADDPS)).toBe(NM);
});

describe("upper halves", () => {
  it("are zeroed by forms of 128 bits and left by SSE instructions", () => {
    fill();
    expect(run(...VADDPS, 0x0f, 0x58, 0xe5)).toBeUndefined();
    expect(high(1)).toBe(0n);
    // addps xmm4, xmm5
    expect(high(4)).toBe(0x204n);
  });

  it("are zeroed by VZEROUPPER, and all of the registers by VZEROALL", () => {
    fill();
    expect(run(0xc5, 0xf8, 0x77)).toBeUndefined();
    expect([low(0), high(0), low(15), high(15)]).toEqual([0x100n, 0n, 0x10fn, 0n]);
    fill();
    expect(run(0xc5, 0xfc, 0x77)).toBeUndefined();
    expect([low(0), high(0), low(15), high(15)]).toEqual([0n, 0n, 0n, 0n]);
  });

  it("of registers 8 to 15 are left alone outside 64-bit mode", () => {
    prepare(32);
    fill();
    expect(run(0xc5, 0xfc, 0x77)).toBeUndefined();
    expect([low(7), high(7), low(8), high(8)]).toEqual([0n, 0n, 0x108n, 0x208n]);
  });
});

describe("memory operands", () => {
  // vmovaps ymm1, [rax]; vmovups; vmovntps [rax], ymm1
  const ALIGNED = [0xc5, 0xfc, 0x28, 0x08];
  const UNALIGNED = [0xc5, 0xfc, 0x10, 0x08];
  const STREAMED = [0xc5, 0xfc, 0x2b, 0x08];
  it("need no alignment, but for moves that say so", () => {
    m.engine.setReg(RAX, BigInt(DATA + 16));
    expect(run(...ALIGNED)).toBe(GP);
    expect(run(...STREAMED)).toBe(GP);
    expect(run(...UNALIGNED)).toBeUndefined();
    m.engine.setReg(RAX, BigInt(DATA + 32));
    expect(run(...ALIGNED)).toBeUndefined();
    expect(run(...STREAMED)).toBeUndefined();
  });

  it("of masked moves are accessed where the mask says so only", () => {
    // vmaskmovps xmm1, xmm2, [rax] beyond the memory that there is
    const LOAD = [0xc4, 0xe2, 0x69, 0x2c, 0x08];
    m.engine.setReg(RAX, 0x7fff_ffff_f000n);
    m.engine.set64(state.xmm + 32, 0n);
    m.engine.set64(state.xmm + 40, 0n);
    expect(run(...LOAD)).toBeUndefined();
    expect(low(1)).toBe(0n);
  });
});

it("a register of the immediate is one of eight outside 64-bit mode", () => {
  prepare(32);
  fill();
  // vblendvps xmm1, xmm2, xmm3, xmm12: the top bit is ignored, so by xmm4, whose signs are clear
  expect(run(0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0xc0)).toBeUndefined();
  expect(low(1)).toBe(0x102n);
});

it("are no instructions in real mode, where C4 is LES and its register form undefined", () => {
  prepare(16);
  m.engine.set64(state.cr4, OSXSAVE | 0x600n);
  m.code(...VADDPS, HLT);
  m.engine.run(1);
  expect(m.engine.get64(state.rip)).not.toBe(BigInt(CODE + VADDPS.length));
});
