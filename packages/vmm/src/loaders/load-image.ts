import { VmmError } from "../vmm-error.ts";
import { bzImage } from "./bzimage.ts";
import { loadFirmware } from "./firmware.ts";
import { flatFormats, loadFlat } from "./flat.ts";
import type { BootRequest, EntryPoint, ImageLoader } from "./guest-image.ts";
import { multiboot } from "./multiboot.ts";
import { vmlinux } from "./vmlinux.ts";

/** In the order of trying: a multiboot image may be an ELF file too. */
const loaders: readonly ImageLoader[] = [bzImage, multiboot, vmlinux];

/** Formats that files do not tell, which only the user can name. */
export const namedFormats = [...flatFormats, "firmware"] as const;
export type NamedFormat = (typeof namedFormats)[number];

/** Loads the image into guest memory by what it is, or by `format` for files without a header. */
export function loadImage(request: BootRequest, format: NamedFormat | undefined): EntryPoint {
  if (format === "firmware") return loadFirmware(request);
  if (format) return loadFlat(request, format);
  const loader = loaders.find((candidate) => candidate.recognizes(request.head));
  if (!loader) {
    throw new VmmError(
      `${request.image.path} is not a kernel image: mkvm knows bzImage, ELF (vmlinux) and multiboot; for raw code add --format flat16, flat32 or flat64, for a BIOS --format firmware`,
    );
  }
  return loader.load(request);
}
