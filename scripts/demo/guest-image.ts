import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkGuest, findLinuxGuest } from "@mkvm/testkit";

export interface DemoGuest {
  /** For the title of the step. */
  name: string;
  vmmArguments: string[];
  /** The Linux workload reports digests of its memory, the tiny one does not. */
  digests: boolean;
  isLinux: boolean;
}

export interface GuestOptions {
  kernel?: string | undefined;
  initrd?: string | undefined;
  cache?: string | undefined;
  append?: string | undefined;
  memory: string;
  tiny: boolean;
  log: (line: string) => void;
}

const LINUX_COMMAND_LINE = "console=ttyS0 quiet panic=-1 mkvm.run=check";

/** Linux from the command line, the cache or the package manager; else the tiny guest of this repository. */
export async function demoGuest(options: GuestOptions): Promise<DemoGuest> {
  const linux = options.tiny ? undefined : await findLinuxGuest(options);
  if (linux) {
    const append = [LINUX_COMMAND_LINE, options.append].filter(Boolean).join(" ");
    return {
      name: `Linux, from ${linux.origin}`,
      vmmArguments: ["--kernel", linux.kernel, "--initrd", linux.initrd, "--append", append, "--memory", options.memory],
      digests: true,
      isLinux: true,
    };
  }
  const image = join(await mkdtemp(join(tmpdir(), "mkvm-")), "check-guest.bin");
  await writeFile(image, checkGuest());
  return {
    name: options.tiny
      ? "the tiny guest of this repository"
      : "the tiny guest of this repository (for Linux: run on Debian, or give --kernel and --initrd)",
    vmmArguments: ["--kernel", image, "--format", "flat64", "--memory", options.memory],
    digests: false,
    isLinux: false,
  };
}
