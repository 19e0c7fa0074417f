import { describe, expect, it } from "vitest";
import { array, bytes, i16, i64, nested, struct, structs, u8, u16, u32, u64, union } from "../src/layout.ts";

describe("struct", () => {
  it("refuses a gap, an overlap, and a wrong total on either side", () => {
    expect(() => struct("a", 8, { x: u8(0), y: u32(4) })).toThrow("a has a gap of 3 bytes before y");
    expect(() => struct("a", 8, { x: u32(0), y: u64(0) })).toThrow("a.y at 0 overlaps");
    expect(() => struct("a", 8, { x: u32(0), y: u32(3) })).toThrow("overlaps");
    expect(() => struct("a", 8, { x: u32(0) })).toThrow("end at 4, not at 8");
    expect(() => struct("a", 3, { x: u32(0) })).toThrow("end at 4, not at 3");
    expect(() => struct("a", 8, { y: u32(4), x: u32(0) })).not.toThrow();
  });
  it("refuses union members that are elsewhere or too large", () => {
    expect(() => union(8, 8, { x: u32(0) })).toThrow("member x is at 0");
    expect(() => union(0, 4, { x: u64(0) })).toThrow("larger");
  });
});

describe("values", () => {
  const Inner = struct("inner", 4, { a: u16(0), b: u16(2) });
  const Outer = struct(
    "outer",
    64,
    {
      small: u8(0),
      _pad: bytes(1, 3),
      many: array(4, u32, 3),
      big: u64(16),
      negative: i64(24),
      one: nested(32, Inner),
      two: structs(36, Inner, 2),
      tail: bytes(44, 4),
      either: union(48, 16, { number: u64(48), pair: nested(48, Inner) }),
    },
    { name: "more", strideBytes: 4 },
  );
  const value = {
    small: 0xff,
    many: [1, 0xffff_ffff, 3],
    big: 0xffff_ffff_ffff_ffffn,
    negative: -2n,
    one: { a: 1, b: 2 },
    two: [
      { a: 3, b: 4 },
      { a: 5, b: 6 },
    ],
    tail: Uint8Array.of(1, 2, 3, 4),
  };

  it("come back as they went in, at any offset, and little-endian", () => {
    const room = new Uint8Array(100).fill(0xee);
    Outer.write(room, value, 10);
    expect(Outer.read(room, 10)).toMatchObject(value);
    expect([...room.subarray(10 + 36, 10 + 40)]).toEqual([3, 0, 4, 0]);
    expect(room[9]).toBe(0xee);
    expect(room[10 + 1]).toBe(0xee); // padding that was not given
    expect(room[74]).toBe(0xee);
    expect(Outer.encode({}).every((byte) => byte === 0)).toBe(true);
  });
  it("can be had one at a time, and by offset", () => {
    const room = Outer.encode(value);
    expect(Outer.get(room, "negative")).toBe(-2n);
    expect(i16(2).read(new DataView(Uint8Array.of(0, 0, 0xf7, 0xff).buffer), 0)).toBe(-9);
    Outer.set(room, "small", 7);
    expect(room[Outer.offsets.small]).toBe(7);
    expect(Outer.fields.one.offsets.b).toBe(34);
    Outer.fields.either.members.pair.write(new DataView(room.buffer), 0, { a: 9, b: 10 });
    expect(Outer.get(room, "either").subarray(0, 4)).toEqual(Uint8Array.of(9, 0, 10, 0));
    expect(Outer.tailOffset(2)).toBe(72);
    expect(() => Inner.tailOffset(0)).toThrow("no flexible array");
  });
  it("that do not fit are refused", () => {
    expect(() => Outer.write(new Uint8Array(64), { tail: new Uint8Array(5) })).toThrow(RangeError);
    expect(() => Outer.write(new Uint8Array(64), { many: [1, 2, 3, 4] })).toThrow(RangeError);
    expect(() => Outer.read(new Uint8Array(63))).toThrow(RangeError);
    expect(() => Outer.write(new Uint8Array(64), { nothing: 1 } as never)).toThrow("outer has no field nothing");
  });
});
