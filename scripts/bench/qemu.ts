/** QEMU's TCG as a peer. Needs the system's qemu-system-x86_64. */
import { spawn, spawnSync } from "node:child_process";
import { type CpuClock, cpuTimeOf } from "./cpu-time.ts";

let version: string | undefined | null = null;

/** First line of `qemu-system-x86_64 --version`, or undefined where it is not installed. */
export function qemuVersion(): string | undefined {
  if (version === null) {
    const { status, stdout } = spawnSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" });
    version = status === 0 ? stdout.split("\n")[0] : undefined;
  }
  return version;
}

const common =
  "-accel tcg -display none -serial stdio -monitor none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4".split(" ");

/** A guest that says nothing for so long hangs. */
const silenceMs = 120_000;

/** Runs QEMU's TCG until `done` is true of what its serial line said. `started` gets the clock of its CPU time. Throws when it ends before that, or hangs. */
export function runTcg(
  args: readonly string[],
  onText: (text: string) => void,
  done: () => boolean,
  started: (cpuTime: CpuClock) => void,
): Promise<void> {
  const child = spawn("qemu-system-x86_64", [...common, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  started(cpuTimeOf(child.pid));
  let errors = "";
  const hang = setTimeout(() => {
    errors += `its guest said nothing for ${silenceMs / 1000} s`;
    child.kill();
  }, silenceMs);
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
  });
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    onText(text);
    hang.refresh();
    if (done()) child.kill();
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", () => clearTimeout(hang));
    child.on("close", () => (done() ? resolve() : reject(new Error(`QEMU ended early: ${errors.trim() || "no message"}`))));
  });
}
