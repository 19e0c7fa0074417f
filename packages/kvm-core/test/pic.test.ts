import { describe, expect, it } from "vitest";
import { createPic, type Pic } from "../src/pic.ts";

/** Master vectors from 0x20, slave from 0x28, as a PC's firmware and Linux program them, all lines open. */
function programmed(options: { icw4?: number } = {}) {
  const log: string[] = [];
  const pic = createPic({
    outputChanged: (level) => log.push(`output ${level}`),
    acknowledged: (irq) => log.push(`ack ${irq}`),
  });
  const icw4 = options.icw4 ?? 1;
  for (const [port, base, cascade] of [
    [0x20, 0x20, 4],
    [0xa0, 0x28, 2],
  ]) {
    pic.write(port, 0x11);
    pic.write(port + 1, base);
    pic.write(port + 1, cascade);
    pic.write(port + 1, icw4);
    pic.write(port + 1, 0);
  }
  log.length = 0;
  return { pic, log };
}
const pulse = (pic: Pic, irq: number) => {
  const result = pic.setLine(irq, 1, true);
  pic.setLine(irq, 1, false);
  return result;
};

describe("8259 pair", () => {
  it("delivers an edge once, and the next after the line fell", () => {
    const { pic, log } = programmed();
    expect(pic.setLine(1, 1, true)).toBe(1);
    expect(pic.output).toBe(true);
    pic.setLine(1, 1, true);
    expect(pic.readInterrupt()).toBe(0x21);
    expect(pic.output).toBe(false);
    pic.write(0x20, 0x20);
    expect(pic.output).toBe(false);
    pic.setLine(1, 1, false);
    expect(pic.setLine(1, 1, true)).toBe(1);
    expect(log).toEqual(["output true", "output false", "ack 1", "output true"]);
  });
  it("keeps a level-triggered line pending until it falls", () => {
    const { pic } = programmed();
    pic.write(0x4d1, 0xff);
    expect(pic.read(0x4d1)).toBe(0xde);
    pic.write(0x4d0, 0xff);
    expect(pic.read(0x4d0)).toBe(0xf8);
    pic.setLine(11, 1, true);
    expect(pic.readInterrupt()).toBe(0x2b);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    expect(pic.output).toBe(true);
    pic.setLine(11, 1, false);
    expect(pic.readInterrupt()).toBe(0x2f); // spurious on the slave: the cascade is still in the master
    expect(pic.output).toBe(false);
  });
  it("is high while any source is", () => {
    const { pic } = programmed();
    pic.write(0x4d1, 0x08);
    pic.setLine(11, 1, true);
    pic.setLine(11, 4, true);
    pic.setLine(11, 1, false);
    expect(pic.output).toBe(true);
    pic.setLine(11, 4, false);
    expect(pic.read(0xa0)).toBe(0);
  });
  it("orders by priority, nests, and lets a higher line interrupt", () => {
    const { pic } = programmed();
    pulse(pic, 4);
    pulse(pic, 3);
    expect(pic.readInterrupt()).toBe(0x23);
    expect(pic.output).toBe(false);
    pulse(pic, 0);
    expect(pic.readInterrupt()).toBe(0x20);
    expect(pic.read(0x20)).toBe(0x10);
    pic.write(0x20, 0x0b);
    expect(pic.read(0x20)).toBe(0x09);
    pic.write(0x20, 0x20);
    expect(pic.read(0x20)).toBe(0x08);
    pic.write(0x20, 0x60 | 3);
    expect(pic.readInterrupt()).toBe(0x24);
  });
  it("masks, and delivers what came meanwhile at the unmask", () => {
    const { pic } = programmed();
    pic.write(0x21, 0x10);
    expect(pulse(pic, 4)).toBe(-1);
    expect(pic.output).toBe(false);
    expect(pic.read(0x21)).toBe(0x10);
    pic.write(0x21, 0);
    expect(pic.readInterrupt()).toBe(0x24);
  });
  it("gives a spurious IRQ 7 when the line went away", () => {
    const { pic } = programmed();
    expect(pic.readInterrupt()).toBe(0x27);
  });
  it("ends interrupts by itself in automatic EOI mode, and rotates when told", () => {
    const { pic, log } = programmed({ icw4: 3 });
    pulse(pic, 5);
    expect(pic.readInterrupt()).toBe(0x25);
    expect(log).toContain("ack 5");
    pic.write(0x20, 0x80);
    pulse(pic, 5);
    pic.readInterrupt();
    pulse(pic, 5);
    pulse(pic, 6);
    expect(pic.readInterrupt()).toBe(0x26);
  });
  it("rotates on EOI and by command", () => {
    const { pic } = programmed();
    pulse(pic, 1);
    pic.readInterrupt();
    pic.write(0x20, 0xa0);
    pulse(pic, 1);
    pulse(pic, 2 + 1);
    expect(pic.readInterrupt()).toBe(0x23);
    pic.write(0x20, 0x20);
    pic.write(0x20, 0xc0 | 7);
    pulse(pic, 0);
    expect(pic.readInterrupt()).toBe(0x20);
  });
  it("answers a poll", () => {
    const { pic } = programmed();
    pulse(pic, 3);
    pic.write(0x20, 0x0c);
    expect(pic.read(0x20)).toBe(0x83);
    pic.write(0x20, 0x0c);
    expect(pic.read(0x20)).toBe(0);
  });
  it("saves all, and goes on from it", () => {
    const { pic } = programmed();
    pulse(pic, 4);
    pulse(pic, 12);
    pic.readInterrupt();
    const other = createPic({ outputChanged: () => {}, acknowledged: () => {} });
    for (const chip of [0, 1]) other.setState(chip, pic.getState(chip));
    expect([0, 1].map((chip) => other.getState(chip))).toEqual([0, 1].map((chip) => pic.getState(chip)));
    for (const each of [pic, other]) {
      each.write(0xa0, 0x20);
      each.write(0x20, 0x20);
      expect(each.readInterrupt()).toBe(0x24);
    }
  });
});
