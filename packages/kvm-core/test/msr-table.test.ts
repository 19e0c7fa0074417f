import { describe, expect, it } from "vitest";
import { createMsrStore, MSR_INDEX_LIST } from "../src/msr-table.ts";

describe("MSR store", () => {
  it("has every listed MSR, in ascending order and once", () => {
    const store = createMsrStore();
    for (const index of MSR_INDEX_LIST) expect(store.read(index), index.toString(16)).toBeDefined();
    expect([...new Set(MSR_INDEX_LIST)].sort((a, b) => a - b)).toEqual(MSR_INDEX_LIST);
    expect(store.read(0x12345)).toBeUndefined();
    expect(store.write(0x12345, 0n, true)).toBe("unknown");
  });
  it("checks memory-type ranges as the processor does", () => {
    const store = createMsrStore();
    expect(store.write(0x2ff, 0xc06n, false)).toBe("ok");
    expect(store.write(0x2ff, 0xc02n, false)).toBe("refused");
    expect(store.write(0x2ff, 0x1c06n, false)).toBe("refused");
    expect(store.write(0x250, 0x0606_0606_0606_0606n, false)).toBe("ok");
    expect(store.write(0x26f, 0x0606_0606_0606_0703n, false)).toBe("refused");
    expect(store.write(0x200, 0x8000_0006n, false)).toBe("ok");
    expect(store.write(0x201, 0xf_8000_0800n, false)).toBe("ok");
    expect(store.write(0x201, 0x400n, false)).toBe("refused");
    expect(store.read(0x200)).toBe(0x8000_0006n);
    expect(store.write(0xfe, 0n, false)).toBe("refused");
    expect(store.read(0x210)).toBeUndefined();
  });
  it("drops, refuses or keeps by the register, and lets user space set what a guest only reads", () => {
    const store = createMsrStore();
    expect(store.write(0x8b, 0n, false)).toBe("ok");
    expect(store.read(0x8b)).toBe(1n << 32n);
    expect(store.write(0x8b, 7n << 32n, true)).toBe("ok");
    expect(store.read(0x8b)).toBe(7n << 32n);
    expect(store.write(0x198, 1n, true)).toBe("refused");
    expect(store.write(0x198, store.read(0x198)!, true)).toBe("ok");
    expect(store.write(0x400, 0xffff_ffff_ffff_ffffn, false)).toBe("ok");
    expect(store.write(0x400, 1n, false)).toBe("refused");
    expect(store.write(0x401, 1n, false)).toBe("refused");
    expect(store.write(0x401, 1n, true)).toBe("ok");
  });
  it("takes what kernels for AMD's processors write", () => {
    const store = createMsrStore();
    expect([store.read(0xc001_0015), store.read(0xc001_001f)]).toEqual([0n, 0n]);
    expect(store.write(0xc001_0015, 0x148n, false)).toBe("ok");
    expect(store.read(0xc001_0015)).toBe(0n);
    expect(store.write(0xc001_0015, (1n << 18n) | (1n << 24n), false)).toBe("ok");
    expect(store.read(0xc001_0015)).toBe((1n << 18n) | (1n << 24n));
    expect(store.write(0xc001_0015, 1n, false)).toBe("refused");
    expect(store.write(0xc001_001f, 1n << 46n, false)).toBe("ok");
    expect(store.read(0xc001_001f)).toBe(0n);
  });

  it("reads zero for AMD's chipset registers and forgets what is written to work-around registers", () => {
    const store = createMsrStore();
    for (const index of [0xc001_0010, 0xc001_0055, 0xc001_0058, 0xc001_0112, 0xc001_1022, 0xc001_102c])
      expect(store.read(index)).toBe(0n);
    expect(store.write(0xc001_0010, 1n, false)).toBe("refused");
    expect(store.write(0xc001_0058, 1n, false)).toBe("refused");
    expect(store.write(0xc001_1022, 1n << 8n, false)).toBe("ok");
    expect(store.save()).toEqual([]);
  });
  it("shows the hardware's capabilities to guests, and lets user space show fewer", () => {
    const store = createMsrStore({ archCapabilities: 0xffn });
    expect(store.read(0x10a)).toBe(0xffn);
    expect(store.write(0x10a, 0n, false)).toBe("refused");
    expect(store.write(0x10a, 1n, true)).toBe("ok");
    expect(store.read(0x10a)).toBe(1n);
    expect(createMsrStore().read(0x10a)).toBe(0n);
  });
  it("saves what differs from reset, ascending, and restores it", () => {
    const store = createMsrStore();
    store.write(0x2ff, 0xc06n, false);
    store.write(0x200, 6n, false);
    store.write(0x1a0, 0n, false);
    store.write(0x1a0, 0x1801n, false);
    const saved = store.save();
    expect(saved).toEqual([
      { index: 0x200, data: 6n },
      { index: 0x2ff, data: 0xc06n },
    ]);
    const other = createMsrStore();
    other.write(0x250, 0n, false);
    other.write(0x2ff, 0n, false);
    expect(other.restore(saved)).toBeUndefined();
    expect(other.save()).toEqual(saved);
    expect(other.restore([{ index: 0x9999, data: 0n }])).toBe("MSR 0x9999 is not known here");
    expect(other.save()).toEqual(saved);
    other.reset();
    expect(other.save()).toEqual([]);
  });
});
