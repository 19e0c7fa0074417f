/**
 * For the hardware sanitizer: at an entry to guest mode, whether anything that the processor will use there leads to a page that the
 * kernel's allocator has back. Until the entry a module may mend it: unlinking, flushing and freeing have no order that hardware sees.
 */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import type { RootCpu } from "../root-interface.ts";
import type { WalkedTables } from "./walked-tables.ts";

/** Pages that a VMCS or VMCB names: what they are, address, how many. */
export type NamedPages = readonly [string, number, number];

export interface EntryNames {
  /** "VMCS" or "VMCB". */
  readonly structure: string;
  readonly flush: string;
}

export class EntryCheck {
  readonly #cpu: RootCpu;
  readonly #names: EntryNames;
  readonly #reported = new Set<string>();

  constructor(cpu: RootCpu, names: EntryNames) {
    this.#cpu = cpu;
    this.#names = names;
  }

  /** Entry by the structure at `address`, with `tables` turned to those of its guest, second-level ones or shadows; `pages`: what else it names. */
  entering(address: number, tables: WalkedTables, pages: () => readonly NamedPages[]): void {
    const stale = tables.staleThrough();
    if (stale !== undefined)
      this.#tell(address, `uses translations that went through page ${hex(stale)}, freed since, without ${this.#names.flush}`);
    const { freedPages } = this.#cpu;
    const isFree = freedPages.toCheck(bankOf(address as Hpa), address);
    if (isFree === undefined) return;
    const found = tables.findFree(isFree);
    if (found?.entry !== undefined)
      this.#tell(
        address,
        `has the freed page ${hex(found.page)} linked in its ${tables.title}, by the entry at ${hex(found.entry)}`,
      );
    else if (found !== undefined)
      this.#tell(address, `has the root of its ${tables.title} in the freed page ${hex(found.page)}`);
    for (const [name, first, count] of pages())
      for (let i = 0; i < count; i++) {
        const page = (first + i * 4096) as Hpa;
        if (freedPages.isFree(bankOf(page), offsetOf(page)))
          this.#tell(address, `has its ${name} in the freed page ${hex(page)}`);
      }
  }

  #tell(address: number, what: string): void {
    const finding = `${this.#names.structure} ${hex(address)} ${what}`;
    if (this.#reported.has(finding)) return;
    this.#reported.add(finding);
    this.#cpu.log(`sanitizer: on CPU ${this.#cpu.id} ${finding}`);
  }
}

function hex(address: number): string {
  return address.toString(16);
}
