import { access, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { fetchDebianGuest, type KernelFlavour } from "./debian.ts";

export interface LinuxGuest {
  kernel: string;
  initrd: string;
  /** For a person: where it came from. */
  origin: string;
}

export interface FindOptions {
  kernel?: string | undefined;
  initrd?: string | undefined;
  /** Default: `mkvm` in the user's cache folder. */
  cache?: string | undefined;
  /** Of Debian's kernel; "cloud" unless given. */
  flavour?: KernelFlavour | undefined;
  log: (line: string) => void;
}

/** Raised when init or the archive's layout changes, so that old caches are not used. */
const RECIPE = "3";

/** Where guests are kept between runs. */
export function guestCache(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "mkvm", "linux");
}

/**
 * A Linux to boot: the one given, else the cached one, else Debian's by its package manager. Undefined, with the reason logged,
 * where none of these works. Throws when a file that was named does not exist.
 */
export async function findLinuxGuest(options: FindOptions): Promise<LinuxGuest | undefined> {
  if (options.kernel) {
    if (!options.initrd)
      throw new Error("--kernel needs --initrd too: a Linux without an initial file system has nothing to run");
    await access(options.kernel);
    await access(options.initrd);
    return { kernel: options.kernel, initrd: options.initrd, origin: "the command line" };
  }
  const { flavour = "cloud" } = options;
  const cache = options.cache ?? join(guestCache(), flavour === "cloud" ? "" : flavour);
  const stamp = join(cache, "guest.json");
  const cached = await readFile(stamp, "utf8").then(JSON.parse, () => undefined);
  if (cached?.recipe === RECIPE)
    return {
      kernel: join(cache, "vmlinuz"),
      initrd: join(cache, "initramfs.cpio"),
      origin: `the cache (Debian's ${cached.version})`,
    };
  let fresh: string | undefined;
  try {
    await mkdir(cache, { recursive: true });
    // Somebody else may be fetching it too
    fresh = await mkdtemp(join(cache, "fetch-"));
    const { version } = await fetchDebianGuest(fresh, options.log, flavour);
    const guest = { kernel: join(cache, "vmlinuz"), initrd: join(cache, "initramfs.cpio") };
    await rename(join(fresh, "vmlinuz"), guest.kernel);
    await rename(join(fresh, "initramfs.cpio"), guest.initrd);
    await writeFile(join(fresh, "guest.json"), JSON.stringify({ recipe: RECIPE, version }));
    await rename(join(fresh, "guest.json"), stamp);
    return { ...guest, origin: `Debian's package of ${version}` };
  } catch (error) {
    options.log(`no Linux from the package manager: ${(error as Error).message.split("\n")[0]}`);
    return undefined;
  } finally {
    if (fresh) await rm(fresh, { recursive: true, force: true });
  }
}
