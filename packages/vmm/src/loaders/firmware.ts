import type { GuestMemory } from "../guest-memory.ts";
import type { ImageFile } from "../image-file.ts";
import { FIRMWARE_LOW_COPY, FIRMWARE_LOWEST, FOUR_GIB, HIGH_MEMORY } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import type { BootRequest, EntryPoint } from "./guest-image.ts";

const PAGE = 4096;
const LOW_COPY_BYTES = HIGH_MEMORY - FIRMWARE_LOW_COPY;

const fits = ({ path, bytes }: ImageFile): void => {
  if (bytes === 0 || bytes % PAGE !== 0 || bytes > FOUR_GIB - FIRMWARE_LOWEST)
    throw new VmmError(
      `${path} has ${bytes} bytes: firmware is a multiple of 4 KiB and at most ${(FOUR_GIB - FIRMWARE_LOWEST) >> 20} MiB`,
    );
};

/**
 * UEFI firmware, as a PC has it: code in a ROM that ends at 4 GiB, and below it the flash chip with its variables, if there is one. The
 * processor begins at the reset vector.
 */
export function loadFlash(memory: GuestMemory, code: ImageFile, variables: ImageFile | undefined): EntryPoint {
  for (const image of [code, variables]) if (image) fits(image);
  const bytes = code.bytes + (variables?.bytes ?? 0);
  // Builds differ in where the code looks for its variables
  if (variables && !Number.isInteger(Math.log2(bytes)))
    throw new VmmError(
      `${code.path} and ${variables.path} do not belong together: with ${bytes} bytes they fill no flash chip; give the VARS file of the same build`,
    );
  memory.addRom(bytes, variables?.bytes ?? 0);
  variables?.readInto(memory, FOUR_GIB - bytes, 0, variables.bytes);
  code.readInto(memory, FOUR_GIB - code.bytes, 0, code.bytes);
  return { mode: "reset", rip: 0, registers: {} };
}

/**
 * A BIOS, as a PC has it: a ROM that ends at 4 GiB, with its last 128 KiB in the BIOS area below 1 MiB as well, which is RAM here,
 * so that firmware may write there. The processor begins at its reset vector.
 */
export function loadFirmware(request: BootRequest): EntryPoint {
  const { image, memory } = request;
  fits(image);
  memory.addRom(image.bytes);
  image.readInto(memory, FOUR_GIB - image.bytes, 0, image.bytes);
  const copied = Math.min(image.bytes, LOW_COPY_BYTES);
  image.readInto(memory, HIGH_MEMORY - copied, image.bytes - copied, copied);
  return { mode: "reset", rip: 0, registers: {} };
}
