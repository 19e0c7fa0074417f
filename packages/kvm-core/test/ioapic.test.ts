import { describe, expect, it } from "vitest";
import type { InterruptMessage } from "../src/interrupt-message.ts";
import { createIoapic, type Ioapic } from "../src/ioapic.ts";

function setUp() {
  const sent: InterruptMessage[] = [];
  const acknowledged: number[] = [];
  let result = 1;
  const ioapic = createIoapic({
    deliver(message) {
      sent.push(message);
      return result;
    },
    acknowledged: (pin) => acknowledged.push(pin),
  });
  return {
    ioapic,
    sent,
    acknowledged,
    answer(next: number) {
      result = next;
    },
  };
}
const word = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
function write(ioapic: Ioapic, register: number, value: number): void {
  ioapic.mmioWrite(0, word(register));
  ioapic.mmioWrite(0x10, word(value));
}
function read(ioapic: Ioapic, register: number): number {
  ioapic.mmioWrite(0, word(register));
  return new Uint32Array(ioapic.mmioRead(0x10, 4).buffer)[0];
}
const LEVEL = 0x8000;
const MASKED = 0x1_0000;

describe("IOAPIC", () => {
  it("says what it is", () => {
    const { ioapic } = setUp();
    expect(read(ioapic, 1)).toBe(0x17_0011);
    write(ioapic, 0, 0x0f00_0000);
    expect(read(ioapic, 0)).toBe(0x0f00_0000);
    expect(read(ioapic, 0x10)).toBe(MASKED);
    write(ioapic, 0x11, 0x0300_0000);
    expect(read(ioapic, 0x11)).toBe(0x0300_0000);
    expect([...ioapic.mmioRead(0x10, 1), ...ioapic.mmioRead(0x20, 4)]).toEqual([0, 0, 0, 0, 0]);
  });
  it("sends an edge once", () => {
    const { ioapic, sent } = setUp();
    write(ioapic, 0x10 + 2 * 4, 0x0900 | 0x31);
    write(ioapic, 0x11 + 2 * 4, 0x0200_0000);
    expect(ioapic.setLine(4, 1, true)).toBe(1);
    expect(ioapic.setLine(4, 1, true)).toBe(0);
    ioapic.setLine(4, 1, false);
    ioapic.setLine(4, 1, true);
    expect(sent).toHaveLength(2);
    expect(sent[0]).toEqual({
      vector: 0x31,
      deliveryMode: 1,
      logical: true,
      levelTriggered: false,
      asserted: true,
      destination: 2,
      shorthand: 0,
    });
  });
  it("holds a level until its EOI, and sends it again while the line is high", () => {
    const { ioapic, sent, acknowledged } = setUp();
    write(ioapic, 0x10 + 2 * 11, LEVEL | 0x40);
    ioapic.setLine(11, 1, true);
    expect(read(ioapic, 0x10 + 22)).toBe(LEVEL | 0x4000 | 0x40);
    expect(ioapic.setLine(11, 1, true)).toBe(-1);
    ioapic.endOfInterrupt(0x40, true);
    expect(sent).toHaveLength(2);
    ioapic.setLine(11, 1, false);
    ioapic.endOfInterrupt(0x40, true);
    expect(sent).toHaveLength(2);
    expect(read(ioapic, 0x10 + 22)).toBe(LEVEL | 0x40);
    expect(acknowledged).toEqual([11, 11]);
  });
  it("forgets a masked edge, and sends a masked level at the unmask", () => {
    const { ioapic, sent } = setUp();
    expect(ioapic.setLine(3, 1, true)).toBe(-1);
    write(ioapic, 0x10 + 6, 0x33);
    expect(sent).toHaveLength(0);
    ioapic.setLine(5, 1, true);
    write(ioapic, 0x10 + 10, MASKED | LEVEL | 0x35);
    expect(sent).toHaveLength(0);
    write(ioapic, 0x10 + 10, LEVEL | 0x35);
    expect(sent).toHaveLength(1);
  });
  it("clears remote IRR of an entry that becomes edge triggered, and keeps guests from writing it", () => {
    const { ioapic } = setUp();
    write(ioapic, 0x10, LEVEL | 0x4000 | 0x1000 | 0x30);
    expect(read(ioapic, 0x10)).toBe(LEVEL | 0x30);
    ioapic.setLine(0, 1, true);
    write(ioapic, 0x10, MASKED | 0x30);
    expect(read(ioapic, 0x10)).toBe(MASKED | 0x30);
  });
  it("does not wait for the EOI of what nobody took", () => {
    const { ioapic, sent, answer } = setUp();
    write(ioapic, 0x10 + 4, LEVEL | 0x32);
    answer(-1);
    expect(ioapic.setLine(2, 1, true)).toBe(-1);
    answer(1);
    expect(ioapic.setLine(2, 1, true)).toBe(1);
    expect(sent).toHaveLength(2);
  });
  it("knows the vectors that it sends", () => {
    const { ioapic } = setUp();
    write(ioapic, 0x10 + 4, LEVEL | 0x32);
    write(ioapic, 0x10 + 6, MASKED | 0x33);
    expect([0x31, 0x32, 0x33].map((vector) => ioapic.handlesVector(vector))).toEqual([false, true, false]);
  });
  it("restores without sending, and goes on", () => {
    const { ioapic } = setUp();
    write(ioapic, 0x10 + 4, LEVEL | 0x32);
    write(ioapic, 0x10 + 6, 0x33);
    ioapic.setLine(2, 1, true);
    ioapic.setLine(3, 1, true);
    const other = setUp();
    other.ioapic.restore(ioapic.save());
    expect(other.ioapic.save()).toEqual(ioapic.save());
    expect(other.sent).toHaveLength(0);
    other.ioapic.endOfInterrupt(0x32, true);
    expect(other.sent).toHaveLength(1);
    expect(other.ioapic.setLine(3, 1, true)).toBe(0);
  });
  it("takes KVM_SET_IRQCHIP's state and sends what is pending in it", () => {
    const { ioapic } = setUp();
    write(ioapic, 0x10 + 4, LEVEL | 0x32);
    write(ioapic, 0x10 + 6, 0x33);
    ioapic.setLine(3, 1, true);
    const state = ioapic.getState();
    expect(state.irr).toBe(0); // delivered
    const other = setUp();
    other.ioapic.setState({ ...state, irr: 4 });
    expect(other.sent.map(({ vector }) => vector)).toEqual([0x32]);
  });
});
