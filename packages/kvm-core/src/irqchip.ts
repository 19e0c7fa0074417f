import type { KvmIrqRoutingEntry, Section, StructValue } from "@mkvm/kvm-abi";
import type { InterruptMessage } from "./interrupt-message.ts";
import type { Ioapic } from "./ioapic.ts";
import type { Lapic } from "./lapic.ts";
import type { Pic } from "./pic.ts";

export type IrqRoute = StructValue<(typeof KvmIrqRoutingEntry)["fields"]>;

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
  /** Undefined: restored. */
  restore(sections: readonly Section[]): string | undefined;
}

export type CreateIrqchip = (host: IrqchipHost) => Irqchip;
