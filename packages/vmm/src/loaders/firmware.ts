import { FIRMWARE_LOW_COPY, FIRMWARE_LOWEST, FOUR_GIB, HIGH_MEMORY } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import type { BootRequest, EntryPoint } from "./guest-image.ts";

const PAGE = 4096;
const LOW_COPY_BYTES = HIGH_MEMORY - FIRMWARE_LOW_COPY;

/**
 * Firmware, as a PC has it: a ROM that ends at 4 GiB, with its last 128 KiB in the BIOS area below 1 MiB as well, which is RAM here,
 * so that firmware may write there. The processor begins at its reset vector.
 */
export function loadFirmware(request: BootRequest): EntryPoint {
  const { image, memory } = request;
  if (image.bytes === 0 || image.bytes % PAGE !== 0 || image.bytes > FOUR_GIB - FIRMWARE_LOWEST)
    throw new VmmError(
      `${image.path} has ${image.bytes} bytes: firmware is a multiple of 4 KiB and at most ${(FOUR_GIB - FIRMWARE_LOWEST) >> 20} MiB`,
    );
  memory.addRom(image.bytes);
  image.readInto(memory, FOUR_GIB - image.bytes, 0, image.bytes);
  const copied = Math.min(image.bytes, LOW_COPY_BYTES);
  image.readInto(memory, HIGH_MEMORY - copied, image.bytes - copied, copied);
  return { mode: "reset", rip: 0, registers: {} };
}
