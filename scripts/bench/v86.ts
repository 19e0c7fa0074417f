/** v86 as a peer, in a process of its own: `node scripts/bench/v86.ts IMAGE` runs a multiboot image with its serial line on stdout. */
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type CpuClock, cpuTimeOf } from "./cpu-time.ts";

const seabios = "/usr/share/seabios";
const images = { bios: join(seabios, "bios.bin"), vgaBios: join(seabios, "vgabios-stdvga.bin") };
const packageFile = () => createRequire(import.meta.url).resolve("v86/package.json");

/** "v86 0.5.462", or undefined where it cannot run: it needs the BIOS images of Debian's package seabios. */
export function v86Version(): string | undefined {
  if (!existsSync(images.bios) || !existsSync(images.vgaBios)) return undefined;
  return `v86 ${JSON.parse(readFileSync(packageFile(), "utf8")).version}`;
}

/** Runs a multiboot image until `done` is true of what its serial line said, or it ends. `started` gets the clock of its CPU time. */
export function runV86(
  image: string,
  onText: (text: string) => void,
  done: () => boolean,
  started: (cpuTime: CpuClock) => void,
): Promise<void> {
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), image], { stdio: ["ignore", "pipe", "inherit"] });
  started(cpuTimeOf(child.pid));
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    onText(text);
    if (done()) child.kill();
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", () => resolve());
  });
}

async function main(image: string): Promise<void> {
  const build = join(dirname(packageFile()), "build");
  const { V86 } = await import(join(build, "libv86.mjs"));
  const read = (file: string) => new Uint8Array(readFileSync(file)).buffer;
  // Its way to say that the guest wrote to the debug port at which the other engines end
  process.once("uncaughtException", (thrown) => {
    if ((thrown as unknown) !== "HALT") throw thrown;
    process.exit(0);
  });
  const emulator = new V86({
    wasm_path: join(build, "v86.wasm"),
    bios: { buffer: read(images.bios) },
    vga_bios: { buffer: read(images.vgaBios) },
    multiboot: { buffer: read(image) },
    memory_size: 256 << 20,
    autostart: true,
    disable_keyboard: true,
    disable_speaker: true,
  });
  emulator.add_listener("serial0-output-byte", (byte: number) => process.stdout.write(String.fromCharCode(byte)));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv[2] as string);
