/** `mkvm run`: a VM in the daemon, or one of its own that lives as long as the command. */
import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { parseSize } from "../control/sizes.ts";
import type { EngineReport, ExitStatus, RunOptions } from "../control/types.ts";
import { HostError, messageOf } from "../errors.ts";
import { becomeHostProcess } from "../host-process.ts";
import { parseParameterWords } from "../loader/parameters.ts";
import { type DaemonClient, tryConnect } from "./client.ts";
import { printEngineReport } from "./engine-tables.ts";
import { cpuOf } from "./power-commands.ts";
import { attachTerminal, onBrokenPipe, printOutput } from "./terminal.ts";

export interface RunFlags {
  kernel?: string;
  pflash?: string[];
  initrd?: string;
  append?: string;
  cpus?: string;
  format?: string;
  digest?: boolean;
  memory: string;
  device: string;
  module?: string;
  param?: string[];
  clock?: "wall" | "icount";
  vendor?: "intel" | "amd";
  program: string;
  cpu?: string;
  logicalCpu?: string;
  mount?: string[];
  name?: string;
  detach?: boolean;
  oneShot?: boolean;
  engine?: "off" | "hot" | "always";
  engineStats?: boolean;
  json?: boolean;
}

/** So that a Linux without --append is seen, and ends the VM instead of hanging when it panics. */
export const linuxCommandLine = "console=ttyS0 panic=-1";

/** Status of a command that a signal or the user's Ctrl-] ended. */
const interruptedStatus = 130;

/** Runs a VM; the status to exit with. `words`: more arguments for the program. */
export async function runVm(flags: RunFlags, words: readonly string[]): Promise<number> {
  const options = runOptions(flags, words);
  const oneShot =
    flags.oneShot ||
    flags.module !== undefined ||
    flags.clock !== undefined ||
    flags.vendor !== undefined ||
    flags.engine !== undefined ||
    flags.param !== undefined;
  const daemon = oneShot ? undefined : await tryConnect();
  if (daemon) {
    try {
      return await runInDaemon(daemon, options, flags);
    } finally {
      daemon.close();
    }
  }
  if (flags.detach) throw new HostError("ENOENT", "--detach needs a daemon: start one with 'mkvm up'");
  return runOneShot(options, flags);
}

function runOptions(flags: RunFlags, words: readonly string[]): RunOptions {
  const memoryBytes = parseSize(flags.memory);
  const args = bootFiles(flags);
  if (flags.initrd) args.push("--initrd", readableFile("--initrd", flags.initrd));
  const append = flags.append ?? (flags.kernel !== undefined && isBzImage(args[1]!) ? linuxCommandLine : undefined);
  if (append !== undefined) args.push("--append", append);
  if (flags.cpus) args.push("--cpus", flags.cpus);
  if (flags.cpu) args.push("--cpu", flags.cpu);
  if (flags.format) args.push("--format", flags.format);
  if (flags.digest) args.push("--digest");
  args.push("--memory", String(memoryBytes), "--device", flags.device, ...words);
  const options: RunOptions = {
    program: flags.program,
    args,
    memoryBytes,
    directory: process.cwd(),
    mounts: (flags.mount ?? []).map((word) => {
      const [source, target, ...more] = word.split(":");
      if (!source || !target || more.length > 0)
        throw new HostError("EINVAL", `--mount ${word}: write SOURCE:TARGET, as /dev/kvm2:/dev/kvm`);
      return { source, target };
    }),
  };
  if (flags.engineStats) options.profile = true;
  if (flags.name) options.name = flags.name;
  if (flags.logicalCpu !== undefined) options.cpu = cpuOf(flags.logicalCpu);
  return options;
}

function bootFiles({ kernel, pflash }: RunFlags): string[] {
  if (pflash === undefined && kernel !== undefined) return ["--kernel", readableFile("--kernel", kernel)];
  if (pflash === undefined)
    throw new HostError("EINVAL", "give what to boot: --kernel IMAGE, or UEFI firmware with --pflash CODE --pflash VARIABLES");
  if (kernel !== undefined)
    throw new HostError("EINVAL", "--pflash and --kernel do not go together: firmware finds by itself what to boot");
  return pflash.flatMap((path) => ["--pflash", readableFile("--pflash", path)]);
}

/** Linux/x86 boot protocol: "HdrS" in the real-mode kernel header. */
function isBzImage(path: string): boolean {
  const header = Buffer.alloc(0x206);
  const fd = openSync(path, "r");
  readSync(fd, header, 0, header.length, 0);
  closeSync(fd);
  return header.toString("latin1", 0x202) === "HdrS";
}

function readableFile(option: string, path: string): string {
  const full = resolve(path);
  if (!existsSync(full)) throw new HostError("ENOENT", `${option} ${path}: no such file`);
  if (!statSync(full).isFile()) throw new HostError("EINVAL", `${option} ${path}: not a regular file`);
  return full;
}

async function runOneShot(options: RunOptions, flags: RunFlags): Promise<number> {
  becomeHostProcess();
  const { createHost } = await import("../control/host.ts");
  const host = await createHost({
    cpus: 1,
    clock: flags.clock ?? "wall",
    vendor: flags.vendor ?? "intel",
    ...(flags.engine && { engine: flags.engine }),
  });
  try {
    const module = await host.insmod(flags.module ?? "@mkvm/kvm-v1", { parameters: parseParameterWords(flags.param ?? []) });
    if (module.devices[0] !== flags.device && flags.device === "/dev/kvm") await host.ln(module.devices[0]!, "/dev/kvm");
    const process = await host.run(options);
    let quit = false;
    const kill = () => {
      quit = true;
      host.kill(process.pid).catch(() => {});
    };
    onBrokenPipe(kill);
    process.onOutput(printOutput);
    const detach = attachTerminal({ input: (bytes) => process.write(bytes), endInput: () => process.endInput(), quit: kill });
    const stop = flags.engineStats ? onStatisticsSignal(() => host.engineReport(process.pid), flags.json) : () => {};
    const exit = await process.exited;
    detach();
    stop();
    if (flags.engineStats) printEngineReport(await host.engineReport(process.pid), flags.json);
    return quit ? interruptedStatus : report(exit);
  } finally {
    await host.close();
  }
}

async function runInDaemon(daemon: DaemonClient, options: RunOptions, flags: RunFlags): Promise<number> {
  const mounted = options.mounts?.some((mount) => mount.target === flags.device);
  if (!mounted && flags.device.startsWith("/dev/") && (await daemon.call("ls", flags.device)).length === 0) {
    throw new HostError(
      "ENOENT",
      `the daemon has no ${flags.device}: load a module ('mkvm insmod @mkvm/kvm-v1') and link it ('mkvm ln /dev/kvm1 /dev/kvm')`,
    );
  }
  const { pid, name, cpu } = await daemon.call("run", options);
  if (flags.detach) {
    console.log(flags.json ? JSON.stringify({ pid, name, cpu }) : `${pid}`);
    return 0;
  }
  const status = await attachTo(daemon, pid, () => daemon.call("kill", pid).then(() => undefined));
  if (flags.engineStats) printEngineReport(await daemon.call("engineReport", pid), flags.json);
  return status;
}

/** Prints what the engine has done so far at each SIGUSR2, until the returned function is called. */
function onStatisticsSignal(ask: () => Promise<EngineReport>, asJson: boolean | undefined): () => void {
  const show = (): void => {
    ask().then(
      (engine) => printEngineReport(engine, asJson),
      (thrown) => process.stderr.write(`mkvm: ${messageOf(thrown)}\n`),
    );
  };
  process.on("SIGUSR2", show);
  return () => process.off("SIGUSR2", show);
}

/**
 * Shows a process's console until it ends or the user leaves. On a terminal Ctrl-] leaves it running; otherwise Ctrl-C calls
 * `interrupt`, or leaves it running when there is none.
 */
export async function attachTo(daemon: DaemonClient, pid: number, interrupt?: () => Promise<void>): Promise<number> {
  let leave = (_status: number) => {};
  const left = new Promise<number>((resolve) => {
    leave = resolve;
  });
  const quit = () => {
    if (interrupt && !process.stdin.isTTY) void interrupt().finally(() => leave(interruptedStatus));
    else {
      process.stderr.write(`\nprocess ${pid} goes on: 'mkvm console ${pid}' attaches again\n`);
      leave(0);
    }
  };
  onBrokenPipe(() => leave(0));
  const detach = attachTerminal({
    input: (bytes) => void daemon.call("input", pid, Buffer.from(bytes).toString("base64")).catch(() => {}),
    endInput: () => void daemon.call("input", pid, null).catch(() => {}),
    quit,
  });
  const ended = daemon
    .stream("attach", (stream) => "data" in stream && printOutput(Buffer.from(stream.data, "base64"), stream.fd), pid)
    .then(report);
  try {
    return await Promise.race([ended, left]);
  } finally {
    detach();
    ended.catch(() => {});
  }
}

function report(exit: ExitStatus): number {
  if (exit.reason === "crashed") process.stderr.write(`mkvm: the process crashed: ${exit.message ?? "see 'mkvm dmesg'"}\n`);
  if (exit.reason === "killed") process.stderr.write("mkvm: the process was killed\n");
  return exit.status;
}
