import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DebianPackages } from "./debian-packages.ts";
import { guestCache } from "./linux-guest/find-linux-guest.ts";

/** Programs for bare PCs that nobody here wrote, from Debian's packages. */
const PROGRAMS = {
  seabios: { package: "seabios", file: "usr/share/seabios/bios.bin" },
  memtest64: { package: "memtest86+", file: "boot/memtest86+x64.bin" },
  memtest32: { package: "memtest86+", file: "boot/memtest86+ia32.bin" },
} as const;

export type Firmware = Readonly<Record<keyof typeof PROGRAMS, string>>;

/** Raised when the list above changes, so that old caches are not used. */
const RECIPE = "1";

/** Paths of all programs, from the cache or the package manager. Undefined, with the reason logged, where there is no such thing. */
export async function findFirmware(log: (line: string) => void): Promise<Firmware | undefined> {
  const folder = join(dirname(guestCache()), "firmware");
  const paths = Object.fromEntries(Object.keys(PROGRAMS).map((name) => [name, join(folder, `${name}.bin`)])) as Firmware;
  const stamp = join(folder, "recipe");
  if ((await readFile(stamp, "utf8").catch(() => "")) === RECIPE) return paths;
  try {
    await mkdir(folder, { recursive: true });
    const packages = await DebianPackages.open(folder);
    for (const [name, program] of Object.entries(PROGRAMS))
      await cp(join(await packages.unpack(program.package), program.file), paths[name as keyof Firmware]);
    await packages.close();
    await writeFile(stamp, RECIPE);
    return paths;
  } catch (error) {
    log(`no firmware from the package manager: ${(error as Error).message.split("\n")[0]}`);
    return undefined;
  }
}
