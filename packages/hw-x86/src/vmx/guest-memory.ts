/**
 * Physical memory as a guest in VMX non-root operation reaches it: through EPT, and past the APIC-access page. Source: Intel SDM Vol. 3C,
 * The Extended Page Table Mechanism (EPT); Virtualizing Memory-Mapped APIC Accesses.
 */
import type { Gpa, Gva } from "../addresses.ts";
import type { SecondLevelPage } from "../engine/guest-mode.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { ExitReason, Secondary } from "./controls.ts";
import { Ept, EptResult } from "./ept.ts";
import { slot } from "./fields.ts";
import type { GuestExits } from "./guest-exits.ts";
import { ModificationLog } from "./modification-log.ts";
import type { VirtualApic } from "./virtual-apic.ts";
import type { Vmcs } from "./vmcs.ts";

const FETCH = 4;
/** Access types in the qualification of APIC-access exits. */
const ApicAccessType = { read: 0, write: 1, fetch: 2, delivery: 3, physicalInDelivery: 10, physical: 15 } as const;

export interface MemoryGuest {
  readonly engine: GuestEngine;
  readonly exits: GuestExits;
  readonly apic: VirtualApic;
}

export class GuestMemory {
  readonly ept: Ept;
  usesEpt = false;
  readonly #cpu: RootCpu;
  readonly #vmcs: Vmcs;
  readonly #guest: MemoryGuest;
  readonly #log: ModificationLog;

  constructor(cpu: RootCpu, vmcs: Vmcs, guest: MemoryGuest) {
    this.#cpu = cpu;
    this.#vmcs = vmcs;
    this.#guest = guest;
    this.#log = new ModificationLog(vmcs);
    this.ept = new Ept(cpu.model.physicalAddressBits, (line) => cpu.log(line));
  }

  useControls(secondary: number): void {
    this.usesEpt = (secondary & Secondary.enableEpt) !== 0;
    const logs = (secondary & Secondary.enablePml) !== 0;
    if (logs) this.#log.point(this.#vmcs.number(slot.PML_ADDRESS), this.#cpu.memory);
    this.ept.log = logs ? this.#log : undefined;
  }

  translate(gpa: Gpa, access: number, linear: Gva | undefined, walk: boolean): SecondLevelPage {
    const { ept } = this;
    if (!this.usesEpt) return this.#reached(ept.physical(this.#cpu.memory.bank(this.#vmcs.bank), gpa, access), access, walk);
    // With accessed and dirty flags on, the walk of guest paging structures counts as writing them
    const wanted = walk && ept.hasAccessedDirty ? access | 2 : access;
    const result = ept.translate(gpa, wanted);
    if (result === EptResult.mapped) return this.#reached(ept.page, access, walk);
    return this.#eptExit(result, gpa, walk && ept.hasAccessedDirty ? access | 3 : access, linear, walk);
  }

  /** The APIC-access page is told from memory. What is no read or write by linear address exits there. */
  #reached(page: SecondLevelPage, access: number, walk: boolean): SecondLevelPage {
    const { apic, exits } = this.#guest;
    const { accessPage } = apic;
    page.isApic = accessPage >= 0 && page.hpa - (page.hpa % 4096) === accessPage;
    if (!page.isApic) return page;
    if (walk) this.#apicExit(0, exits.vectoring.isUnderWay ? ApicAccessType.physicalInDelivery : ApicAccessType.physical);
    if ((access & FETCH) !== 0) this.#apicExit(page.hpa % 4096, ApicAccessType.fetch);
    return page;
  }
  /** For a linear access to the APIC-access page. */
  leaveForApicAccess(offset: number, isWrite: boolean): never {
    if (this.#guest.exits.vectoring.isUnderWay) return this.#apicExit(offset, ApicAccessType.delivery);
    return this.#apicExit(offset, isWrite ? ApicAccessType.write : ApicAccessType.read);
  }
  #apicExit(offset: number, type: number): never {
    const { exits, engine } = this.#guest;
    const exit = exits.information;
    exit.reset(ExitReason.apicAccess);
    exit.qualificationLow = offset | (type << 12);
    if (type !== ApicAccessType.fetch) exit.instructionLength = engine.instructionLength();
    return exits.leave();
  }

  #eptExit(result: number, gpa: number, access: number, linear: Gva | undefined, walk: boolean): never {
    const { exits, engine } = this.#guest;
    const exit = exits.information;
    if (result === EptResult.logFull) {
      exit.reset(ExitReason.pageModificationLogFull);
      exit.qualificationLow = exits.unblocking;
      return exits.leave();
    }
    const isViolation = result === EptResult.violation;
    exit.reset(isViolation ? ExitReason.eptViolation : ExitReason.eptMisconfiguration);
    exit.setPhysical(gpa);
    if (isViolation) {
      let qualification = access | (this.ept.violationRights << 3) | exits.unblocking;
      if (linear !== undefined) qualification |= walk ? 0x80 : 0x180;
      exit.qualificationLow = qualification;
      if (linear !== undefined) exit.setLinear(linear);
    }
    if ((access & FETCH) === 0) exit.instructionLength = engine.instructionLength();
    return exits.leave();
  }
}
