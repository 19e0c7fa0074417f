import { describe, expect, it } from "vitest";
import { type CpuidState, executeCpuid, findCpuid, supportedCpuid } from "../src/cpuid-table.ts";

const all = 0xffff_ffff;
const hardware = (leaf: number, subleaf: number) => {
  if (leaf === 0) return { eax: 0x16, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 };
  if (leaf === 4) return { eax: subleaf < 3 ? 0x21 + subleaf : 0, ebx: subleaf, ecx: 0, edx: 0 };
  if (leaf === 0xd)
    return { eax: subleaf === 0 ? 7 : subleaf === 2 ? 256 : 0xf, ebx: subleaf === 2 ? 576 : 832, ecx: 832, edx: 0 };
  if (leaf === 0x8000_0000) return { eax: 0x8000_0008, ebx: 0, ecx: 0, edx: 0 };
  return { eax: leaf & 0xff, ebx: all, ecx: all, edx: all };
};
const state: CpuidState = { cr4: 0n, xcr0: 7n, lapic: { enabled: true } };
const table = supportedCpuid(hardware);

describe("KVM_GET_SUPPORTED_CPUID", () => {
  it("has KVM's signature and only features that work", () => {
    const signature = findCpuid(table, 0x4000_0000, 0)!;
    const bytes = new Uint8Array(Uint32Array.of(signature.ebx, signature.ecx, signature.edx).buffer);
    expect(new TextDecoder().decode(bytes)).toBe("KVMKVMKVM\0\0\0");
    expect(signature.eax).toBe(0x4000_0001);
    expect(findCpuid(table, 0x4000_0001, 0)?.eax).toBe(0x0100_000b);
  });
  it("hides what a guest cannot have, and shows what KVM emulates", () => {
    const { ecx, edx, ebx } = findCpuid(table, 1, 0)!;
    for (const bit of [3, 5, 6, 7, 8, 27]) expect(ecx & (1 << bit), `ecx bit ${bit}`).toBe(0);
    for (const bit of [21, 24, 31]) expect(ecx & (1 << bit), `ecx bit ${bit}`).not.toBe(0);
    expect(edx & (1 << 21)).toBe(0);
    expect(ebx >>> 16).toBe(0);
    expect(findCpuid(table, 7, 0)!.ebx & 2).toBe(2);
    expect(findCpuid(table, 0x8000_0001, 0)!.ecx & 4).toBe(0);
    expect(findCpuid(table, 0xa, 0)!.eax).toBe(0);
  });
  it("lists every subleaf, with its flag", () => {
    expect(table.filter((entry) => entry.function === 4).map(({ index, flags }) => [index, flags])).toEqual([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ]);
    expect(table.filter((entry) => entry.function === 0xd).map(({ index }) => index)).toEqual([0, 1, 2]);
    // No supervisor components: XSAVES saves what XSAVEC saves
    expect(findCpuid(table, 0xd, 1)!.ecx).toBe(0);
    for (const entry of table)
      for (const register of [entry.eax, entry.ebx, entry.ecx, entry.edx]) expect(register).toBeGreaterThanOrEqual(0);
  });
});

describe("CPUID in the guest", () => {
  it("follows the registers it depends on", () => {
    expect(executeCpuid(table, state, 1, 0).ecx & (1 << 27)).toBe(0);
    expect(executeCpuid(table, { ...state, cr4: 1n << 18n }, 1, 0).ecx & (1 << 27)).not.toBe(0);
    expect(executeCpuid(table, state, 1, 0).edx & (1 << 9)).not.toBe(0);
    expect(executeCpuid(table, { ...state, lapic: { enabled: false } }, 1, 0).edx & (1 << 9)).toBe(0);
    expect(executeCpuid(table, { ...state, cr4: 1n << 22n }, 7, 0).ecx & 16).toBe(16);
    expect(executeCpuid(table, state, 0xd, 0).ebx).toBe(832);
    expect(executeCpuid(table, { ...state, xcr0: 3n }, 0xd, 0).ebx).toBe(576);
    expect(executeCpuid(table, state, 0xd, 1).ebx).toBe(832);
  });
  it("gives the last basic leaf beyond the last, zeros within a range, and the level for topology leaves", () => {
    const last = executeCpuid(table, state, 0x16, 0);
    expect(executeCpuid(table, state, 0x17, 0)).toEqual(last);
    expect(executeCpuid(table, state, 0x8000_0009, 0)).toEqual(last);
    expect(executeCpuid(table, state, 0x4000_0002, 0)).toEqual(last);
    expect(executeCpuid(table, state, 0xc, 0)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
    expect(executeCpuid(table, state, 4, 9)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
    expect(executeCpuid(table, state, 0xb, 2)).toEqual({ eax: 0, ebx: 0, ecx: 2, edx: 0 });
    expect(executeCpuid([], state, 1, 0)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
  });
});
