import { cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DebianPackages } from "./debian-packages.ts";
import { guestCache } from "./linux-guest/find-linux-guest.ts";

interface Program {
  readonly package: string;
  readonly file: string;
}

/** Programs for bare PCs that nobody here wrote, from Debian's packages. */
const PROGRAMS = {
  seabios: { package: "seabios", file: "usr/share/seabios/bios.bin" },
  memtest64: { package: "memtest86+", file: "boot/memtest86+x64.bin" },
  memtest32: { package: "memtest86+", file: "boot/memtest86+ia32.bin" },
} as const;
/** UEFI firmware without Secure Boot, and so without SMM. */
const UEFI = {
  code: { package: "ovmf", file: "usr/share/OVMF/OVMF_CODE_4M.fd" },
  variables: { package: "ovmf", file: "usr/share/OVMF/OVMF_VARS_4M.fd" },
} as const;

export type Firmware = Readonly<Record<keyof typeof PROGRAMS, string>>;
export type UefiFirmware = Readonly<Record<keyof typeof UEFI, string>>;

/** Raised when the lists above change, so that old caches are not used. */
const RECIPE = "1";

/** Paths of all programs, from the cache or the package manager. Undefined, with the reason logged, where there is no such thing. */
export function findFirmware(log: (line: string) => void): Promise<Firmware | undefined> {
  return find("firmware", PROGRAMS, log);
}
export function findUefiFirmware(log: (line: string) => void): Promise<UefiFirmware | undefined> {
  return find("uefi", UEFI, log);
}

async function find<Name extends string>(
  cache: string,
  programs: Readonly<Record<Name, Program>>,
  log: (line: string) => void,
): Promise<Record<Name, string> | undefined> {
  const folder = join(dirname(guestCache()), cache);
  const names = Object.keys(programs) as Name[];
  const paths = Object.fromEntries(names.map((name) => [name, join(folder, `${name}.bin`)])) as Record<Name, string>;
  const stamp = join(folder, "recipe");
  if ((await readFile(stamp, "utf8").catch(() => "")) === RECIPE) return paths;
  let fresh: string | undefined;
  try {
    await mkdir(folder, { recursive: true });
    // Somebody else may be fetching it too
    fresh = await mkdtemp(join(folder, "fetch-"));
    const packages = await DebianPackages.open(fresh);
    for (const name of names) {
      const file = join(fresh, `${name}.bin`);
      await cp(join(await packages.unpack(programs[name].package), programs[name].file), file);
      await rename(file, paths[name]);
    }
    await writeFile(join(fresh, "recipe"), RECIPE);
    await rename(join(fresh, "recipe"), stamp);
    return paths;
  } catch (error) {
    log(`no ${cache} from the package manager: ${(error as Error).message.split("\n")[0]}`);
    return undefined;
  } finally {
    if (fresh) await rm(fresh, { recursive: true, force: true });
  }
}
