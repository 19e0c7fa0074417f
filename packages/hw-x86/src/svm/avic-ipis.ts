/**
 * IPIs of a guest whose virtual machine has tables of its local APICs: requests go into the targets' backing pages, and processors that run
 * one of them are told by doorbell. Source: AMD64 APM Vol. 2, Advanced Virtual Interrupt Controller, Physical APIC ID Table; Logical APIC
 * ID Table; Sending IPIs.
 */
import { Apic, ApicPage } from "../apic-page.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { RootCpu } from "../root-interface.ts";
import { Control } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const SPAN = 0x1_0000_0000;
const PAGE = 4096;
const BROADCAST = 0xff;
const CLUSTERS = 15;
/** High word of an entry of the physical table. */
const VALID = 0x8000_0000;
const IS_RUNNING = 0x4000_0000;
const PAGE_HIGH = 0xf_ffff;
/** Low word: the processor that runs it. */
const HOST_ID = 0xfff;
/** Entry of the logical table. */
const GUEST_ID = 0xff;

/** ID in EXITINFO2 of an IPI that is not done; `none`: it is. */
export const IpiFailure = { none: -1, type: 0, notRunning: 1, target: 2, backingPage: 3, vector: 4 } as const;

/** What the low half of the ICR asks for. */
export const IcrKind = {
  other: 0,
  physical: 1,
  logical: 2,
  self: 3,
  all: 4,
  others: 5,
  of(low: number): number {
    // Fixed and edge-triggered alone
    if ((low & 0x8700) !== 0) return IcrKind.other;
    const shorthand = (low >>> 18) & 3;
    if (shorthand !== 0) return shorthand + IcrKind.logical;
    return (low & 0x800) !== 0 ? IcrKind.logical : IcrKind.physical;
  },
} as const;

export class IpiTargets {
  failure: number = IpiFailure.none;
  /** Of the table's entry that the failure is about. */
  index = 0;
  /** Something was put into the sender's own page. */
  includesSelf = false;
  readonly #cpu: RootCpu;
  readonly #page = new ApicPage();
  #own = 0;
  #physical = 0;
  #last = 0;
  #logical = 0;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  /** `own`: address of the sender's backing page. */
  use(vmcb: Vmcb, own: number): void {
    this.#own = own;
    const physical = vmcb.number(Control.AVIC_PHYSICAL_TABLE);
    this.#physical = tableAt(physical);
    this.#last = physical % 0x100;
    this.#logical = tableAt(vmcb.number(Control.AVIC_LOGICAL_TABLE));
  }

  /** Sends to everybody that is meant; `failure` is the most urgent of what is left to software. */
  send(kind: number, destination: number, vector: number, isFlat: boolean): void {
    this.failure = IpiFailure.none;
    this.index = 0;
    this.includesSelf = false;
    if (kind === IcrKind.other) this.failure = IpiFailure.type;
    else if (vector < 16) this.failure = IpiFailure.vector;
    else if (kind === IcrKind.self) this.#toPage(this.#own, vector);
    else if (kind === IcrKind.all || kind === IcrKind.others) this.#toAll(vector, kind === IcrKind.others);
    else if (destination === BROADCAST) this.#toAll(vector, false);
    else if (kind === IcrKind.physical) this.#toId(destination, vector, destination);
    else this.#toLogical(destination, vector, isFlat);
  }

  #fail(failure: number, index: number): void {
    // That somebody has to be woken must not be lost
    if (this.failure === IpiFailure.notRunning) return;
    this.failure = failure;
    this.index = index;
  }

  #toAll(vector: number, isWithoutSelf: boolean): void {
    for (let id = 0; id <= this.#last; id++) {
      const entry = this.#entry(id);
      if (entry === undefined || (entry.high & VALID) === 0) continue;
      if (!isWithoutSelf || pageIn(entry) !== this.#own) this.#toEntry(entry, vector, id);
    }
  }

  #toLogical(destination: number, vector: number, isFlat: boolean): void {
    const cluster = destination >>> 4;
    if (!isFlat && cluster === CLUSTERS) {
      for (let each = 0; each < CLUSTERS; each++) this.#toMembers(4 * each, destination & 15, vector, false);
      return;
    }
    if (isFlat) this.#toMembers(0, destination, vector, true);
    else this.#toMembers(4 * cluster, destination & 15, vector, true);
  }
  #toMembers(first: number, members: number, vector: number, isDemanded: boolean): void {
    for (let member = 0; members >>> member !== 0; member++) {
      if (((members >>> member) & 1) === 0) continue;
      const index = first + member;
      const bank = this.#cpu.memory.holding(this.#logical, PAGE);
      const entry = bank === undefined ? 0 : (bank.u32[((this.#logical % SPAN) >>> 2) + index] as number);
      if ((entry & VALID) !== 0) this.#toId(entry & GUEST_ID, vector, index);
      else if (isDemanded) this.#fail(IpiFailure.target, index);
    }
  }

  #toId(id: number, vector: number, index: number): void {
    const entry = id > this.#last ? undefined : this.#entry(id);
    if (entry === undefined || (entry.high & VALID) === 0) this.#fail(IpiFailure.target, index);
    else this.#toEntry(entry, vector, index);
  }
  #entry(id: number): { low: number; high: number } | undefined {
    const bank = this.#cpu.memory.holding(this.#physical, PAGE);
    if (bank === undefined) return undefined;
    const at = ((this.#physical % SPAN) >>> 2) + 2 * id;
    return { low: bank.u32[at] as number, high: bank.u32[at + 1] as number };
  }

  #toEntry(entry: { low: number; high: number }, vector: number, index: number): void {
    const address = pageIn(entry);
    if (!this.#toPage(address, vector)) this.#fail(IpiFailure.backingPage, index);
    else if ((entry.high & IS_RUNNING) === 0) {
      if (address !== this.#own) this.#fail(IpiFailure.notRunning, index);
    } else if (address !== this.#own) this.#cpu.lines.ring(entry.low & HOST_ID);
  }
  #toPage(address: number, vector: number): boolean {
    const bank: MemoryBank | undefined = this.#cpu.memory.holding(address, PAGE);
    if (bank === undefined) return false;
    this.#page.point(bank, address % SPAN);
    this.#page.mark(Apic.irr, vector);
    if (address === this.#own) this.includesSelf = true;
    return true;
  }
}

function pageIn({ low, high }: { low: number; high: number }): number {
  return (high & PAGE_HIGH) * SPAN + (low - (low % PAGE));
}
function tableAt(field: number): number {
  const address = field % 2 ** 52;
  return address - (address % PAGE);
}
