import { execFile } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const sources = join(import.meta.dirname, "..", "guests", "timing");

const FLAGS = (
  "-O2 -ffreestanding -fno-pie -fno-stack-protector -fno-tree-vectorize -fno-asynchronous-unwind-tables -mno-sse -mno-mmx " +
  "-mno-red-zone -w -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments"
).split(" ");

/**
 * Builds the bare-metal timing guest as a multiboot image and returns its path. `share` divides the work of each workload, so that
 * an interpreter is done in seconds; the checksums depend on it. Needs gcc and binutils for x86-64; throws without them.
 */
export async function buildTimingGuest(folder: string, bits: 32 | 64, share: number): Promise<string> {
  await mkdir(folder, { recursive: true });
  const image = join(folder, `timing${bits}-${share}.elf`);
  const linked = bits === 64 ? `${image}.64` : image;
  const source = (name: string) => join(sources, name);
  const wide = bits === 64 ? ["-mcmodel=small", "-Wl,-z,max-page-size=4096"] : [];
  await run("gcc", [
    `-m${bits}`,
    ...FLAGS,
    ...wide,
    `-DSHARE=${share}`,
    `-Wl,-T,${source("guest.ld")}`,
    "-o",
    linked,
    source(`entry${bits}.S`),
    source("guest.c"),
  ]);
  if (bits === 64) await run("objcopy", ["-O", "elf32-i386", linked, image]);
  return image;
}
