import { writeAcpiTables } from "../boot/acpi-tables.ts";
import type { GuestMemory } from "../guest-memory.ts";
import { BOOT_STACK_TOP, e820Type, memoryMap, PVH_START_INFO } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import { findNote, isElf, readElf } from "./elf-file.ts";
import { loadSegments } from "./elf-segments.ts";
import { type BootRequest, type EntryPoint, type ImageLoader, view } from "./guest-image.ts";
import { writeZeroPage } from "./linux-zero-page.ts";
import { placeCommandLine, placeInitrd } from "./placement.ts";

/** Xen ELF note that names the 32-bit PVH entry. Source: Xen, public/elfnote.h and arch-x86/hvm/start_info.h. */
const XEN_NOTE_OWNER = "Xen";
const XEN_PHYS32_ENTRY = 18;
const START_INFO_MAGIC = 0x336e_c578;
const MODULE_LIST = PVH_START_INFO + 64;
const MEMORY_MAP = PVH_START_INFO + 128;
const MEMORY_MAP_ENTRY_BYTES = 24;

/** An uncompressed Linux (or another kernel) as ELF: through its PVH entry if it has one, else the 64-bit boot protocol. */
export const vmlinux: ImageLoader = {
  name: "ELF kernel (PVH or Linux 64-bit)",

  recognizes: isElf,

  load(request: BootRequest): EntryPoint {
    const { image, head, memory } = request;
    const elf = readElf(image, head);
    const end = loadSegments(request, elf);
    const commandLine = placeCommandLine(request);
    const initrd = placeInitrd(request, end, memory.lowBytes - 1);
    const acpiRootPointer = writeAcpiTables(memory, request.cpus);
    const pvhEntry = findNote(image, elf, XEN_NOTE_OWNER, XEN_PHYS32_ENTRY);
    if (pvhEntry) {
      const start = writeStartInfo(memory, { commandLine, initrd, acpiRootPointer });
      return { mode: "protected", rip: view(pvhEntry).getUint32(0, true), registers: { rbx: start, rsp: BOOT_STACK_TOP } };
    }
    if (elf.bits === 32) {
      throw new VmmError(
        `${image.path} is a 32-bit ELF file with neither a multiboot header nor a PVH entry; mkvm cannot tell how to start it`,
      );
    }
    const zeroPage = writeZeroPage(memory, { setupHeader: new Uint8Array(0), commandLine, initrd, acpiRootPointer });
    return { mode: "long", rip: elf.entry, registers: { rsi: zeroPage, rsp: BOOT_STACK_TOP } };
  },
};

function writeStartInfo(
  memory: GuestMemory,
  info: { commandLine: number; initrd: { address: number; bytes: number } | undefined; acpiRootPointer: number },
): number {
  memory.setU32(PVH_START_INFO, START_INFO_MAGIC);
  memory.setU32(PVH_START_INFO + 4, 1); // version
  memory.setU32(PVH_START_INFO + 8, 0); // flags
  memory.setU32(PVH_START_INFO + 12, info.initrd ? 1 : 0);
  memory.setU64(PVH_START_INFO + 16, info.initrd ? MODULE_LIST : 0);
  memory.setU64(PVH_START_INFO + 24, info.commandLine);
  memory.setU64(PVH_START_INFO + 32, info.acpiRootPointer);
  memory.setU64(PVH_START_INFO + 40, MEMORY_MAP);
  const map = memoryMap(memory.bytes);
  memory.setU32(PVH_START_INFO + 48, map.length);
  memory.setU32(PVH_START_INFO + 52, 0);
  memory.setU64(MODULE_LIST, info.initrd?.address ?? 0);
  memory.setU64(MODULE_LIST + 8, info.initrd?.bytes ?? 0);
  memory.setU64(MODULE_LIST + 16, 0);
  memory.setU64(MODULE_LIST + 24, 0);
  map.forEach((range, index) => {
    const entry = MEMORY_MAP + index * MEMORY_MAP_ENTRY_BYTES;
    memory.setU64(entry, range.start);
    memory.setU64(entry + 8, range.bytes);
    memory.setU32(entry + 16, e820Type[range.type]);
    memory.setU32(entry + 20, 0);
  });
  return PVH_START_INFO;
}
