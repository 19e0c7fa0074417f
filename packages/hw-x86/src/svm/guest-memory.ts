/** Physical memory as a guest of SVM reaches it: through nested paging. Source: AMD64 APM Vol. 2, Nested Paging. */
import type { Gpa } from "../addresses.ts";
import { CS, state } from "../engine/cpu-state.ts";
import { GUEST_FAULT, type SecondLevelPage, VM_EXIT } from "../engine/guest-mode.ts";
import { translateFetch } from "../engine/system/paging.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { MAPPED } from "../second-level-tables.ts";
import type { Avic } from "./avic.ts";
import type { GuestExits } from "./guest-exits.ts";
import { Npt } from "./npt.ts";
import { Control, ExitCode, NESTED_PAGING } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const WRITE = 2;
const FETCH = 4;
/** High half of EXITINFO1 of a nested page fault: the access was to the page itself, or to a guest page table. */
const FINAL_ACCESS = 1;
const TABLE_WALK = 2;

export interface MemoryGuest {
  readonly engine: GuestEngine;
  readonly exits: GuestExits;
  readonly apic: Avic;
  /** Bank of the VMCB, where a guest without nested paging lives. */
  readonly bank: number;
}

export class GuestMemory {
  readonly npt: Npt;
  usesNpt = false;
  readonly #cpu: RootCpu;
  readonly #guest: MemoryGuest;
  #isProbing = false;

  constructor(cpu: RootCpu, guest: MemoryGuest) {
    this.#cpu = cpu;
    this.#guest = guest;
    this.npt = new Npt(cpu.model.physicalAddressBits, (line) => cpu.log(line));
  }

  useControls(vmcb: Vmcb): void {
    this.usesNpt = (vmcb.low(Control.NESTED) & NESTED_PAGING) !== 0;
  }

  translate(gpa: Gpa, access: number, walk: boolean): SecondLevelPage {
    const { npt } = this;
    npt.page.isApic = false;
    if (!this.usesNpt) return npt.physical(this.#cpu.memory.bank(this.#guest.bank), gpa, access);
    // Walks of guest page tables are writes, whatever they are for: they may set accessed and dirty bits
    const wanted = walk ? access | WRITE : access;
    if (npt.translate(gpa, wanted) !== MAPPED) return this.#nestedPageFault(gpa, access, walk);
    // What is no data access goes to memory
    npt.page.isApic = !walk && (access & FETCH) === 0 && this.#guest.apic.isRegisters(gpa);
    return npt.page;
  }

  #nestedPageFault(gpa: number, access: number, walk: boolean): never {
    if (this.#isProbing) throw VM_EXIT;
    const { exits } = this.#guest;
    const exit = exits.information;
    exit.reset(ExitCode.nestedPageFault);
    exit.info1Low = this.npt.error;
    exit.info1High = walk ? TABLE_WALK : FINAL_ACCESS;
    exit.setPhysical(gpa);
    exit.hasBytes = (access & FETCH) === 0;
    return exits.leave();
  }

  /**
   * Bank offset of the first byte of the instruction at RIP, which has just been fetched; undefined where its translation is gone by
   * now. Asking for it decides for nothing.
   */
  instructionOffset(): number | undefined {
    const { engine } = this.#guest;
    this.#isProbing = true;
    try {
      return translateFetch(engine, engine.linear(CS, engine.get64(state.rip), 1, false));
    } catch (thrown) {
      if (thrown !== VM_EXIT && thrown !== GUEST_FAULT) throw thrown;
      return undefined;
    } finally {
      this.#isProbing = false;
    }
  }
}
