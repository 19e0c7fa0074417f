import { KvmIrqRoutingMsi } from "@mkvm/kvm-abi";
import { describe, expect, it } from "vitest";
import { type IrqRoute, irqchipRoute } from "../src/irq-routing.ts";
import { createIrqchip } from "../src/irqchip.ts";
import { createLapic, type Lapic } from "../src/lapic.ts";
import { fakeClock } from "./fake-clock.ts";

function setUp(cpus = 1) {
  const clock = fakeClock();
  const acknowledged: number[] = [];
  const lapics: Lapic[] = [];
  const irqchip = createIrqchip({
    lapics: () => lapics,
    picOutputChanged: () => {},
    acknowledged: (gsi) => acknowledged.push(gsi),
  });
  for (let id = 0; id < cpus; id++) {
    const lapic = createLapic(
      id,
      { bootCpu: id === 0 },
      {
        clock,
        guestTsc: () => BigInt(clock.monotonicNs()),
        guestTscKhz: () => 1_000_000,
        kick: () => {},
        nmi: () => {},
        send: (message, source) => irqchip.deliver(message, source),
        broadcastEoi: (vector, level) => irqchip.ioapic.endOfInterrupt(vector, level),
      },
    );
    lapic.mmioWrite(0xf0, Uint8Array.of(0xff, 1, 0, 0));
    lapics.push(lapic);
  }
  return { irqchip, lapics, acknowledged };
}
const word = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
const msi = (gsi: number, address_lo: number, data: number): IrqRoute => {
  const u = new Uint8Array(32);
  KvmIrqRoutingMsi.write(u, { address_lo, address_hi: 0, data });
  return { gsi, type: 2, flags: 0, pad: 0, u };
};

describe("irqchip", () => {
  it("routes a GSI to both controllers as KVM does by default", () => {
    const { irqchip, lapics, acknowledged } = setUp();
    irqchip.ioapic.mmioWrite(0, word(0x10 + 2 * 4));
    irqchip.ioapic.mmioWrite(0x10, word(0x8000 | 0x44));
    expect(irqchip.setGsi(4, 1, true)).toBeGreaterThan(0);
    expect(irqchip.pic.getState(0).irr & 0x10).toBe(0x10);
    expect(lapics[0].acknowledge()).toBe(0x44);
    lapics[0].endOfInterrupt();
    expect(acknowledged).toEqual([4]);
    expect(lapics[0].acknowledge()).toBe(0x44); // the line is still high
    irqchip.releaseSource(1);
    lapics[0].endOfInterrupt();
    expect(lapics[0].acknowledge()).toBe(-1);
  });
  it("says that a GSI without a route, or masked everywhere, reached nobody", () => {
    const { irqchip } = setUp();
    expect(irqchip.setGsi(24, 1, true)).toBe(-1);
    irqchip.pic.write(0x21, 0xff);
    expect(irqchip.setGsi(4, 1, true)).toBe(-1);
  });
  it("sends MSIs by route and by KVM_SIGNAL_MSI", () => {
    const { irqchip, lapics } = setUp(2);
    expect(irqchip.setRoutes([msi(30, 0xfee0_1000, 0x51)])).toBe(0);
    expect(irqchip.setGsi(30, 1, true)).toBe(1);
    expect(irqchip.setGsi(30, 1, false)).toBe(-1);
    expect(lapics.map((lapic) => lapic.acknowledge())).toEqual([-1, 0x51]);
    expect(irqchip.signalMsi(0xfee0_0000, 0, 0x52)).toBe(1);
    expect(irqchip.signalMsi(0xfee0_0000, 0, 0x52)).toBe(0);
    expect(irqchip.signalMsi(0xfee0_9000, 0, 0x52)).toBe(0);
    expect(lapics[0].acknowledge()).toBe(0x52);
    expect(irqchip.signalMsi(0xfeef_f000, 0, 0x61)).toBe(2);
  });
  it("refuses routes that cannot be, and keeps the old ones", () => {
    const { irqchip } = setUp();
    const bad: IrqRoute[][] = [
      [irqchipRoute(5, 0, 8)],
      [irqchipRoute(5, 2, 24)],
      [irqchipRoute(5, 3, 0)],
      [irqchipRoute(5, 2, 5), irqchipRoute(5, 2, 6)],
      [irqchipRoute(5, 2, 5), msi(5, 0xfee0_0000, 0x50)],
      [msi(5, 0xfee0_0000, 0x50), msi(5, 0xfee0_0000, 0x51)],
      [irqchipRoute(4096, 2, 5)],
      [{ ...irqchipRoute(5, 2, 5), flags: 1 }],
      [{ ...irqchipRoute(5, 2, 5), type: 4 }],
      Array.from({ length: 4097 }, (_, i) => msi(i, 0xfee0_0000, 0x50)),
    ];
    const before = irqchip.save();
    for (const routes of bad) expect(irqchip.setRoutes(routes)).toBe(-22);
    expect(irqchip.save()).toEqual(before);
    expect(irqchip.setRoutes([irqchipRoute(5, 0, 7), irqchipRoute(5, 2, 23)])).toBe(0);
  });
  it("saves in sections, and the same bytes come from a restored one", () => {
    const { irqchip } = setUp();
    irqchip.setRoutes([irqchipRoute(4, 0, 4), irqchipRoute(4, 2, 4), msi(30, 0xfee0_0000, 0x50)]);
    irqchip.setGsi(4, 1, true);
    irqchip.setGsi(4, 4, true);
    const sections = irqchip.save();
    const other = setUp().irqchip;
    expect(other.restore(sections)).toBeUndefined();
    expect(other.save()).toEqual(sections);
    expect(other.restore([])).toBe("section vm.irqchip[0] is missing");
  });
});
