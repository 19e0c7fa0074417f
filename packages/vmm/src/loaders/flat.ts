import { BOOT_STACK_TOP, EBDA, HIGH_MEMORY } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import type { BootRequest, EntryPoint } from "./guest-image.ts";
import { requireRoom } from "./placement.ts";

/** Formats without a header, which only the user can name. */
export const flatFormats = ["flat16", "flat32", "flat64"] as const;
export type FlatFormat = (typeof flatFormats)[number];

const BOOT_SECTOR = 0x7c00;

/**
 * Loads a file as it is and starts it at its first byte: flat16 at 0x7c00 in real mode, as firmware does with a boot sector;
 * flat32 at 1 MiB in protected mode, flat64 at 1 MiB in 64-bit mode with the first 4 GiB identity mapped.
 */
export function loadFlat(request: BootRequest, format: FlatFormat): EntryPoint {
  const { image, memory } = request;
  const start = format === "flat16" ? BOOT_SECTOR : HIGH_MEMORY;
  if (image.bytes === 0) throw new VmmError(`${image.path} is empty; give an image with code in it`);
  if (format === "flat16" && start + image.bytes > EBDA)
    throw new VmmError(`${image.path} does not fit below 639 KiB; use --format flat32 or flat64`);
  requireRoom(request, start, image.bytes, `the image ${image.path}`);
  image.readInto(memory, start, 0, image.bytes);
  const mode = format === "flat16" ? "real" : format === "flat32" ? "protected" : "long";
  return { mode, rip: start, registers: { rsp: BOOT_STACK_TOP } };
}
