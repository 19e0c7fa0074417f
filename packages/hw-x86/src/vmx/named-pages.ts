/** Pages that a VMCS names and the processor uses in guest mode. Source: Intel SDM Vol. 3C, VM-Execution Control Fields. */
import { Efer } from "../engine/system/bits.ts";
import type { NamedPages } from "../sanitizer/entry-check.ts";
import type { PagingRegisters } from "../sanitizer/shadow-tables.ts";
import { EntryControl, Pin, Primary, Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

const MSR_ENTRY_BYTES = 16;

export function namedPages(vmcs: Vmcs): NamedPages[] {
  const primary = vmcs.low(slot.PRIMARY_CONTROLS);
  const secondary = (primary & Primary.activateSecondary) !== 0 ? vmcs.low(slot.SECONDARY_CONTROLS) : 0;
  const pages: NamedPages[] = [["VMCS region", vmcs.address, 1]];
  const page = (name: string, field: number, isUsed: boolean): void => {
    if (isUsed) pages.push([name, floor(vmcs.number(field)), 1]);
  };
  page("I/O bitmap A", slot.IO_BITMAP_A, (primary & Primary.useIoBitmaps) !== 0);
  page("I/O bitmap B", slot.IO_BITMAP_B, (primary & Primary.useIoBitmaps) !== 0);
  page("MSR bitmap", slot.MSR_BITMAP, (primary & Primary.useMsrBitmaps) !== 0);
  page("virtual-APIC page", slot.VIRTUAL_APIC_ADDRESS, (primary & Primary.useTprShadow) !== 0);
  page("APIC-access page", slot.APIC_ACCESS_ADDRESS, (secondary & Secondary.virtualizeApicAccesses) !== 0);
  page("page-modification log", slot.PML_ADDRESS, (secondary & Secondary.enablePml) !== 0);
  const posts = (vmcs.low(slot.PIN_CONTROLS) & Pin.processPostedInterrupts) !== 0;
  page("posted-interrupt descriptor", slot.POSTED_INTERRUPT_DESCRIPTOR, posts);
  const area = (name: string, address: number, count: number): void => {
    const bytes = vmcs.low(count) * MSR_ENTRY_BYTES;
    if (bytes === 0) return;
    const first = vmcs.number(address);
    pages.push([name, floor(first), Math.ceil((first + bytes - floor(first)) / 4096)]);
  };
  area("VM-entry MSR-load area", slot.ENTRY_MSR_LOAD_ADDRESS, slot.ENTRY_MSR_LOAD_COUNT);
  area("VM-exit MSR-store area", slot.EXIT_MSR_STORE_ADDRESS, slot.EXIT_MSR_STORE_COUNT);
  area("VM-exit MSR-load area", slot.EXIT_MSR_LOAD_ADDRESS, slot.EXIT_MSR_LOAD_COUNT);
  return pages;
}

function floor(address: number): number {
  return address - (address % 4096);
}

/** What says where the guest's paging tables are, as the entry loads them. */
export function pagingRegisters(vmcs: Vmcs): PagingRegisters {
  return {
    cr0: vmcs.low(slot.GUEST_CR0),
    cr3: vmcs.number(slot.GUEST_CR3),
    cr4: vmcs.low(slot.GUEST_CR4),
    efer: (vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.ia32eModeGuest) !== 0 ? Efer.LMA : 0,
  };
}
