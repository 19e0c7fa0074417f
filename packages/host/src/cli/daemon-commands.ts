import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { CpuModelName } from "@mkvm/hw-x86";
import { type Command, Option } from "commander";
import type { HostOptions } from "../control/types.ts";
import { HostError } from "../errors.ts";
import { becomeHostProcess } from "../host-process.ts";
import { formatLogEntry } from "../log/kernel-log.ts";
import { v8PoolWords } from "../v8-pool.ts";
import { connectDaemon, tryConnect } from "./client.ts";
import { findEndpoint } from "./endpoint.ts";

const startTimeoutMs = 30_000;
/** Said again here, since the hardware takes longer to load than most commands to answer. */
const cpuModels: readonly CpuModelName[] = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "max"];

interface UpFlags {
  cpus: string;
  clock: "wall" | "icount";
  vendor: "intel" | "amd";
  cpu: CpuModelName;
  foreground?: boolean;
}

export function addDaemonCommands(program: Command): void {
  program
    .command("up")
    .summary("start the daemon")
    .description("Starts the daemon: a host that keeps modules and VMs until 'mkvm down'.")
    .option("--cpus <number>", "logical CPUs, 1 to 64", "1")
    .addOption(new Option("--clock <kind>", "real time, or instructions counted").choices(["wall", "icount"]).default("wall"))
    .addOption(new Option("--vendor <name>", "the machine's processors").choices(["intel", "amd"]).default("intel"))
    .addOption(
      new Option("--cpu <model>", "what its processors can do: a level of x86-64, or all there is")
        .choices(cpuModels)
        .default("max"),
    )
    .option("--foreground", "stay in the foreground and print the log")
    .addHelpText("after", "\nExamples:\n  mkvm up\n  mkvm up --cpus 4 --foreground\n  mkvm up --vendor amd --cpu x86-64-v2")
    .action(async (flags: UpFlags) => {
      if (!/^\d+$/.test(flags.cpus)) throw new HostError("EINVAL", `--cpus ${flags.cpus}: give a number from 1 to 64`);
      const running = await tryConnect();
      if (running) {
        const { pid } = await running.call("hello");
        running.close();
        throw new HostError("EEXIST", `the daemon runs already, as process ${pid}: stop it with 'mkvm down'`);
      }
      if (flags.foreground)
        await serveHere({ cpus: Number(flags.cpus), clock: flags.clock, vendor: flags.vendor, cpuModel: flags.cpu });
      else await startInBackground(flags);
    });
  program
    .command("down")
    .summary("stop the daemon")
    .description("Stops the daemon; running VMs are killed.")
    .addHelpText("after", "\nExample:\n  mkvm down")
    .action(async () => {
      const client = await connectDaemon();
      await client.call("stop");
      await client.closed;
    });
}

async function serveHere(options: HostOptions): Promise<void> {
  becomeHostProcess();
  const endpoint = findEndpoint();
  if (process.platform !== "win32") rmSync(endpoint.socket, { force: true });
  // The engine takes longer to load than most commands to answer
  const [{ createHost }, { serveDaemon }] = await Promise.all([import("../control/host.ts"), import("./daemon.ts")]);
  const host = await createHost(options);
  host.onLog((entry) => console.log(formatLogEntry(entry)));
  const { stopped, stop } = await serveDaemon(host, endpoint);
  console.log(`mkvm: listening on ${endpoint.socket}`);
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  await stopped;
}

async function startInBackground(flags: UpFlags): Promise<void> {
  const endpoint = findEndpoint();
  const log = openSync(endpoint.log, "w", 0o600);
  const entry = process.argv[1] ?? fileURLToPath(import.meta.url);
  const words = [
    ...v8PoolWords(),
    ...process.execArgv,
    entry,
    "up",
    "--foreground",
    "--cpus",
    flags.cpus,
    "--clock",
    flags.clock,
  ];
  words.push("--vendor", flags.vendor, "--cpu", flags.cpu);
  const child = spawn(process.execPath, words, { detached: true, stdio: ["ignore", log, log] });
  closeSync(log);
  let ended = false;
  child.on("exit", () => {
    ended = true;
  });
  const deadline = Date.now() + startTimeoutMs;
  while (!ended && Date.now() < deadline) {
    const client = await tryConnect();
    if (client) {
      const { pid, cpus, clock } = await client.call("hello");
      client.close();
      child.unref();
      console.log(`the daemon runs as process ${pid}: ${cpus} CPU(s), ${clock} clock`);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  if (!ended) child.kill();
  const last = readFileSync(endpoint.log, "utf8").trim().split("\n").at(-1);
  throw new HostError("EIO", `the daemon did not start: ${last || "no message"}; its log is ${endpoint.log}`);
}
