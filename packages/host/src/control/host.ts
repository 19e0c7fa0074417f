/** The control plane, on the main thread: modules, /dev, processes over all CPUs. */
import type { MachineDescription } from "@mkvm/hw-x86";
import { createVacMemory, reclaimDeadCpu } from "@mkvm/vac";
import { DeviceTree, devicePath } from "../devices/device-tree.ts";
import { HostError } from "../errors.ts";
import { KernelLog, nowMs } from "../log/kernel-log.ts";
import { within } from "../patience.ts";
import { type Cpu, CpuSet } from "./cpu-set.ts";
import { machineOf } from "./machine.ts";
import { MachinePower } from "./machine-power.ts";
import { ModuleTable } from "./module-table.ts";
import { beginInterpreter } from "./prepared-interpreter.ts";
import type { ProcessHandle } from "./process-handle.ts";
import { ProcessTable } from "./process-table.ts";
import type { CpuEvent } from "./protocol.ts";
import { resourceUsage } from "./resources.ts";
import { TranslationThread } from "./translation-thread.ts";
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
import { upgrade } from "./upgrade.ts";

/** For processes to end when the host does, milliseconds. */
const closeMs = 2000;
/** As Linux's soft-lockup watchdog: twice its watchdog_thresh. */
const defaultAnswerMs = 20_000;
const defaultMoveLimits: MoveLimits = { prepareMs: 30_000, freezeMs: 2000 };

/** Starts a host: its CPUs are powered on when this resolves. */
export async function createHost(options: HostOptions = {}): Promise<Host> {
  const machine = machineOf(options);
  const host = new ControlPlane(
    machine,
    options.directory ?? process.cwd(),
    { ...defaultMoveLimits, ...options.moveLimits },
    options.answerMs ?? defaultAnswerMs,
  );
  await host.powerOn(options.cpuEntry ?? ownCpuEntry());
  return host;
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
  readonly #moveLimits: MoveLimits;
  /** VAC's state, over all CPUs. */
  readonly #vacShared: SharedArrayBuffer;
  readonly #cpus: CpuSet;
  readonly #modules: ModuleTable;
  readonly #tree = new DeviceTree();
  readonly #processes: ProcessTable;
  readonly #startedMs = nowMs();
  readonly #log = new KernelLog(this.#startedMs);
  readonly #translation = new TranslationThread((message) => this.#log.write("err", message));
  /** Changes of modules and /dev, one after the other. */
  #changes: Promise<unknown> = Promise.resolve();
  #closing = false;
  readonly #power: MachinePower;

  constructor(machine: MachineDescription, directory: string, moveLimits: MoveLimits, answerMs: number) {
    this.machine = machine;
    this.#moveLimits = moveLimits;
    this.#vacShared = createVacMemory(machine.cpus);
    this.#cpus = new CpuSet(
      {
        onEvent: (cpu, event) => this.#onEvent(cpu, event),
        onGone: (cpu, error) => this.#cpuGone(cpu, error),
        onSilent: (_cpu, error) => this.#log.write("err", error.message),
        onBack: (cpu) => {
          this.#log.write("warn", `cpu${cpu.id} answers again`);
          this.#unloadIdle();
        },
      },
      answerMs,
    );
    this.#power = new MachinePower({
      cpus: this.#cpus.all,
      migrate: (options) => this.migrate(options),
      hasEnded: (pid) => this.#processes.get(pid)?.ended ?? true,
      log: (message) => this.#log.write("info", message),
    });
    this.#modules = new ModuleTable({
      cpus: this.#cpus,
      tree: this.#tree,
      log: this.#log,
      directory,
      change: (change) => this.#change(change),
      publishDevices: () => this.#publishDevices(),
    });
    this.#processes = new ProcessTable({
      cpus: this.#cpus,
      modules: this.#modules,
      log: this.#log,
      directory,
      prepareMs: moveLimits.prepareMs,
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
  run(options: RunOptions): Promise<ProcessHandle> {
    return this.#processes.run(options);
  }

  ps(): Promise<ProcessInfo[]> {
    return this.#processes.ps();
  }

  /**
   * Statistics of the VMs of a process, or of all; of one that ended lately, what its VMs had counted when it did. They are read
   * from the modules without the VMM's help.
   */
  statistics(pid?: number): Promise<VmStatistics[]> {
    return this.#processes.statistics(pid);
  }

  /** What the engine did for a process that runs, or for one of the last that ended. ENODATA before its guest has run. */
  engineReport(pid: number): Promise<EngineReport> {
    return this.#processes.engineReport(pid);
  }

  /** The handle of a process that runs, or of one of the last that ended. */
  process(pid: number): ProcessHandle {
    return this.#processes.hosted(pid);
  }

  /** What is kept of a process's console. */
  async console(pid: number): Promise<Uint8Array> {
    return this.process(pid).console();
  }

  /** Ends a process; resolves when it has. */
  kill(pid: number): Promise<void> {
    return this.#processes.kill(pid);
  }

  /** Writes a process to a file, from which it can go on: here or in another host, on the same module or another. It runs on. */
  save(options: SaveOptions): Promise<SavedProcess> {
    return this.#processes.save(options);
  }

  /** A process that goes on from a file. What is wrong with the file is named, and nothing has changed then. */
  restore(options: RestoreOptions): Promise<ProcessHandle> {
    return this.#processes.restore(options);
  }

  // Moves

  /** Moves running VMs to another module; a report for each process. What failed is in the reports. */
  async upgrade(options: UpgradeOptions): Promise<MoveReport[]> {
    const { to } = options;
    if (this.#modules.get(to).draining)
      throw new HostError("EBUSY", `${to} is about to be unloaded and takes no VMs: 'mkvm rmmod ${to} --keep' keeps it`);
    return upgrade(options, this.#cpus, () => this.ps());
  }

  /**
   * Moves a process with its running VMs to another logical CPU. What fails before the new CPU begins to run it leaves it where it was, and
   * the report says why. Once it stands still it goes on on the other CPU even if the old one's thread dies.
   * @throws HostError when it cannot even begin
   */
  migrate(options: { pid: number; cpu: number }): Promise<MigrationReport> {
    return this.#processes.migrate(options);
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
    return resourceUsage(this.#vacShared, this.#cpus);
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

  /** Ends a CPU's thread, also one that hangs, with the processes on it. It does not come back. */
  async killCpu(cpu: number): Promise<void> {
    const { gone, kill } = this.#cpus.get(cpu);
    if (gone) throw gone;
    await kill();
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
      const running = this.#processes.all().filter((process) => !process.ended);
      await Promise.all(running.map((process) => process.exited));
    };
    // A thread that never comes back from its module must not keep the host from ending.
    await within(stopped(), closeMs, () => {});
    await Promise.all([this.#cpus.terminate(), this.#translation.terminate()]);
  }

  /** Starts the CPUs' threads. Once. */
  async powerOn(cpuEntry: URL): Promise<void> {
    const starts = Array.from({ length: this.machine.cpus }, (_, id) => {
      const boot = {
        machine: this.machine,
        vacShared: this.#vacShared,
        startedMs: this.#startedMs,
        moveLimits: this.#moveLimits,
        regions: this.#translation.channel(),
      };
      return this.#cpus.start(id, boot, cpuEntry);
    });
    // What guests want first is made while the CPUs start, on the other cores
    if (this.machine.engine === "hot") this.#translation.start();
    beginInterpreter();
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
    this.#processes.cpuGone(cpu, error.message);
    this.#unloadIdle();
  }

  /** A CPU that has gone, or answers again, may have had the last users of modules that wait to be unloaded. */
  #unloadIdle(): void {
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
      case "exited":
        this.#processes.ended(cpu, event);
        break;
    }
  }

  #change<Result>(change: () => Promise<Result>): Promise<Result> {
    const result = this.#changes.then(change);
    this.#changes = result.catch(() => {});
    return result;
  }

  #changeDevices(change: () => void): Promise<void> {
    return this.#change(async () => {
      await this.#cpus.allAnswer();
      change();
      await this.#publishDevices();
    });
  }

  async #publishDevices(): Promise<void> {
    const entries = this.#tree.list();
    await this.#cpus.onAll((cpu) => cpu.client.request("devices.set", { entries }, { sure: true }));
  }
}
