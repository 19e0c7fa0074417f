/** A logical CPU with SVM. */
import type { CpuModel } from "./engine/cpu.ts";
import type { SvmInstructions } from "./logical-cpu.ts";
import { type EngineFactory, LogicalCpuCore } from "./logical-cpu-core.ts";
import type { MachineDescription } from "./machine.ts";
import { Msr } from "./msr.ts";
import { AmdCounters } from "./performance/amd-counters.ts";
import { Root, RootMsrs } from "./root-msrs.ts";
import { HostRegisters } from "./sanitizer/host-registers.ts";
import { Sanitizer } from "./sanitizer/sanitizer.ts";
import { amdMsrs } from "./svm/amd-msrs.ts";
import { SvmInstructionSet } from "./svm/instructions.ts";
import type { SvmGuest } from "./svm/svm-guest.ts";
import { exitCodeName, exitOfCounter } from "./svm/vmcb.ts";
import { absentVmx } from "./vmx/absent-vmx.ts";

const HIGHEST_APIC_ID = 0xffn;

export class AmdCpu extends LogicalCpuCore {
  readonly vendor = "amd";
  readonly msrs: RootMsrs;
  readonly counters: AmdCounters;
  readonly vmx = absentVmx;
  readonly svm: SvmInstructions;
  readonly sanitizer: Sanitizer;
  readonly #svm: SvmInstructionSet;

  constructor(
    machine: MachineDescription,
    id: number,
    model: CpuModel,
    makeEngine: EngineFactory,
    log: (line: string) => void,
  ) {
    super(machine, id, model, makeEngine, log);
    this.msrs = new RootMsrs(amdMsrs, this.block, model, { isBootProcessor: id === 0, pagingLevels: machine.pagingLevels });
    this.counters = new AmdCounters(this);
    this.#svm = new SvmInstructionSet(this);
    this.svm = this.#svm;
    this.sanitizer = new Sanitizer(this, new HostRegisters(amdMsrs, this.msrs, this.block), this.#svm);
  }

  /** The doorbell is written only; the value is the number of a processor. */
  override wrmsr(index: number, value: bigint): boolean {
    const number = index >>> 0;
    if (number === Msr.EFER || number === Msr.VM_HSAVE_PA) {
      const efer = this.msrs.values[Root.efer] as bigint;
      const area = this.msrs.values[Root.hostSaveArea] as bigint;
      const isWritten = super.wrmsr(index, value);
      if (number === Msr.EFER) this.counters.extensionSwitched();
      if (!isWritten) return false;
      this.#svm.registerWritten(efer, area);
      return true;
    }
    if (number !== Msr.AVIC_DOORBELL) return super.wrmsr(index, value);
    if (value > HIGHEST_APIC_ID) return false;
    this.lines.ring(Number(value));
    return true;
  }

  protected get guestMode(): SvmGuest {
    return this.#svm.guestMode;
  }
  protected extensionLosesPower(): void {
    this.#svm.losePower();
  }
  protected bankGoesAway(id: number): void {
    this.#svm.bankReleased(id);
  }
  protected registersMove(): void {}
  protected hostRegisterWritten(): void {}
  protected exitName(counter: number): string {
    return exitCodeName(exitOfCounter(counter));
  }

  protected mayWriteCr4(value: bigint): boolean {
    if ((value & ~this.model.cr4Allowed) === 0n) return true;
    this.log("#GP: CR4 has bits that this processor lacks; CR4 left as it is");
    return false;
  }
}
