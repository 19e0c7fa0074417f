import { execFile } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const sources = join(import.meta.dirname, "..", "guests", "timing");

const FLAGS = (
  "-O2 -ffreestanding -fno-pie -fno-stack-protector -fno-tree-vectorize -fno-asynchronous-unwind-tables " +
  "-mno-red-zone -w -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments"
).split(" ");

/**
 * What a timing guest works on. integer: six workloads without floating point; float: scalar SSE2 doubles and singles; simd: SSE2
 * on whole vectors. The last two exist for 64 bits.
 */
export type TimingProgram = "integer" | "float" | "simd";
const PROGRAM_FLAGS: Readonly<Record<TimingProgram, readonly string[]>> = {
  integer: ["-mno-sse", "-mno-mmx"],
  float: ["-msse2", "-mfpmath=sse", "-ffp-contract=off", "-fno-math-errno"],
  simd: ["-msse2", "-mfpmath=sse", "-ffp-contract=off"],
};

/**
 * Builds a bare-metal timing guest as a multiboot image and returns its path. `share` divides the work of each workload, so that
 * an interpreter is done in seconds; the checksums depend on it. `only` names the one workload to run. Needs gcc and binutils for x86-64; throws without them.
 */
export async function buildTimingGuest(
  folder: string,
  bits: 32 | 64,
  share: number,
  program: TimingProgram = "integer",
  only?: string,
): Promise<string> {
  if (bits === 32 && program !== "integer") throw new Error(`the ${program} timing guest exists for 64 bits only`);
  await mkdir(folder, { recursive: true });
  const image = join(folder, `${program}${bits}-${share}${only ? `-${only}` : ""}.elf`);
  const linked = bits === 64 ? `${image}.64` : image;
  const source = (name: string) => join(sources, name);
  const wide = bits === 64 ? ["-mcmodel=small", "-Wl,-z,max-page-size=4096"] : [];
  await run("gcc", [
    `-m${bits}`,
    ...FLAGS,
    ...PROGRAM_FLAGS[program],
    ...wide,
    `-DSHARE=${share}`,
    ...(only ? [`-DONLY="${only}"`] : []),
    `-Wl,-T,${source("guest.ld")}`,
    "-o",
    linked,
    source(`entry${bits}.S`),
    source(`${program}.c`),
  ]);
  if (bits === 64) await run("objcopy", ["-O", "elf32-i386", linked, image]);
  return image;
}
