/** Images of the floating-point state: FXSAVE, FNSAVE and FNSTENV in their forms, and back. */
import { describe, expect, it } from "vitest";
import { state } from "../src/engine/cpu-state.ts";
import { fxrstor, fxsave, resetFpu } from "../src/engine/fpu/fxsave.ts";
import { fpuHelpers } from "../src/engine/fpu/helpers.ts";
import { OPERAND_ADDRESS } from "../src/engine/fpu/x87-state.ts";
import { floatCpu, OPERAND_AT, Raised } from "./fpu-state.ts";

const call = (cpu: ReturnType<typeof floatCpu>, name: string, a = 0, at = OPERAND_AT): void => {
  cpu.set64(OPERAND_ADDRESS, BigInt(at));
  fpuHelpers[name](cpu, a, 0, 0, 0);
};

/** Three constants on the stack, everything else recognisable. */
function filled(): ReturnType<typeof floatCpu> {
  const cpu = floatCpu();
  call(cpu, "fpuInitialize");
  for (const constant of [0, 3, 6]) fpuHelpers.fpuLoadConstant(cpu, constant, 0, 0, 0);
  for (let i = 0; i < 256; i++) cpu.u8[state.xmm + i] = i;
  cpu.set32(state.mxcsr, 0x1fa5);
  cpu.u16[state.fpuOpcode >> 1] = 0x123;
  cpu.set64(state.fpuIp, 0x1122_3344_5566_7788n);
  cpu.set64(state.fpuDp, 0x99aa_bbcc_ddee_ff00n);
  return cpu;
}

describe("FXSAVE", () => {
  it("lays out the 64-bit image as the manual does", () => {
    const cpu = filled();
    const image = new Uint8Array(512);
    fxsave(cpu, image);
    const view = new DataView(image.buffer);
    expect(view.getUint16(0, true)).toBe(0x37f);
    expect(view.getUint16(2, true)).toBe(5 << 11);
    expect(image[4]).toBe(0b1110_0000);
    expect(view.getUint16(6, true)).toBe(0x123);
    expect(view.getBigUint64(8, true)).toBe(0x1122_3344_5566_7788n);
    expect(view.getBigUint64(16, true)).toBe(0x99aa_bbcc_ddee_ff00n);
    expect(view.getUint32(24, true)).toBe(0x1fa5);
    expect(view.getUint32(28, true)).toBe(0xffff);
    // ST(0) = 0, ST(1) = pi, ST(2) = 1
    expect(view.getBigUint64(32, true)).toBe(0n);
    expect(view.getBigUint64(48, true)).toBe(0xc90f_daa2_2168_c235n);
    expect(view.getUint16(56, true)).toBe(0x4000);
    expect(view.getUint16(72, true)).toBe(0x3fff);
    expect(image[160 + 255]).toBe(255);
  });

  it("comes back as it was", () => {
    const cpu = filled();
    const image = new Uint8Array(512);
    fxsave(cpu, image);
    const before = cpu.u8.slice(state.xmm, state.helper);
    resetFpu(cpu);
    fxrstor(cpu, image);
    const again = new Uint8Array(512);
    fxsave(cpu, again);
    expect(again).toEqual(image);
    expect(cpu.u8.slice(state.xmm, state.ymmHigh)).toEqual(before.slice(0, 256));
  });

  it("leaves XMM8 to XMM15 out of the image and the state outside 64-bit mode", () => {
    const cpu = filled();
    cpu.set32(state.codeSize, 32);
    cpu.u8.fill(0xee, OPERAND_AT, OPERAND_AT + 512);
    call(cpu, "fpuFxsave", 32);
    expect(cpu.u8[OPERAND_AT + 160 + 127]).toBe(127);
    expect(cpu.u8[OPERAND_AT + 160 + 128]).toBe(0xee);
    expect(cpu.u32[(OPERAND_AT + 8) >> 2]).toBe(0x5566_7788);
    cpu.u8.fill(0, state.xmm, state.xmm + 256);
    call(cpu, "fpuFxrstor", 32);
    expect(cpu.u8[state.xmm + 127]).toBe(127);
    expect(cpu.u8[state.xmm + 129]).toBe(0);
  });

  it("refuses misaligned operands and reserved bits of MXCSR", () => {
    const cpu = filled();
    expect(() => call(cpu, "fpuFxsave", 64, OPERAND_AT + 8)).toThrow(Raised);
    call(cpu, "fpuFxsave", 64);
    cpu.u32[(OPERAND_AT + 24) >> 2] = 0x1_0000;
    expect(() => call(cpu, "fpuFxrstor", 64)).toThrow(Raised);
    expect(cpu.get32(state.mxcsr)).toBe(0x1fa5);
  });
});

describe("FNSAVE and FRSTOR", () => {
  for (const size of [16, 32]) {
    it(`keep all registers in the ${size}-bit form, and FNSAVE initialises the unit`, () => {
      const cpu = filled();
      const registers = cpu.u8.slice(state.fpr, state.fpr + 128);
      call(cpu, "fpuSave", size);
      expect(cpu.u16[state.fpuTags >> 1]).toBe(0xffff);
      expect(cpu.u16[state.fpuStatus >> 1]).toBe(0);
      cpu.u8.fill(0xaa, state.fpr, state.fpr + 128);
      call(cpu, "fpuRestore", size);
      expect(cpu.u16[state.fpuStatus >> 1]).toBe(5 << 11);
      for (let i = 0; i < 8; i++) {
        const at = i * 16;
        expect(cpu.u8.slice(state.fpr + at, state.fpr + at + 10)).toEqual(registers.slice(at, at + 10));
      }
      expect(BigInt.asUintN(size, cpu.get64(state.fpuIp))).toBe(BigInt.asUintN(size, 0x5566_7788n));
    });
  }

  it("FNSTENV says zero, valid and empty in the tag word and masks all exceptions", () => {
    const cpu = filled();
    cpu.u16[state.fpuControl >> 1] = 0x340;
    call(cpu, "fpuStoreEnvironment", 32);
    // R7 = 1 and R6 = pi are valid, R5 = 0
    expect(cpu.u32[(OPERAND_AT + 8) >> 2]).toBe(0xffff_0000 + 0b00_00_01_11_11_11_11_11);
    expect(cpu.u16[state.fpuControl >> 1]).toBe(0x37f);
  });

  it("FLDENV with an unmasked pending exception sets the summary bits", () => {
    const cpu = filled();
    call(cpu, "fpuStoreEnvironment", 32);
    cpu.u16[OPERAND_AT >> 1] = 0x37b;
    cpu.u16[(OPERAND_AT + 4) >> 1] = 4;
    call(cpu, "fpuLoadEnvironment", 32);
    expect(cpu.u16[state.fpuStatus >> 1]).toBe(0x8084);
  });
});
