import { describe, expect, it } from "vitest";
import { Cr0, Cr4, Efer, Rflags } from "../src/arch/registers.ts";
import { type PagingState, translateGuest } from "../src/guest-paging.ts";

function guest(registers: Partial<PagingState>) {
  const memory = new Map<number, bigint>();
  const state: PagingState = {
    cr0: Cr0.PE | Cr0.PG | Cr0.WP,
    cr3: 0x1000n,
    cr4: Cr4.PAE,
    efer: Efer.LME | Efer.LMA | Efer.NXE,
    rflags: 2n,
    cpl: 0,
    pkru: 0,
    physicalBits: 52,
    readEntry: (gpa) => (gpa < 0x10_0000 ? (memory.get(gpa) ?? 0n) : undefined),
    writeEntry: (gpa, _bytes, value) => {
      memory.set(gpa, value);
    },
    ...registers,
  };
  return { memory, state };
}
const NX = 1n << 63n;
/** Four levels to 0x5000 at linear 0x1234_5000. */
function fourLevels(leaf: bigint, registers: Partial<PagingState> = {}) {
  const { memory, state } = guest(registers);
  memory.set(0x1000, 0x2007n);
  memory.set(0x2000, 0x3007n);
  memory.set(0x3000 + 0x91 * 8, 0x4007n);
  memory.set(0x4000 + 0x145 * 8, leaf);
  return { memory, state };
}
const LINEAR = 0x1234_5678n;

describe("guest paging", () => {
  it("is the identity while it is off", () => {
    const { state } = guest({ cr0: Cr0.PE });
    expect(translateGuest(state, 0x1_2345_6789n, "write", true)).toMatchObject({ gpa: 0x2345_6789 });
  });
  it("walks four levels, and sets accessed and dirty bits only when told", () => {
    const { memory, state } = fourLevels(0x5007n);
    expect(translateGuest(state, LINEAR, "read", false)).toEqual({ gpa: 0x5678, pageBytes: 4096, writable: true, user: true });
    expect(memory.get(0x4000 + 0x145 * 8)).toBe(0x5007n);
    translateGuest(state, LINEAR, "read", true);
    expect([memory.get(0x1000), memory.get(0x4000 + 0x145 * 8)]).toEqual([0x2027n, 0x5027n]);
    translateGuest(state, LINEAR, "write", true);
    expect(memory.get(0x4000 + 0x145 * 8)).toBe(0x5067n);
  });
  it("walks five levels with CR4.LA57, where addresses have 57 bits", () => {
    const { memory, state } = fourLevels(0x5007n, { cr3: 0x6000n, cr4: Cr4.PAE | Cr4.LA57 });
    const linear = (0x111n << 48n) | LINEAR | (-1n << 57n);
    memory.set(0x6000 + 0x111 * 8, 0x1007n);
    expect(translateGuest(state, linear, "write", true)).toMatchObject({ gpa: 0x5678 });
    expect([memory.get(0x6000 + 0x111 * 8), memory.get(0x1000)]).toEqual([0x1027n, 0x2027n]);
    expect(translateGuest(state, (0x112n << 48n) | LINEAR | (-1n << 57n), "read", true)).toMatchObject({
      vector: 14,
      errorCode: 0,
    });
    expect(translateGuest(state, 1n << 56n, "read", true)).toMatchObject({ vector: 13 });
    expect(translateGuest(fourLevels(0x5007n).state, 1n << 48n, "read", true)).toMatchObject({ vector: 13 });
    memory.set(0x6000 + 0x111 * 8, 0x1087n);
    expect(translateGuest(state, linear, "read", true)).toMatchObject({ vector: 14, errorCode: 9 });
  });
  it("faults with the error code of the access", () => {
    const fault = (leaf: bigint, access: "read" | "write" | "fetch", registers: Partial<PagingState> = {}) => {
      const result = translateGuest(fourLevels(leaf, registers).state, LINEAR, access, true);
      return "vector" in result ? result.errorCode : "none";
    };
    expect(fault(0n, "read")).toBe(0);
    expect(fault(0n, "write", { cpl: 3 })).toBe(6);
    expect(fault(0x5005n, "write")).toBe(3);
    expect(fault(0x5005n, "write", { cr0: Cr0.PE | Cr0.PG })).toBe("none");
    expect(fault(0x5005n, "write", { cr0: Cr0.PE | Cr0.PG, cpl: 3 })).toBe(7);
    expect(fault(0x5003n, "read", { cpl: 3 })).toBe(5);
    expect(fault(NX | 0x5007n, "fetch")).toBe(0x11);
    expect(fault(NX | 0x5007n, "read")).toBe("none");
    expect(fault(NX | 0x5007n, "read", { efer: Efer.LME | Efer.LMA })).toBe(9);
    expect(fault(0x5007n, "fetch", { cr4: Cr4.PAE | Cr4.SMEP })).toBe(0x11);
    expect(fault(0x5007n, "read", { cr4: Cr4.PAE | Cr4.SMAP })).toBe(1);
    expect(fault(0x5007n, "read", { cr4: Cr4.PAE | Cr4.SMAP, rflags: 2n | Rflags.AC })).toBe("none");
    expect(fault(0x5007n, "read", { cr3: 0x20_0000n })).toBe(0);
  });
  it("refuses addresses that are not canonical, with #GP", () => {
    const { state } = fourLevels(0x5007n);
    expect(translateGuest(state, 1n << 47n, "read", true)).toMatchObject({ vector: 13, errorCode: 0 });
    expect(translateGuest(state, 0xffff_8000_0000_0000n, "read", true)).toMatchObject({ vector: 14 });
  });
  it("maps 2 MiB and 1 GiB pages, and refuses reserved bits in them", () => {
    const { memory, state } = fourLevels(0n);
    memory.set(0x3000 + 0x91 * 8, 0x4000_0087n);
    expect(translateGuest(state, LINEAR, "write", true)).toMatchObject({ gpa: 0x4014_5678, pageBytes: 0x20_0000 });
    memory.set(0x3000 + 0x91 * 8, 0x4000_2087n);
    expect(translateGuest(state, LINEAR, "read", true)).toMatchObject({ errorCode: 9 });
    memory.set(0x2000, 0x8000_0087n);
    expect(translateGuest(state, LINEAR, "read", true)).toMatchObject({
      gpa: 0x8000_0000 + 0x1234_5678,
      pageBytes: 0x4000_0000,
    });
  });
  it("walks PAE tables from the PDPTEs in use, or from memory", () => {
    const { memory, state } = guest({ efer: 0n, cr3: 0x1020n });
    memory.set(0x1020 + 3 * 8, 0x3001n);
    memory.set(0x3000 + 0x1ff * 8, 0x4003n);
    memory.set(0x4000 + 0x1ff * 8, 0x7003n);
    expect(translateGuest(state, 0xffff_f123n, "read", true)).toMatchObject({ gpa: 0x7123, user: false });
    expect(translateGuest({ ...state, pdptrs: [0n, 0n, 0n, 0n] }, 0xffff_f123n, "read", true)).toMatchObject({ errorCode: 0 });
    expect(translateGuest({ ...state, pdptrs: [0n, 0n, 0n, 0x3001n] }, 0xffff_f123n, "read", true)).toMatchObject({
      gpa: 0x7123,
    });
  });
  it("walks 32-bit tables, with 4 MiB pages beyond 4 GiB", () => {
    const { memory, state } = guest({ efer: 0n, cr4: Cr4.PSE });
    memory.set(0x1000 + 0x48 * 4, 0x2007n);
    memory.set(0x2000 + 0x345 * 4, 0x9007n);
    expect(translateGuest(state, LINEAR, "read", true)).toMatchObject({ gpa: 0x9678, pageBytes: 4096 });
    memory.set(0x1000 + 0x48 * 4, 0x0080_2087n);
    expect(translateGuest(state, LINEAR, "read", true)).toMatchObject({ gpa: 0x1_0080_0000 + 0x34_5678, pageBytes: 0x40_0000 });
  });
});

describe("protection keys", () => {
  const AD = 1;
  const WD = 2;
  const KEYED = 5n << 59n;
  const PKE = Cr4.PAE | Cr4.PKE;
  function fault(
    access: "read" | "write" | "fetch",
    rights: number,
    registers: Partial<PagingState> = {},
    leaf = 0x5007n | KEYED,
  ): number | undefined | "none" {
    const { memory, state } = fourLevels(leaf, { cr4: PKE, cpl: 3, pkru: rights << (5 * 2), ...registers });
    const result = translateGuest(state, LINEAR, access, true);
    if ("vector" in result) expect([memory.get(0x1000), memory.get(0x4000 + 0x145 * 8)]).toEqual([0x2007n, leaf]);
    return "vector" in result ? result.errorCode : "none";
  }
  it("forbid data accesses to user pages, with a bit of their own in the error code", () => {
    expect(fault("read", 0)).toBe("none");
    expect(fault("read", AD)).toBe(0x25);
    expect(fault("write", AD)).toBe(0x27);
    expect(fault("read", WD)).toBe("none");
    expect(fault("write", WD)).toBe(0x27);
    expect(fault("fetch", AD | WD)).toBe("none");
    expect(fault("read", 0, { pkru: ~(3 << 10) })).toBe("none");
  });
  it("count for supervisor code too, their write-disable with CR0.WP only", () => {
    expect(fault("read", AD, { cpl: 0 })).toBe(0x21);
    expect(fault("write", WD, { cpl: 0 })).toBe(0x23);
    expect(fault("write", WD, { cpl: 0, cr0: Cr0.PE | Cr0.PG })).toBe("none");
    expect(fault("write", AD, { cpl: 0, cr0: Cr0.PE | Cr0.PG })).toBe(0x23);
  });
  it("are nothing to supervisor pages, without CR4.PKE, and outside long mode", () => {
    expect(fault("read", AD | WD, { cpl: 0 }, 0x5003n | KEYED)).toBe("none");
    expect(fault("write", AD | WD, { cr4: Cr4.PAE })).toBe("none");
    // There the bits are reserved
    const { memory, state } = guest({ efer: 0n, cr4: PKE, pdptrs: [0x3001n, 0n, 0n, 0n], pkru: -1 });
    memory.set(0x3000 + 0x91 * 8, 0x4007n);
    memory.set(0x4000 + 0x145 * 8, 0x5007n);
    expect(translateGuest({ ...state, cpl: 3 }, LINEAR, "write", false)).toMatchObject({ gpa: 0x5678 });
    memory.set(0x4000 + 0x145 * 8, 0x5007n | KEYED);
    expect(translateGuest(state, LINEAR, "read", false)).toMatchObject({ errorCode: 9 });
  });
  it("are told where rights forbid the access as well", () => {
    expect(fault("write", WD, {}, 0x5005n | KEYED)).toBe(0x27);
    expect(fault("write", 0, {}, 0x5005n | KEYED)).toBe(7);
  });
});

describe("what entries reserve", () => {
  const errorOf = (state: PagingState, access: "read" | "fetch" = "read"): number | undefined | "none" => {
    const result = translateGuest(state, LINEAR, access, false);
    return "vector" in result ? result.errorCode : "none";
  };
  it("is what the processor has no address bits for, at every level", () => {
    for (const at of [0x1000, 0x2000, 0x3000 + 0x91 * 8, 0x4000 + 0x145 * 8]) {
      const { memory, state } = fourLevels(0x5007n, { physicalBits: 40 });
      const entry = memory.get(at) as bigint;
      memory.set(at, entry | (1n << 40n));
      expect(errorOf(state)).toBe(9);
      memory.set(at, entry | (1n << 52n));
      expect(errorOf(state)).toBe("none");
    }
    expect(errorOf(fourLevels(0x5007n | (1n << 39n), { physicalBits: 40 }).state)).toBe("none");
  });
  it("is bit 21 of a 4 MiB page, and a frame out of reach", () => {
    const { memory, state } = guest({ efer: 0n, cr4: Cr4.PSE, physicalBits: 36 });
    for (const [entry, error] of [
      [0x0080_0087n, "none"],
      [0x00a0_0087n, 9],
      [0x0081_e087n, "none"],
      [0x0082_0087n, 9],
    ] as const) {
      memory.set(0x1000 + 0x48 * 4, entry);
      expect(errorOf(state)).toBe(error);
    }
  });
  it("execute-disable is told of in error codes where entries can have it", () => {
    const { memory, state } = guest({ efer: Efer.NXE, cr4: 0n });
    memory.set(0x1000 + 0x48 * 4, 0n);
    expect(errorOf(state, "fetch")).toBe(0);
    expect(errorOf({ ...state, cr4: Cr4.SMEP }, "fetch")).toBe(0x10);
    expect(errorOf({ ...state, cr4: Cr4.PAE, pdptrs: [0n, 0n, 0n, 0n] }, "fetch")).toBe(0x10);
  });
});

it("no entry is marked by an access that faults", () => {
  const { memory, state } = fourLevels(0x5005n, { cpl: 3 });
  expect(translateGuest(state, LINEAR, "write", true)).toMatchObject({ errorCode: 7 });
  expect([memory.get(0x1000), memory.get(0x2000), memory.get(0x4000 + 0x145 * 8)]).toEqual([0x2007n, 0x3007n, 0x5005n]);
});

describe("SMAP", () => {
  it("is for supervisor data accesses to user pages, and lets EFLAGS.AC through", () => {
    const outcome = (access: "read" | "write" | "fetch", registers: Partial<PagingState>, leaf = 0x5007n): unknown => {
      const result = translateGuest(fourLevels(leaf, { cr4: Cr4.PAE | Cr4.SMAP, ...registers }).state, LINEAR, access, false);
      return "vector" in result ? result.errorCode : "none";
    };
    expect(outcome("read", {})).toBe(1);
    expect(outcome("write", {})).toBe(3);
    expect(outcome("write", { cr0: Cr0.PE | Cr0.PG })).toBe(3);
    expect(outcome("read", { rflags: Rflags.AC })).toBe("none");
    expect(outcome("write", { rflags: Rflags.AC }, 0x5005n)).toBe(3);
    expect(outcome("fetch", {})).toBe("none");
    expect(outcome("read", { cpl: 3 })).toBe("none");
    expect(outcome("read", {}, 0x5003n)).toBe("none");
  });
});
