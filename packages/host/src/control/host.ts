/** The control plane, on the main thread: modules, /dev, processes over all CPUs. */
import { resolve } from "node:path";
import { createMachine, type MachineDescription } from "@mkvm/hw-x86";
import { createVacMemory, reclaimDeadCpu, VAC_LAYOUT } from "@mkvm/vac";
import { DeviceTree, devicePath } from "../devices/device-tree.ts";
import { HostError, messageOf } from "../errors.ts";
import { findPackage, hostDirectory } from "../loader/package-files.ts";
import { KernelLog, nowMs } from "../log/kernel-log.ts";
import { bankBytesFor, largestBankBytes } from "../memory/user-memory.ts";
import { within } from "../patience.ts";
import { SavedFile } from "../saved/file-reader.ts";
import { type Cpu, CpuSet } from "./cpu-set.ts";
import { MachinePower } from "./machine-power.ts";
import { migrate } from "./migration.ts";
import { ModuleTable } from "./module-table.ts";
import { HostedProcess, type ProcessHandle } from "./process-handle.ts";
import type { CpuEvent, ProcessSave } from "./protocol.ts";
import { parseSize } from "./sizes.ts";
import type {
  CpuInfo,
  DeviceEntry,
  EngineReport,
  HostOptions,
  InsmodOptions,
  LoadedModule,
  LogEntry,
  MigrationReport,
  ModuleInfo,
  MoveLimits,
  MoveReport,
  ProcessInfo,
  ResourceUsage,
  RestoreOptions,
  RunOptions,
  SavedProcess,
  SaveOptions,
  UpgradeOptions,
  VmStatistics,
} from "./types.ts";

/** Banks below are the CPUs' own. */
const firstProcessBank = 128;
const endedProcessesKept = 32;
/** In VAC's table of VPIDs: a byte from here on is a state, below an owner, 0 free. */
const firstVpidState = 0xfe;

/** For processes to end when the host does, milliseconds. */
const closeMs = 2000;
const defaultMoveLimits: MoveLimits = { prepareMs: 30_000, freezeMs: 2000 };

/** Starts a host: its CPUs are powered on when this resolves. */
export async function createHost(options: HostOptions = {}): Promise<Host> {
  let machine: MachineDescription;
  try {
    machine =
      options.machine ??
      createMachine({
        vendor: options.vendor ?? "intel",
        cpuModel: options.cpuModel ?? "max",
        cpus: options.cpus ?? 1,
        clock: options.clock ?? "wall",
        engine: options.engine ?? engineOfEnvironment(),
      });
  } catch (thrown) {
    throw new HostError("EINVAL", messageOf(thrown));
  }
  const host = new ControlPlane(machine, options.directory ?? process.cwd(), { ...defaultMoveLimits, ...options.moveLimits });
  await host.powerOn(options.cpuEntry ?? ownCpuEntry());
  return host;
}

/** MKVM_ENGINE, so that whatever starts hosts can be run on the interpreter alone, or with everything translated. */
function engineOfEnvironment(): NonNullable<HostOptions["engine"]> {
  const mode = process.env.MKVM_ENGINE || "hot";
  if (mode !== "off" && mode !== "hot" && mode !== "always")
    throw new HostError("EINVAL", `MKVM_ENGINE is '${mode}': it takes off, hot or always`);
  return mode;
}

function ownCpuEntry(): URL {
  return import.meta.url.endsWith(".ts")
    ? new URL("../cpu-worker.ts", import.meta.url)
    : new URL("./cpu-worker.js", import.meta.url);
}

/** A host that is powered on. Only `createHost` makes one, so the class is not exported: users would find a value that is not there. */
export type Host = ControlPlane;

class ControlPlane {
  readonly machine: MachineDescription;
  readonly #directory: string;
  readonly #moveLimits: MoveLimits;
  /** VAC's state, over all CPUs. */
  readonly #vacShared: SharedArrayBuffer;
  readonly #cpus = new CpuSet({
    onEvent: (cpu, event) => this.#onEvent(cpu, event),
    onGone: (cpu, error) => this.#cpuGone(cpu, error),
  });
  readonly #modules: ModuleTable;
  readonly #tree = new DeviceTree();
  readonly #processes = new Map<number, HostedProcess>();
  /** Console input of processes that are between two CPUs. */
  readonly #heldInput = new Map<number, (Uint8Array | null)[]>();
  readonly #startedMs = nowMs();
  readonly #log = new KernelLog(this.#startedMs);
  /** Changes of modules and /dev, one after the other. */
  #changes: Promise<unknown> = Promise.resolve();
  #lastPid = 0;
  #closing = false;
  readonly #power = new MachinePower({
    cpus: this.#cpus.all,
    migrate: (options) => this.migrate(options),
    hasEnded: (pid) => this.#processes.get(pid)?.ended ?? true,
    log: (message) => this.#log.write("info", message),
  });

  constructor(machine: MachineDescription, directory: string, moveLimits: MoveLimits) {
    this.machine = machine;
    this.#moveLimits = moveLimits;
    this.#vacShared = createVacMemory(machine.cpus);
    this.#directory = directory;
    this.#modules = new ModuleTable({
      cpus: this.#cpus,
      tree: this.#tree,
      log: this.#log,
      directory,
      change: (change) => this.#change(change),
      publishDevices: () => this.#publishDevices(),
    });
  }

  // Modules

  /** Loads a module: a package by name or by path. */
  insmod(spec: string, options: InsmodOptions = {}): Promise<LoadedModule> {
    return this.#modules.insmod(spec, options);
  }

  /**
   * Unloads a module that nobody uses; EBUSY, and who uses it, otherwise. With `whenIdle` a module in use takes no new users from
   * now on, and is unloaded when the last one is gone; VMs that came from it can still roll back to it. True: it is unloaded.
   */
  rmmod(name: string, options: { whenIdle?: boolean } = {}): Promise<boolean> {
    return this.#modules.rmmod(name, options);
  }

  /** Takes `rmmod` with `whenIdle` back. */
  keep(name: string): Promise<void> {
    return this.#modules.keep(name);
  }

  lsmod(): Promise<LoadedModule[]> {
    return this.#modules.lsmod();
  }

  /** About a package, or the package of a loaded module. */
  modinfo(spec: string, options: { directory?: string } = {}): Promise<ModuleInfo> {
    return this.#modules.modinfo(spec, options);
  }

  // /dev

  async ls(path = "/dev"): Promise<DeviceEntry[]> {
    const prefix = devicePath(path);
    return this.#tree.list().filter((entry) => entry.path === prefix || entry.path.startsWith(`${prefix}/`));
  }

  /** Makes `path` a link to `target`, replacing a link in one step. */
  ln(target: string, path: string): Promise<void> {
    return this.#changeDevices(() => this.#tree.link(target, path));
  }

  /** Removes a link. */
  unlink(path: string): Promise<void> {
    return this.#changeDevices(() => this.#tree.unlink(path));
  }

  /** Bind mount: `target` shows the device at `source`, for processes that start later, or for one that runs. */
  async mount(source: string, target: string, options: { pid?: number } = {}): Promise<void> {
    const { pid } = options;
    if (pid === undefined) return this.#changeDevices(() => this.#tree.mount(source, target));
    await this.#cpus.of(pid).client.request("process.mount", { pid, mount: { source, target } });
  }

  umount(target: string): Promise<void> {
    return this.#changeDevices(() => this.#tree.unmount(target));
  }

  // Processes

  /** Starts a program in a process of its own. */
  async run(options: RunOptions): Promise<ProcessHandle> {
    const program = options.program ?? "@mkvm/vmm";
    const found = findPackage(program, [options.directory ?? this.#directory, hostDirectory]);
    const memoryBytes = options.memoryBytes ?? memoryArgument(options.args) ?? 256 * 1024 * 1024;
    if (bankBytesFor(memoryBytes) > largestBankBytes) {
      throw new HostError(
        "ENOMEM",
        `${memoryBytes} bytes of memory are too many: a process has at most 4 GiB, 3840M of it for guests`,
      );
    }
    const cpu = this.#cpus.choose(options.cpu);
    const name = options.name ?? found.name.replace(/^.*\//, "");
    const handle = this.#newProcess(name, cpu, { package: found.name, version: found.version, entry: found.entryUrl });
    const { pid } = handle;
    await this.#starting(cpu, pid, () =>
      cpu.client.request("process.start", {
        pid,
        bank: firstProcessBank + pid,
        name,
        program: found.entryUrl,
        args: [...options.args],
        memoryBytes,
        mounts: (options.mounts ?? []).map(({ source, target }) => ({ source, target })),
        profile: options.profile ?? false,
        moves: (options.moves ?? []).map(({ at, to }) => ({ at, to })),
        save: options.save && this.#saving(handle, options.save.path, true, options.save.at),
      }),
    );
    this.#log.write("info", `started process ${pid} (${name}) on cpu${cpu.id}`);
    return handle;
  }

  async ps(): Promise<ProcessInfo[]> {
    const all = await this.#cpus.onAll((cpu) => cpu.client.request("process.list", null));
    return all.flat().sort((a, b) => a.pid - b.pid);
  }

  /**
   * Statistics of the VMs of a process, or of all; of one that ended lately, what its VMs had counted when it did. They are read
   * from the modules without the VMM's help.
   */
  async statistics(pid?: number): Promise<VmStatistics[]> {
    if (pid !== undefined) {
      const { ended, statistics } = this.#hosted(pid);
      return ended ? statistics : this.#cpus.of(pid).client.request("process.statistics", { pid });
    }
    const withVms = (await this.ps()).filter((process) => process.vms > 0);
    const all = await Promise.all(withVms.map((process) => this.#statisticsIfThere(process.pid)));
    return all.flat();
  }

  /** A process may end between being listed and being asked. */
  #statisticsIfThere(pid: number): Promise<VmStatistics[]> {
    return this.statistics(pid).catch((thrown) => {
      if (thrown instanceof HostError && thrown.code === "ESRCH") return [];
      throw thrown;
    });
  }

  /** What the engine did for a process that runs, or for one of the last that ended. ENODATA before its guest has run. */
  async engineReport(pid: number): Promise<EngineReport> {
    const { ended, engine } = this.#hosted(pid);
    const report = ended ? engine : await this.#cpus.of(pid).client.request("process.engine", { pid });
    if (!report) throw new HostError("ENODATA", `process ${pid} has run no guest: there is nothing to tell of the engine`);
    return report;
  }

  /** The handle of a process that runs, or of one of the last that ended. */
  process(pid: number): ProcessHandle {
    return this.#hosted(pid);
  }

  #hosted(pid: number): HostedProcess {
    const found = this.#processes.get(pid);
    if (!found) throw new HostError("ESRCH", `no process ${pid}: see 'mkvm ps'`);
    return found;
  }

  /** What is kept of a process's console. */
  async console(pid: number): Promise<Uint8Array> {
    return this.process(pid).console();
  }

  /** Ends a process; resolves when it has. */
  async kill(pid: number): Promise<void> {
    await this.#cpus.of(pid).client.request("process.kill", { pid });
    await this.process(pid).exited;
  }

  /** Writes a process to a file, from which it can go on: here or in another host, on the same module or another. It runs on. */
  async save(options: SaveOptions): Promise<SavedProcess> {
    const { pid, path, stop = false } = options;
    const { client } = this.#cpus.of(pid);
    return client.request("process.save", this.#saving(this.#hosted(pid), path, stop));
  }

  #saving({ pid, program }: HostedProcess, path: string, stop: boolean, at?: number): ProcessSave {
    const modules = Object.fromEntries(
      this.#modules.all().map(({ name, package: of, version }) => [name, { package: of, version }]),
    );
    return { pid, path: resolve(path), packages: { program, modules }, at, stop };
  }

  /** A process that goes on from a file. What is wrong with the file is named, and nothing has changed then. */
  async restore(options: RestoreOptions): Promise<ProcessHandle> {
    const path = resolve(options.path);
    const file = await SavedFile.open(path);
    const { name, program, bankBytes } = await file.manifest().finally(() => file.close());
    if (bankBytes > largestBankBytes) throw new HostError("EINVAL", `${path}: section manifest[0]: bankBytes is too large`);
    const found = findPackage(program.package, [options.directory ?? this.#directory, hostDirectory]);
    if (options.module !== undefined) this.#modules.get(options.module);
    const cpu = this.#cpus.choose(options.cpu);
    const handle = this.#newProcess(name, cpu, { package: found.name, version: found.version, entry: found.entryUrl });
    const { pid } = handle;
    await this.#starting(cpu, pid, () =>
      cpu.client.request("process.restore", {
        pid,
        bank: firstProcessBank + pid,
        path,
        program: found.entryUrl,
        module: options.module,
        save: options.save && this.#saving(handle, options.save.path, true, options.save.at),
      }),
    );
    return handle;
  }

  #newProcess(name: string, cpu: Cpu, program: { package: string; version: string; entry: string }): HostedProcess {
    const pid = ++this.#lastPid;
    const handle = new HostedProcess(pid, name, cpu.id, program, (bytes) => {
      const held = this.#heldInput.get(pid);
      if (held) held.push(bytes);
      else this.#input(pid, bytes);
    });
    this.#processes.set(pid, handle);
    cpu.processes.add(pid);
    return handle;
  }

  #input(pid: number, bytes: Uint8Array | null): void {
    const cpu = this.#cpus.all.find((candidate) => candidate.processes.has(pid));
    cpu?.client.request("process.input", { pid, bytes }).catch(() => {});
  }

  /** Forgets a process that could not be started. */
  async #starting(cpu: Cpu, pid: number, start: () => Promise<unknown>): Promise<void> {
    try {
      await start();
    } catch (thrown) {
      this.#processes.delete(pid);
      cpu.processes.delete(pid);
      throw thrown;
    }
  }

  // Moves

  /** Moves running VMs to another module; a report for each process. What failed is in the reports. */
  async upgrade(options: UpgradeOptions): Promise<MoveReport[]> {
    const { pid, to, at } = options;
    if (this.#modules.get(to).draining)
      throw new HostError("EBUSY", `${to} is about to be unloaded and takes no VMs: 'mkvm rmmod ${to} --keep' keeps it`);
    const finalise = options.finalize ?? false;
    if (pid !== "all") return [await this.#cpus.of(pid).client.request("move.to", { pid, to, at, finalise })];
    const movable = (await this.ps()).filter((process) => process.vms > 0 && !process.modules.every((module) => module === to));
    return Promise.all(
      movable.map((process) => this.#cpus.of(process.pid).client.request("move.to", { pid: process.pid, to, at, finalise })),
    );
  }

  /**
   * Moves a process with its running VMs to another logical CPU. What fails before the old CPU is to let go leaves it where it was, and
   * the report says why. Once it stands still it goes on on the other CPU even if the old one's thread dies.
   * @throws HostError when it cannot even begin
   */
  async migrate(options: { pid: number; cpu: number }): Promise<MigrationReport> {
    const { pid } = options;
    const handle = this.#hosted(pid);
    const from = this.#cpus.of(pid);
    const to = this.#cpus.choose(options.cpu);
    if (from === to) throw new HostError("EINVAL", `process ${pid} is on cpu${to.id} already: see 'mkvm ps'`);
    const report = await migrate(handle, from, to, this.#moveLimits.prepareMs, {
      holdInput: () => this.#heldInput.set(pid, []),
      releaseInput: () => {
        const held = this.#heldInput.get(pid) ?? [];
        this.#heldInput.delete(pid);
        for (const bytes of held) this.#input(pid, bytes);
      },
    });
    const { failed, blackoutUs, notReleased } = report;
    if (failed) {
      const outcome = handle.ended ? `did not get to cpu${to.id}` : `stays on cpu${from.id}`;
      this.#log.write("warn", `process ${pid} ${outcome}: ${failed.step} failed: ${failed.reason}`);
    } else this.#log.write("info", `process ${pid} moved from cpu${from.id} to cpu${to.id}, blackout ${blackoutUs} us`);
    if (notReleased !== undefined)
      this.#log.write("warn", `process ${pid} goes on on cpu${to.id}; its old CPU did not let go of it: ${notReleased}`);
    return report;
  }

  /** Why the VMs of a process could not move now; null when they could. Nothing is moved. */
  async checkUpgrade(options: { pid: number; to: string }): Promise<string | null> {
    this.#modules.get(options.to);
    return this.#cpus.of(options.pid).client.request("move.check", options);
  }

  /** Moves the VMs of a process back to the module they came from. */
  async rollback(pid: number): Promise<MoveReport> {
    return this.#cpus.of(pid).client.request("move.back", { pid });
  }

  /** Gives up the way back; the modules that are held for it no longer are: their names. */
  async finalize(pid: number): Promise<string[]> {
    const released = await this.#cpus.of(pid).client.request("move.finalise", { pid });
    this.#log.write("info", `process ${pid} finalised`);
    return released;
  }

  /** What modules hold for VMs; compared before and after something, it shows leaks. */
  async resources(): Promise<ResourceUsage> {
    const { offset, count } = VAC_LAYOUT.blocks.find((block) => block.name === "vpids")!;
    const owners = new Uint8Array(this.#vacShared, offset, count);
    const usage: ResourceUsage = {
      vpids: owners.filter((owner) => owner > 0 && owner < firstVpidState).length,
      timers: {},
      processes: [],
    };
    for (const { timers, processes } of await this.#cpus.onAll((cpu) => cpu.client.request("cpu.resources", null))) {
      for (const [module, armed] of Object.entries(timers)) usage.timers[module] = (usage.timers[module] ?? 0) + armed;
      usage.processes.push(...processes);
    }
    return usage;
  }

  /**
   * Suspends the machine to RAM: every process stands still, modules and VAC let go of the CPUs, and these lose power. Until `resume`
   * the host tells what it has, and refuses all else with EAGAIN. Guests' clocks go on meanwhile, as over a sleep of the host in Linux.
   * @throws HostError when something is moving, or does not come out of a module: all runs on then
   */
  suspend(): Promise<void> {
    return this.#change(() => this.#power.suspend());
  }

  /** Wakes a machine that is suspended. */
  resume(): Promise<void> {
    return this.#change(() => this.#power.resume());
  }

  /** The machine's logical CPUs. */
  async cpus(): Promise<CpuInfo[]> {
    return this.#power.cpus();
  }

  /**
   * Takes a CPU out of use: its processes move to the others while they run, then it lets go of all that modules have on it and loses
   * power.
   * @throws HostError for the last one, and with the reason when a process cannot leave: the CPU stays in use then, and what has left
   *   stays where it went
   */
  offline(cpu: number): Promise<void> {
    return this.#change(() => this.#power.takeOffline(this.#cpus.choose(cpu)));
  }

  /** Brings a CPU back into use. */
  online(cpu: number): Promise<void> {
    return this.#change(() => this.#power.bringOnline(this.#cpus.get(cpu)));
  }

  /** A line of the kernel log, from who drives the host. */
  note(text: string): void {
    this.#log.write("info", text);
  }

  /** When it was started, milliseconds since the epoch: with the pid of its process, it tells hosts apart. */
  get startedMs(): number {
    return this.#startedMs;
  }

  async dmesg(): Promise<LogEntry[]> {
    return this.#log.entries();
  }

  onLog(listener: (entry: LogEntry) => void): () => void {
    return this.#log.listen(listener);
  }

  /** Ends all processes, then the CPUs. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    const stopped = async () => {
      await this.#cpus.onAll((cpu) => cpu.client.request("cpu.stop", null)).catch(() => {});
      const running = [...this.#processes.values()].filter((process) => !process.ended);
      await Promise.all(running.map((process) => process.exited));
    };
    // A thread that never comes back from its module must not keep the host from ending.
    await within(stopped(), closeMs, () => {});
    await this.#cpus.terminate();
  }

  /** Starts the CPUs' threads. Once. */
  async powerOn(cpuEntry: URL): Promise<void> {
    const boot = {
      machine: this.machine,
      vacShared: this.#vacShared,
      startedMs: this.#startedMs,
      moveLimits: this.#moveLimits,
    };
    const starts = Array.from({ length: this.machine.cpus }, (_, id) => this.#cpus.start(id, boot, cpuEntry));
    try {
      await Promise.all(starts);
    } catch (thrown) {
      await this.close();
      throw thrown;
    }
    this.#log.write(
      "info",
      `${this.machine.cpus} ${this.machine.vendor} CPU(s) of model ${this.machine.cpuModel}, ${this.machine.clock} clock`,
    );
  }

  #cpuGone(cpu: Cpu, error: HostError): void {
    if (this.#closing) {
      for (const pid of cpu.processes) this.#processes.get(pid)?.end({ status: 137, reason: "killed" });
      return;
    }
    this.#log.write("err", error.message);
    reclaimDeadCpu(this.#vacShared, cpu.id);
    for (const pid of [...cpu.processes]) {
      const process = this.#processes.get(pid);
      if (process?.outlivesCpu) continue;
      process?.end({ status: 134, reason: "crashed", message: error.message });
      cpu.processes.delete(pid);
    }
    // It may have had the last users of modules that are to be unloaded when idle
    for (const { name } of this.#modules.all()) void this.#modules.unloadIdle(name);
  }

  #onEvent(cpu: Cpu, event: CpuEvent): void {
    switch (event.event) {
      case "log": {
        const { timeUs, level, source, message } = event;
        this.#log.add({ timeUs, level, source, message });
        break;
      }
      case "output":
        this.#processes.get(event.pid)?.wrote(event.bytes, event.fd);
        break;
      case "module.idle":
        void this.#modules.unloadIdle(event.name);
        break;
      case "moved":
        this.#processes.get(event.report.pid)?.moves.push(event.report);
        break;
      case "exited": {
        const { pid, exit, engine } = event;
        cpu.processes.delete(pid);
        this.#log.write("info", `process ${pid} ended: ${exit.reason}, status ${exit.status}`);
        const process = this.#processes.get(pid);
        if (process) process.statistics = event.statistics;
        process?.end(exit, engine);
        const ended = [...this.#processes.values()].filter((process) => process.ended);
        for (const old of ended.slice(0, -endedProcessesKept)) this.#processes.delete(old.pid);
        break;
      }
    }
  }

  #change<Result>(change: () => Promise<Result>): Promise<Result> {
    const result = this.#changes.then(change);
    this.#changes = result.catch(() => {});
    return result;
  }

  #changeDevices(change: () => void): Promise<void> {
    return this.#change(async () => {
      change();
      await this.#publishDevices();
    });
  }

  async #publishDevices(): Promise<void> {
    const entries = this.#tree.list();
    await this.#cpus.onAll((cpu) => cpu.client.request("devices.set", { entries }));
  }
}

function memoryArgument(args: readonly string[]): number | undefined {
  const at = args.findIndex((word) => word === "--memory" || word.startsWith("--memory="));
  if (at < 0) return undefined;
  const text = args[at] === "--memory" ? args[at + 1] : args[at]!.slice("--memory=".length);
  return text === undefined ? undefined : parseSize(text);
}
