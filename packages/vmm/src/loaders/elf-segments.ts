import { VmmError } from "../vmm-error.ts";
import type { ElfFile } from "./elf-file.ts";
import type { BootRequest } from "./guest-image.ts";
import { requireRoom } from "./placement.ts";

/** Copies every loadable segment to its physical address. Returns the end of the highest one. */
export function loadSegments(request: BootRequest, elf: ElfFile): number {
  const { image, memory } = request;
  const loads = elf.segments.filter((segment) => segment.type === "load" && segment.memoryBytes > 0);
  if (loads.length === 0) throw new VmmError(`${image.path} is an ELF file with nothing to load; it is no kernel`);
  let end = 0;
  for (const segment of loads) {
    requireRoom(request, segment.physicalAddress, segment.memoryBytes, `the kernel ${image.path}`);
    image.readInto(memory, segment.physicalAddress, segment.fileOffset, segment.fileBytes);
    memory.fill(segment.physicalAddress + segment.fileBytes, segment.memoryBytes - segment.fileBytes);
    end = Math.max(end, segment.physicalAddress + segment.memoryBytes);
  }
  return end;
}
