/** Pages that a VMCB names and the processor uses in guest mode. Source: AMD64 APM Vol. 2, Layout of VMCB. */
import { Cr0, Efer } from "../engine/system/bits.ts";
import type { NamedPages } from "../sanitizer/entry-check.ts";
import type { PagingRegisters } from "../sanitizer/shadow-tables.ts";
import { Control, Intercept3, Save } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const IOPM_PAGES = 3;
const MSRPM_PAGES = 2;

export function namedPages(vmcb: Vmcb, address: number, hasAvic: boolean): NamedPages[] {
  const intercepts = vmcb.low(Control.INTERCEPT_3);
  const pages: NamedPages[] = [["VMCB", address, 1]];
  const named = (name: string, field: number, count: number): void => {
    const first = vmcb.number(field) % 2 ** 52;
    pages.push([name, first - (first % 4096), count]);
  };
  if ((intercepts & Intercept3.io) !== 0) named("I/O permission map", Control.IOPM_BASE, IOPM_PAGES);
  if ((intercepts & Intercept3.msr) !== 0) named("MSR permission map", Control.MSRPM_BASE, MSRPM_PAGES);
  if (!hasAvic) return pages;
  named("AVIC backing page", Control.AVIC_BACKING_PAGE, 1);
  named("AVIC logical ID table", Control.AVIC_LOGICAL_TABLE, 1);
  named("AVIC physical ID table", Control.AVIC_PHYSICAL_TABLE, 1);
  return pages;
}

/** What says where the guest's paging tables are, as VMRUN loads them: LMA follows LME and CR0.PG. */
export function pagingRegisters(vmcb: Vmcb): PagingRegisters {
  const [cr0, efer] = [vmcb.low(Save.CR0), vmcb.low(Save.EFER)];
  const isLong = (cr0 & Cr0.PG) !== 0 && (efer & Efer.LME) !== 0;
  return { cr0, cr3: vmcb.number(Save.CR3), cr4: vmcb.low(Save.CR4), efer: isLong ? Efer.LMA : 0 };
}
