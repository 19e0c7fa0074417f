/** The in-kernel interrupt controllers and the PIT of one VM, wired to each other and to its vCPUs. */
import { type Clock, IrqSource } from "@mkvm/kvm-abi";
import { deliverInterrupt } from "../interrupt-message.ts";
import { createIrqchip, type Irqchip } from "../irqchip.ts";
import { createLapic, type Lapic, type LapicHost } from "../lapic.ts";
import { createPit, type Pit } from "../pit.ts";
import { PIC_REQUEST, type VcpuCounters } from "../statistics/vcpu-statistics.ts";
import { Irqfds } from "./irqfds.ts";

/** What the fabric needs of a vCPU. */
export interface FabricVcpu {
  readonly statistics: Pick<VcpuCounters, "interruptRequested">;
  readonly lapic: Lapic | undefined;
  kick(): void;
}

const PIT_GSI = 0;

export class InterruptFabric {
  readonly #clock: Clock;
  readonly #vcpus: () => readonly FabricVcpu[];
  /** KVM_IRQFD. */
  readonly irqfds = new Irqfds((gsi, source, level) => this.irqchip?.setGsi(gsi, source, level));
  irqchip: Irqchip | undefined;
  pit: Pit | undefined;

  constructor(clock: Clock, vcpus: () => readonly FabricVcpu[]) {
    this.#clock = clock;
    this.#vcpus = vcpus;
  }

  createIrqchip(): void {
    this.irqchip = createIrqchip({
      lapics: () => this.lapics(),
      picOutputChanged: (level) => {
        if (!level) return;
        for (const vcpu of this.#vcpus()) {
          if (!vcpu.lapic?.acceptsPicInterrupts()) continue;
          vcpu.statistics.interruptRequested(PIC_REQUEST);
          vcpu.kick();
        }
      },
      acknowledged: (gsi) => {
        if (gsi === PIT_GSI) this.pit?.acknowledged();
        this.irqfds.acknowledged(gsi);
      },
    });
  }

  /** `speaker`: port 0x61 is emulated here (KVM_PIT_SPEAKER_DUMMY). */
  createPit(speaker: boolean): void {
    this.pit = createPit(
      { clock: this.#clock, setIrq: (level) => this.irqchip?.setGsi(PIT_GSI, IrqSource.pit, level) ?? -1 },
      { speaker },
    );
  }

  *lapics(): Iterable<Lapic> {
    for (const vcpu of this.#vcpus()) if (vcpu.lapic !== undefined) yield vcpu.lapic;
  }

  /** A local APIC on this VM's bus. `own` supplies what concerns the vCPU itself. */
  createLapic(
    id: number,
    bootCpu: boolean,
    own: Omit<LapicHost, "clock" | "send" | "broadcastEoi">,
    registers?: Uint8Array,
  ): Lapic {
    return createLapic(
      id,
      { bootCpu, registers },
      {
        ...own,
        clock: this.#clock,
        send: (message, source) => {
          deliverInterrupt(this.lapics(), message, source);
        },
        broadcastEoi: (vector, levelTriggered) => this.irqchip?.ioapic.endOfInterrupt(vector, levelTriggered),
      },
    );
  }

  dispose(): void {
    this.irqfds.dispose();
    this.pit?.dispose();
    this.pit = undefined;
    this.irqchip = undefined;
  }
}

/** True when the 8259 or the local APIC has an interrupt for the vCPU that its priority lets through. */
export function hasInterrupt(lapic: Lapic, irqchip: Irqchip | undefined): boolean {
  return hasPicInterrupt(lapic, irqchip) || lapic.pendingVector() >= 0;
}
/** True when the 8259 has one, and it reaches the vCPU. */
export function hasPicInterrupt(lapic: Lapic, irqchip: Irqchip | undefined): boolean {
  return irqchip?.pic.output === true && lapic.acceptsPicInterrupts();
}

/** Takes the interrupt: ExtINT from the 8259 before the local APIC's own, as Linux has it. -1 when there is none any more. */
export function takeInterrupt(
  lapic: Lapic,
  irqchip: Irqchip | undefined,
  statistics: Pick<VcpuCounters, "interruptTaken">,
): number {
  if (irqchip?.pic.output && lapic.acceptsPicInterrupts()) {
    statistics.interruptTaken(PIC_REQUEST);
    return irqchip.pic.readInterrupt();
  }
  const vector = lapic.acknowledge();
  if (vector >= 0) statistics.interruptTaken(vector);
  return vector;
}
