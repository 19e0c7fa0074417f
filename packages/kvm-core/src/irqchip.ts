/** The interrupt controllers that the VM's vCPUs share. */
import { type Section, VmIrqchip, VmIrqRouting } from "@mkvm/kvm-abi";
import { deliverInterrupt, type InterruptMessage } from "./interrupt-message.ts";
import { createIoapic, type Ioapic } from "./ioapic.ts";
import { createIrqRouting, type IrqRoute } from "./irq-routing.ts";
import type { Lapic } from "./lapic.ts";
import { decodeMsi } from "./msi.ts";
import { createPic, type Pic } from "./pic.ts";
import { KeptLists } from "./portable/section-lists.ts";

const ROUTE_LISTS = new KeptLists(VmIrqRouting);

export interface IrqchipHost {
  /** Local APICs of the VM, ascending by id. */
  lapics(): Iterable<Lapic>;
  /** The 8259's output changed: kick the vCPUs that accept ExtINT. */
  picOutputChanged(level: boolean): void;
  /** The guest ended the interrupt of this GSI. */
  acknowledged(gsi: number): void;
}

/** The in-kernel interrupt controllers of one VM with the routes between GSIs and their pins. */
export interface Irqchip {
  readonly pic: Pic;
  readonly ioapic: Ioapic;
  /** KVM_IRQ_LINE: drives GSI for one source (IrqSource bit). Result as KVM_IRQ_LINE_STATUS: more than 0 delivered, 0 coalesced,
   *  negative masked or not routed. */
  setGsi(gsi: number, source: number, level: boolean): number;
  /** KVM_SIGNAL_MSI: number of vCPUs that took it, 0 when it was blocked. */
  signalMsi(addressLow: number, addressHigh: number, data: number): number;
  deliver(message: InterruptMessage, source?: Lapic): number;
  /** KVM_SET_GSI_ROUTING. 0 or a negative errno; nothing changes on an error. */
  setRoutes(routes: readonly IrqRoute[]): number;
  /** Drops every level that one source drives. */
  releaseSource(source: number): void;
  reset(): void;
  /** Sections vm.irqchip and vm.irq-routing. */
  save(): Section[];
  /** vm.irq-routing alone, which can come while the VM still runs. Undefined: restored. */
  restoreRoutes(sections: readonly Section[]): string | undefined;
  /** Undefined: restored. */
  restore(sections: readonly Section[]): string | undefined;
}

export function createIrqchip(host: IrqchipHost): Irqchip {
  const deliver = (message: InterruptMessage, source?: Lapic) => deliverInterrupt(host.lapics(), message, source);
  const pic = createPic({
    outputChanged: (level) => host.picOutputChanged(level),
    acknowledged: (irq) => routing.acknowledged(irq >> 3, irq & 7),
  });
  const ioapic = createIoapic({ deliver, acknowledged: (pin) => routing.acknowledged(2, pin) });
  const signalMsi = (low: number, high: number, data: number) => deliver(decodeMsi(low, high, data));
  const routing = createIrqRouting({
    setPicLine: (irq, source, level) => pic.setLine(irq, source, level),
    setIoapicLine: (pin, source, level) => ioapic.setLine(pin, source, level),
    sendMsi: signalMsi,
    acknowledged: (gsi) => host.acknowledged(gsi),
  });

  function restoreRoutes(sections: readonly Section[]): string | undefined {
    const section = sections.find(({ name }) => name === VmIrqRouting.name);
    if (section === undefined) return `section ${VmIrqRouting.name}[0] is missing`;
    if (ROUTE_LISTS.says(section, routing.routes)) return undefined;
    const routes = VmIrqRouting.decode(section);
    if (typeof routes === "string") return routes;
    if (routing.setRoutes(routes.entries) < 0) return "section vm.irq-routing[0] has a route that this side cannot take";
    ROUTE_LISTS.keep(section, routing.routes);
    return undefined;
  }

  return {
    pic,
    ioapic,
    deliver,
    setGsi: (gsi, source, level) => routing.setGsi(gsi, source, level),
    signalMsi: (low, high, data) => Math.max(0, signalMsi(low, high, data)),
    setRoutes: (routes) => routing.setRoutes(routes),
    releaseSource(source) {
      pic.lines.forEach((sources, irq) => {
        if (sources & source) pic.setLine(irq, source, false);
      });
      ioapic.lines.forEach((sources, pin) => {
        if (sources & source) ioapic.setLine(pin, source, false);
      });
    },
    reset() {
      pic.reset();
      ioapic.reset();
    },
    save: () => [
      VmIrqchip.encode(0, {
        pic_master: pic.getState(0),
        pic_slave: pic.getState(1),
        pic_lines: [...pic.lines],
        ...ioapic.save(),
      }),
      ROUTE_LISTS.encode(0, routing.routes),
    ],
    restoreRoutes,
    restore(sections) {
      const chips = VmIrqchip.find(sections);
      if (typeof chips === "string") return chips;
      const refused = restoreRoutes(sections);
      if (refused !== undefined) return refused;
      pic.lines.set(chips.fixed.pic_lines);
      pic.setState(0, chips.fixed.pic_master);
      pic.setState(1, chips.fixed.pic_slave);
      ioapic.restore(chips.fixed);
      return undefined;
    },
  };
}
