/** A logical CPU with VMX. */
import type { CpuModel } from "./engine/cpu.ts";
import type { VmxInstructions } from "./logical-cpu.ts";
import { type EngineFactory, LogicalCpuCore } from "./logical-cpu-core.ts";
import type { MachineDescription } from "./machine.ts";
import { IntelCounters } from "./performance/intel-counters.ts";
import { RootMsrs } from "./root-msrs.ts";
import { HostRegisters } from "./sanitizer/host-registers.ts";
import { Sanitizer } from "./sanitizer/sanitizer.ts";
import { absentSvm } from "./svm/absent-svm.ts";
import { exitReasonName } from "./vmx/controls.ts";
import { VmxInstructionSet } from "./vmx/instructions.ts";
import { intelMsrs } from "./vmx/intel-msrs.ts";
import type { VmxGuest } from "./vmx/vmx-guest.ts";

const CR4_VMXE = 1n << 13n;

export class IntelCpu extends LogicalCpuCore {
  readonly vendor = "intel";
  readonly msrs: RootMsrs;
  readonly counters: IntelCounters;
  readonly vmx: VmxInstructions;
  readonly svm = absentSvm;
  readonly sanitizer: Sanitizer;
  readonly #vmx: VmxInstructionSet;

  constructor(
    machine: MachineDescription,
    id: number,
    model: CpuModel,
    makeEngine: EngineFactory,
    log: (line: string) => void,
  ) {
    super(machine, id, model, makeEngine, log);
    this.msrs = new RootMsrs(intelMsrs, this.block, model, { isBootProcessor: id === 0, pagingLevels: machine.pagingLevels });
    this.counters = new IntelCounters(this);
    this.#vmx = new VmxInstructionSet(this);
    this.vmx = this.#vmx;
    this.sanitizer = new Sanitizer(this, new HostRegisters(intelMsrs, this.msrs, this.block), this.#vmx);
  }

  protected get guestMode(): VmxGuest {
    return this.#vmx.guestMode;
  }
  protected extensionLosesPower(): void {
    this.#vmx.losePower();
  }
  protected bankGoesAway(id: number): void {
    this.#vmx.bankReleased(id);
  }
  protected registersMove(): void {
    this.#vmx.forgetResident();
  }
  protected hostRegisterWritten(): void {
    this.#vmx.hostRegisterWritten();
  }
  protected exitName(counter: number): string {
    return exitReasonName(counter);
  }

  protected mayWriteCr4(value: bigint): boolean {
    if (!this.#vmx.isInOperation || (value & CR4_VMXE) !== 0n) return true;
    this.log("#GP: CR4.VMXE cannot be cleared in VMX operation; CR4 left as it is");
    return false;
  }
}
