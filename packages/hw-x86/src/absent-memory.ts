/** What guest accesses meet that the second level sends to where a bank has no memory: reads give ones, writes are lost. */
import type { Hpa } from "./addresses.ts";
import type { SecondLevelPage } from "./engine/guest-mode.ts";
import { BUS_READ_PAGE, BUS_WRITE_PAGE } from "./memory-banks.ts";
import type { MemoryBank } from "./physical-memory.ts";

const SPAN = 0x1_0000_0000;
const REPORTED_PAGES = 256;

export class AbsentMemory {
  readonly #reported = new Set<number>();
  readonly #tables: string;
  readonly #log: (line: string) => void;

  /** `tables`: name of the second level. */
  constructor(tables: string, log: (line: string) => void) {
    this.#tables = tables;
    this.#log = log;
  }

  /** Points `page` at what answers for guest physical `gpa`, which maps to `address`. Software made a mistake, so it is said aloud. */
  answer(page: SecondLevelPage, bank: MemoryBank, address: number, gpa: number, access: number): void {
    const pageAddress = address - (address % 4096);
    // Once a page, and no more than a log can bear: a guest repeats such accesses as fast as it can
    if (this.#reported.size < REPORTED_PAGES && !this.#reported.has(pageAddress)) {
      this.#reported.add(pageAddress);
      this.#log(
        `${this.#tables}: guest physical ${gpa.toString(16)} maps to ${address.toString(16)}, where bank ${bank.id} has no memory`,
      );
    }
    bank.u8.fill(0xff, BUS_READ_PAGE, BUS_READ_PAGE + 0x1000);
    page.hpa = (bank.id * SPAN + ((access & 2) !== 0 ? BUS_WRITE_PAGE : BUS_READ_PAGE) + (gpa % 4096)) as Hpa;
    page.rights = (access & 2) !== 0 ? access & 3 : 5 & (access | 1);
    page.pageBytes = 4096;
  }
}
