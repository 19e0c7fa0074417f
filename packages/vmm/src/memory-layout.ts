/**
 * Where things lie in guest physical memory. Low memory follows what PC firmware leaves to a boot loader; the rest is RAM from
 * 1 MiB up to the hole below 4 GiB that the interrupt controllers and other memory-mapped devices use, and on from 4 GiB.
 */
export const GDT = 0x500;
export const BOOT_STACK_TOP = 0x7000;
export const ZERO_PAGE = 0x7000;
export const PVH_START_INFO = 0x6000;
export const MULTIBOOT_INFO = 0x6800;
export const IDENTITY_PAGE_TABLES = 0x9000;
export const COMMAND_LINE = 0x2_0000;
export const COMMAND_LINE_BYTES = 2048;
/** Where firmware keeps the Extended BIOS Data Area; RAM ends here for the guest. */
export const EBDA = 0x9_fc00;
/** Root pointer and tables of ACPI, in the BIOS area. */
export const ACPI_TABLES = 0xe_0000;
export const ACPI_TABLES_END = 0x10_0000;
export const HIGH_MEMORY = 0x10_0000;
/** First address of the hole below 4 GiB. */
export const DEVICE_HOLE = 0xd000_0000;
export const FOUR_GIB = 0x1_0000_0000;
/** Three pages for the task state segment that older VMX needs; between the hole's devices and where firmware lies. */
export const TSS_ADDRESS = 0xfeff_d000;
/** Firmware ends at 4 GiB, where the reset vector is, and begins here at the lowest. */
export const FIRMWARE_LOWEST = 0xff00_0000;
/** The end of the firmware is seen below 1 MiB too. */
export const FIRMWARE_LOW_COPY = 0xe_0000;

export interface MemoryRange {
  /** Guest physical address and length in bytes. */
  start: number;
  bytes: number;
  type: "ram" | "reserved" | "acpi";
}

/** The memory map that every boot protocol reports (E820 and its relatives) for `ramBytes` of RAM. */
export function memoryMap(ramBytes: number): MemoryRange[] {
  const below = Math.min(ramBytes, DEVICE_HOLE);
  const map: MemoryRange[] = [
    { start: 0, bytes: EBDA, type: "ram" },
    { start: EBDA, bytes: 0xa_0000 - EBDA, type: "reserved" },
    { start: ACPI_TABLES, bytes: ACPI_TABLES_END - ACPI_TABLES, type: "reserved" },
    { start: HIGH_MEMORY, bytes: below - HIGH_MEMORY, type: "ram" },
  ];
  if (ramBytes > below) map.push({ start: FOUR_GIB, bytes: ramBytes - below, type: "ram" });
  return map;
}

/** E820 types: 1 usable, 2 reserved, 3 ACPI reclaimable. */
export const e820Type = { ram: 1, reserved: 2, acpi: 3 } as const;
