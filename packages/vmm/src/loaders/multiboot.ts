import type { GuestMemory } from "../guest-memory.ts";
import { BOOT_STACK_TOP, EBDA, e820Type, HIGH_MEMORY, MULTIBOOT_INFO, memoryMap } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import { readElf } from "./elf-file.ts";
import { loadSegments } from "./elf-segments.ts";
import { type BootRequest, type EntryPoint, type ImageLoader, view } from "./guest-image.ts";
import { placeCommandLine, placeInitrd, requireRoom } from "./placement.ts";

/** Source: GNU Multiboot Specification 0.6.96, OS image format and Boot information format. */
const HEADER_MAGIC = 0x1badb002;
const LOADER_MAGIC = 0x2badb002;
const SEARCH_BYTES = 8192;
const FLAG_ADDRESSES = 1 << 16;
/** Requirements that we do not meet must be refused: bits 0 to 15 beyond page alignment and memory information. */
const FLAGS_UNKNOWN = 0xfffc;
const INFO_MEMORY = 1,
  INFO_COMMAND_LINE = 4,
  INFO_MODULES = 8,
  INFO_MEMORY_MAP = 64;
const MODULE_LIST = MULTIBOOT_INFO + 128;
const MEMORY_MAP = MULTIBOOT_INFO + 160;

export const multiboot: ImageLoader = {
  name: "multiboot image",

  recognizes: (head) => findHeader(head) !== undefined,

  load(request: BootRequest): EntryPoint {
    const { image, head, memory } = request;
    const at = findHeader(head)!;
    const header = view(head.subarray(at));
    const flags = header.getUint32(4, true);
    if (flags & FLAGS_UNKNOWN)
      throw new VmmError(
        `${image.path} asks for multiboot features 0x${(flags & FLAGS_UNKNOWN).toString(16)}, which mkvm does not have`,
      );
    let entry: number;
    let end: number;
    if (flags & FLAG_ADDRESSES) {
      const [headerAddress, loadAddress, loadEnd, bssEnd, entryAddress] = [12, 16, 20, 24, 28].map((offset) =>
        header.getUint32(offset, true),
      );
      const fileOffset = at - (headerAddress - loadAddress);
      if (fileOffset < 0 || headerAddress < loadAddress)
        throw new VmmError(`${image.path} has a multiboot header with impossible addresses; it is damaged`);
      const bytes = loadEnd ? loadEnd - loadAddress : image.bytes - fileOffset;
      end = Math.max(bssEnd, loadAddress + bytes);
      requireRoom(request, loadAddress, end - loadAddress, `the image ${image.path}`);
      image.readInto(memory, loadAddress, fileOffset, bytes);
      memory.fill(loadAddress + bytes, end - loadAddress - bytes);
      entry = entryAddress;
    } else {
      const elf = readElf(image, head);
      end = loadSegments(request, elf);
      entry = elf.entry;
    }
    const commandLine = placeCommandLine(request);
    const initrd = placeInitrd(request, end, memory.lowBytes - 1);
    writeInfo(memory, commandLine, initrd);
    return { mode: "protected", rip: entry, registers: { rax: LOADER_MAGIC, rbx: MULTIBOOT_INFO, rsp: BOOT_STACK_TOP } };
  },
};

/** Offset of the header: 4-byte aligned in the first 8 KiB, its first three words summing to zero. */
function findHeader(head: Uint8Array): number | undefined {
  const words = view(head);
  for (let at = 0; at + 32 <= Math.min(head.length, SEARCH_BYTES); at += 4) {
    if (words.getUint32(at, true) !== HEADER_MAGIC) continue;
    const sum = (HEADER_MAGIC + words.getUint32(at + 4, true) + words.getUint32(at + 8, true)) >>> 0;
    if (sum === 0) return at;
  }
  return undefined;
}

function writeInfo(memory: GuestMemory, commandLine: number, initrd: { address: number; bytes: number } | undefined): void {
  memory.fill(MULTIBOOT_INFO, 512);
  memory.setU32(MULTIBOOT_INFO, INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | (initrd ? INFO_MODULES : 0));
  memory.setU32(MULTIBOOT_INFO + 4, EBDA >> 10);
  memory.setU32(MULTIBOOT_INFO + 8, (memory.lowBytes - HIGH_MEMORY) >>> 10);
  memory.setU32(MULTIBOOT_INFO + 16, commandLine);
  if (initrd) {
    memory.setU32(MULTIBOOT_INFO + 20, 1);
    memory.setU32(MULTIBOOT_INFO + 24, MODULE_LIST);
    memory.setU32(MODULE_LIST, initrd.address);
    memory.setU32(MODULE_LIST + 4, initrd.address + initrd.bytes);
  }
  const map = memoryMap(memory.bytes);
  memory.setU32(MULTIBOOT_INFO + 44, map.length * 24);
  memory.setU32(MULTIBOOT_INFO + 48, MEMORY_MAP);
  map.forEach((range, index) => {
    const entry = MEMORY_MAP + index * 24;
    memory.setU32(entry, 20); // size of the rest
    memory.setU64(entry + 4, range.start);
    memory.setU64(entry + 12, range.bytes);
    memory.setU32(entry + 20, e820Type[range.type]);
  });
}
