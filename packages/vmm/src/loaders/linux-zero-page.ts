import type { GuestMemory } from "../guest-memory.ts";
import { e820Type, memoryMap, ZERO_PAGE } from "../memory-layout.ts";

const ZERO_PAGE_BYTES = 4096;
/** Offsets in struct boot_params. Source: Linux, Documentation/arch/x86/zero-page.rst and boot.rst. */
const ACPI_RSDP = 0x70,
  E820_ENTRIES = 0x1e8,
  SETUP_HEADER = 0x1f1,
  TYPE_OF_LOADER = 0x210,
  RAMDISK_IMAGE = 0x218,
  RAMDISK_SIZE = 0x21c,
  COMMAND_LINE_POINTER = 0x228,
  E820_TABLE = 0x2d0;
const E820_ENTRY_BYTES = 20;
const LOADER_UNDEFINED = 0xff;

export interface ZeroPage {
  /** Setup header as the image has it, from offset 0x1f1; empty for an image without. */
  setupHeader: Uint8Array;
  commandLine: number;
  initrd: { address: number; bytes: number } | undefined;
  acpiRootPointer: number;
}

/** Writes struct boot_params at ZERO_PAGE and returns its address. */
export function writeZeroPage(memory: GuestMemory, page: ZeroPage): number {
  memory.fill(ZERO_PAGE, ZERO_PAGE_BYTES);
  memory.write(ZERO_PAGE + SETUP_HEADER, page.setupHeader);
  memory.setU8(ZERO_PAGE + TYPE_OF_LOADER, LOADER_UNDEFINED);
  memory.setU32(ZERO_PAGE + COMMAND_LINE_POINTER, page.commandLine);
  memory.setU32(ZERO_PAGE + RAMDISK_IMAGE, page.initrd?.address ?? 0);
  memory.setU32(ZERO_PAGE + RAMDISK_SIZE, page.initrd?.bytes ?? 0);
  memory.setU64(ZERO_PAGE + ACPI_RSDP, page.acpiRootPointer);
  const map = memoryMap(memory.bytes);
  memory.setU8(ZERO_PAGE + E820_ENTRIES, map.length);
  map.forEach((range, index) => {
    const entry = ZERO_PAGE + E820_TABLE + index * E820_ENTRY_BYTES;
    memory.setU64(entry, range.start);
    memory.setU64(entry + 8, range.bytes);
    memory.setU32(entry + 16, e820Type[range.type]);
  });
  return ZERO_PAGE;
}
