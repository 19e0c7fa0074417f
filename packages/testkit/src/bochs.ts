/** Bochs, a PC emulator that nobody here wrote, from Debian's package `bochs`: an outside answer to what a processor does. */
import { execFile, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
/** Its debugger waits for a word before the machine starts. */
const CONTINUE = "c\n";
const DEADLINE_MS = 300_000;

/** Undefined, with the reason logged, where the package is not installed. */
export async function findBochs(log: (line: string) => void): Promise<string | undefined> {
  try {
    await run("bochs", ["--help", "cpu"]);
    return "bochs";
  } catch (error) {
    const why =
      (error as NodeJS.ErrnoException).code === "ENOENT" ? "it is not installed" : (error as Error).message.split("\n")[0];
    log(`no Bochs: ${why}. On Debian: apt-get install bochs`);
    return undefined;
  }
}

/** Runs a ROM, from the reset vector until it writes "Shutdown" to port 8900h. What it printed to port E9h. */
export async function runBochs(bochs: string, rom: Uint8Array, model = "tigerlake"): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "mkvm-bochs-"));
  try {
    const image = join(folder, "rom.bin");
    const settings = join(folder, "bochsrc");
    await writeFile(image, rom);
    await writeFile(
      settings,
      `${[
        `cpu: model=${model}, ips=100000000, reset_on_triple_fault=0`,
        "memory: guest=32, host=32",
        `romimage: file=${image}`,
        'display_library: rfb, options="timeout=0"',
        `log: ${join(folder, "log")}`,
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "port_e9_hack: enabled=1",
        "clock: sync=none",
      ].join("\n")}\n`,
    );
    const child = spawn(bochs, ["-q", "-f", settings], { stdio: ["pipe", "pipe", "ignore"], timeout: DEADLINE_MS });
    child.stdin.end(CONTINUE);
    let output = "";
    child.stdout.setEncoding("latin1").on("data", (text: string) => {
      output += text;
    });
    await new Promise<void>((resolve, reject) => {
      child.on("error", reject).on("close", () => resolve());
    });
    return output;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
