/** Routes from global system interrupts to pins of the interrupt controllers and to MSIs. */
import {
  Errno,
  IrqchipId,
  IrqRoutingType,
  KVM_IOAPIC_NUM_PINS,
  type KvmIrqRoutingEntry,
  KvmIrqRoutingIrqchip,
  KvmIrqRoutingMsi,
  type StructValue,
} from "@mkvm/kvm-abi";

export type IrqRoute = StructValue<(typeof KvmIrqRoutingEntry)["fields"]>;

export const MAX_IRQ_ROUTES = 4096;

export interface IrqRoutingHost {
  setPicLine(irq: number, source: number, level: boolean): number;
  setIoapicLine(pin: number, source: number, level: boolean): number;
  sendMsi(addressLow: number, addressHigh: number, data: number): number;
  acknowledged(gsi: number): void;
}

export interface IrqRouting {
  readonly routes: readonly IrqRoute[];
  setRoutes(routes: readonly IrqRoute[]): number;
  setGsi(gsi: number, source: number, level: boolean): number;
  /** A pin of `chip` (IrqchipId) was acknowledged. */
  acknowledged(chip: number, pin: number): void;
}

type Target =
  | { kind: "chip"; chip: number; pin: number }
  | { kind: "msi"; addressLow: number; addressHigh: number; data: number };

/** A route to a pin of an irqchip. */
export function irqchipRoute(gsi: number, irqchip: number, pin: number): IrqRoute {
  const u = new Uint8Array(32);
  KvmIrqRoutingIrqchip.write(u, { irqchip, pin });
  return { gsi, type: IrqRoutingType.KVM_IRQ_ROUTING_IRQCHIP, flags: 0, pad: 0, u };
}

/** What KVM_CREATE_IRQCHIP sets up: GSI n is pin n of the IOAPIC, and line n of the 8259s for the first 16. */
export function defaultRoutes(): IrqRoute[] {
  const routes: IrqRoute[] = [];
  for (let gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
    routes.push(irqchipRoute(gsi, IrqchipId.KVM_IRQCHIP_IOAPIC, gsi));
    if (gsi < 16) routes.push(irqchipRoute(gsi, gsi >> 3, gsi & 7));
  }
  return routes;
}

function targetOf(route: IrqRoute): Target | undefined {
  if (route.type === IrqRoutingType.KVM_IRQ_ROUTING_MSI) {
    const { address_lo, address_hi, data } = KvmIrqRoutingMsi.read(route.u);
    return { kind: "msi", addressLow: address_lo, addressHigh: address_hi, data };
  }
  if (route.type !== IrqRoutingType.KVM_IRQ_ROUTING_IRQCHIP) return undefined;
  const { irqchip, pin } = KvmIrqRoutingIrqchip.read(route.u);
  const pins = irqchip === IrqchipId.KVM_IRQCHIP_IOAPIC ? KVM_IOAPIC_NUM_PINS : irqchip < IrqchipId.KVM_IRQCHIP_IOAPIC ? 8 : 0;
  return pin < pins ? { kind: "chip", chip: irqchip, pin } : undefined;
}

export function createIrqRouting(host: IrqRoutingHost): IrqRouting {
  let current: IrqRoute[] = [];
  let targets = new Map<number, Target[]>();
  /** GSIs of a pin, by chip * 32 + pin. */
  let gsisOfPin = new Map<number, number[]>();

  function setRoutes(routes: readonly IrqRoute[]): number {
    if (routes.length > MAX_IRQ_ROUTES) return -Errno.EINVAL;
    const next = new Map<number, Target[]>();
    const pins = new Map<number, number[]>();
    for (const route of routes) {
      const target = route.gsi < MAX_IRQ_ROUTES && route.flags === 0 ? targetOf(route) : undefined;
      if (!target) return -Errno.EINVAL;
      const siblings = next.get(route.gsi) ?? [];
      // One pin of each chip at most; an MSI has its GSI to itself
      const clash = siblings.some((other) => target.kind === "msi" || other.kind === "msi" || other.chip === target.chip);
      if (clash) return -Errno.EINVAL;
      next.set(route.gsi, [...siblings, target]);
      if (target.kind === "chip") {
        const key = target.chip * 32 + target.pin;
        pins.set(key, [...(pins.get(key) ?? []), route.gsi]);
      }
    }
    current = routes.map((route) => ({ ...route, u: route.u.slice() }));
    targets = next;
    gsisOfPin = pins;
    return 0;
  }
  setRoutes(defaultRoutes());

  return {
    get routes() {
      return current;
    },
    setRoutes,
    setGsi(gsi, source, level) {
      let result = -1;
      for (const target of targets.get(gsi) ?? []) {
        let one: number;
        if (target.kind === "msi") one = level ? host.sendMsi(target.addressLow, target.addressHigh, target.data) : -1;
        else if (target.chip === IrqchipId.KVM_IRQCHIP_IOAPIC) one = host.setIoapicLine(target.pin, source, level);
        else one = host.setPicLine(target.chip * 8 + target.pin, source, level);
        if (one >= 0) result = one + Math.max(result, 0);
      }
      return result;
    },
    acknowledged(chip, pin) {
      for (const gsi of gsisOfPin.get(chip * 32 + pin) ?? []) host.acknowledged(gsi);
    },
  };
}
