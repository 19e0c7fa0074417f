/** The processes over all CPUs: those that run, and the last that ended. */
import { resolve } from "node:path";
import { HostError } from "../errors.ts";
import { findPackage, hostDirectory } from "../loader/package-files.ts";
import type { KernelLog } from "../log/kernel-log.ts";
import { bankBytesFor, largestBankBytes } from "../memory/user-memory.ts";
import { SavedFile } from "../saved/file-reader.ts";
import type { Cpu, CpuSet } from "./cpu-set.ts";
import { migrate } from "./migration.ts";
import type { ModuleTable } from "./module-table.ts";
import { HostedProcess, type ProcessHandle } from "./process-handle.ts";
import type { CpuEvent, ProcessSave } from "./protocol.ts";
import { NoAnswer, type RequestOptions } from "./requests.ts";
import { parseSize } from "./sizes.ts";
import type {
  EngineReport,
  MigrationReport,
  ProcessInfo,
  RestoreOptions,
  RunOptions,
  SavedProcess,
  SaveOptions,
  VmStatistics,
} from "./types.ts";

/** Banks below are the CPUs' own. */
const firstProcessBank = 128;
const endedProcessesKept = 32;

export interface ProcessSurroundings {
  readonly cpus: CpuSet;
  readonly modules: ModuleTable;
  readonly log: KernelLog;
  /** Where packages are looked for. */
  readonly directory: string;
  /** For a move to another CPU to get ready, milliseconds. */
  readonly prepareMs: number;
}

export class ProcessTable {
  readonly #around: ProcessSurroundings;
  readonly #processes = new Map<number, HostedProcess>();
  /** Console input of processes that are between two CPUs. */
  readonly #heldInput = new Map<number, (Uint8Array | null)[]>();
  #lastPid = 0;

  constructor(around: ProcessSurroundings) {
    this.#around = around;
  }

  all(): HostedProcess[] {
    return [...this.#processes.values()];
  }

  /** Undefined: there is none, or it ended long ago. */
  get(pid: number): HostedProcess | undefined {
    return this.#processes.get(pid);
  }

  /** Starts a program in a process of its own. */
  async run(options: RunOptions): Promise<ProcessHandle> {
    const program = options.program ?? "@mkvm/vmm";
    const found = findPackage(program, [options.directory ?? this.#around.directory, hostDirectory]);
    const memoryBytes = options.memoryBytes ?? memoryArgument(options.args) ?? 256 * 1024 * 1024;
    if (bankBytesFor(memoryBytes) > largestBankBytes) {
      throw new HostError(
        "ENOMEM",
        `${memoryBytes} bytes of memory are too many: a process has at most 4 GiB, 3840M of it for guests`,
      );
    }
    const cpu = this.#around.cpus.choose(options.cpu);
    const name = options.name ?? found.name.replace(/^.*\//, "");
    const handle = this.#newProcess(name, cpu, { package: found.name, version: found.version, entry: found.entryUrl });
    const { pid } = handle;
    await this.#starting(cpu, pid, (late) =>
      cpu.client.request(
        "process.start",
        {
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
        },
        late,
      ),
    );
    this.#around.log.write("info", `started process ${pid} (${name}) on cpu${cpu.id}`);
    return handle;
  }

  async ps(): Promise<ProcessInfo[]> {
    const all = await this.#around.cpus.onAll((cpu) => cpu.client.request("process.list", null));
    return all.flat().sort((a, b) => a.pid - b.pid);
  }

  /**
   * Statistics of the VMs of a process, or of all; of one that ended lately, what its VMs had counted when it did. They are read
   * from the modules without the VMM's help.
   */
  async statistics(pid?: number): Promise<VmStatistics[]> {
    if (pid !== undefined) {
      const { ended, statistics } = this.hosted(pid);
      return ended ? statistics : this.#around.cpus.of(pid).client.request("process.statistics", { pid });
    }
    const withVms = (await this.ps()).filter((process) => process.vms > 0);
    const all = await Promise.all(withVms.map((process) => this.#statisticsIfThere(process.pid)));
    return all.flat();
  }

  /** A process may end between being listed and being asked, or its CPU hang. */
  #statisticsIfThere(pid: number): Promise<VmStatistics[]> {
    return this.statistics(pid).catch((thrown) => {
      if (thrown instanceof NoAnswer || (thrown instanceof HostError && thrown.code === "ESRCH")) return [];
      throw thrown;
    });
  }

  /** What the engine did for a process that runs, or for one of the last that ended. ENODATA before its guest has run. */
  async engineReport(pid: number): Promise<EngineReport> {
    const { ended, engine } = this.hosted(pid);
    const report = ended ? engine : await this.#around.cpus.of(pid).client.request("process.engine", { pid });
    if (!report) throw new HostError("ENODATA", `process ${pid} has run no guest: there is nothing to tell of the engine`);
    return report;
  }

  /** The handle of a process that runs, or of one of the last that ended. */
  hosted(pid: number): HostedProcess {
    const found = this.#processes.get(pid);
    if (!found) throw new HostError("ESRCH", `no process ${pid}: see 'mkvm ps'`);
    return found;
  }

  /** Ends a process; resolves when it has. On a CPU that does not answer it ends when that does. */
  async kill(pid: number): Promise<void> {
    await this.#around.cpus.of(pid).client.request("process.kill", { pid }, { sure: true });
    await this.hosted(pid).exited;
  }

  /** Writes a process to a file, from which it can go on: here or in another host, on the same module or another. It runs on. */
  async save(options: SaveOptions): Promise<SavedProcess> {
    const { pid, path, stop = false } = options;
    const { client } = this.#around.cpus.of(pid);
    return client.request("process.save", this.#saving(this.hosted(pid), path, stop));
  }

  #saving({ pid, program }: HostedProcess, path: string, stop: boolean, at?: number): ProcessSave {
    const modules = Object.fromEntries(
      this.#around.modules.all().map(({ name, package: of, version }) => [name, { package: of, version }]),
    );
    return { pid, path: resolve(path), packages: { program, modules }, at, stop };
  }

  /** A process that goes on from a file. What is wrong with the file is named, and nothing has changed then. */
  async restore(options: RestoreOptions): Promise<ProcessHandle> {
    const path = resolve(options.path);
    const file = await SavedFile.open(path);
    const { name, program, bankBytes } = await file.manifest().finally(() => file.close());
    if (bankBytes > largestBankBytes) throw new HostError("EINVAL", `${path}: section manifest[0]: bankBytes is too large`);
    const found = findPackage(program.package, [options.directory ?? this.#around.directory, hostDirectory]);
    if (options.module !== undefined) this.#around.modules.get(options.module);
    const cpu = this.#around.cpus.choose(options.cpu);
    const handle = this.#newProcess(name, cpu, { package: found.name, version: found.version, entry: found.entryUrl });
    const { pid } = handle;
    await this.#starting(cpu, pid, (late) =>
      cpu.client.request(
        "process.restore",
        {
          pid,
          bank: firstProcessBank + pid,
          path,
          program: found.entryUrl,
          module: options.module,
          save: options.save && this.#saving(handle, options.save.path, true, options.save.at),
        },
        late,
      ),
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
    const cpu = this.#around.cpus.all.find((candidate) => candidate.processes.has(pid));
    cpu?.client.request("process.input", { pid, bytes }, { sure: true }).catch(() => {});
  }

  /** Forgets a process that could not be started; one that starts when nobody waits for it any more is ended. */
  async #starting(cpu: Cpu, pid: number, start: (late: RequestOptions<unknown>) => Promise<unknown>): Promise<void> {
    try {
      await start({ late: (started) => started.then(() => cpu.client.request("process.kill", { pid }, { sure: true })) });
    } catch (thrown) {
      this.#processes.delete(pid);
      cpu.processes.delete(pid);
      throw thrown;
    }
  }

  /**
   * Moves a process with its running VMs to another logical CPU. What fails before the new CPU begins to run it leaves it where it was, and
   * the report says why. Once it stands still it goes on on the other CPU even if the old one's thread dies.
   * @throws HostError when it cannot even begin
   */
  async migrate(options: { pid: number; cpu: number }): Promise<MigrationReport> {
    const { pid } = options;
    const handle = this.hosted(pid);
    const from = this.#around.cpus.of(pid);
    const to = this.#around.cpus.choose(options.cpu);
    if (from === to) throw new HostError("EINVAL", `process ${pid} is on cpu${to.id} already: see 'mkvm ps'`);
    const report = await migrate(handle, from, to, this.#around.prepareMs, {
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
      this.#around.log.write("warn", `process ${pid} ${outcome}: ${failed.step} failed: ${failed.reason}`);
    } else this.#around.log.write("info", `process ${pid} moved from cpu${from.id} to cpu${to.id}, blackout ${blackoutUs} us`);
    if (notReleased !== undefined)
      this.#around.log.write("warn", `process ${pid} goes on on cpu${to.id}; its old CPU did not let go of it: ${notReleased}`);
    return report;
  }

  /** A process told that it ended. */
  ended(cpu: Cpu, event: CpuEvent & { event: "exited" }): void {
    const { pid, exit, engine } = event;
    cpu.processes.delete(pid);
    this.#around.log.write("info", `process ${pid} ended: ${exit.reason}, status ${exit.status}`);
    const process = this.#processes.get(pid);
    if (process) process.statistics = event.statistics;
    process?.end(exit, engine);
    const ended = this.all().filter((process) => process.ended);
    for (const old of ended.slice(0, -endedProcessesKept)) this.#processes.delete(old.pid);
  }

  /** The thread of their CPU is gone, and those that were on it alone with it. */
  cpuGone(cpu: Cpu, message: string): void {
    for (const pid of [...cpu.processes]) {
      const process = this.#processes.get(pid);
      if (process?.outlivesCpu) continue;
      process?.end({ status: 134, reason: "crashed", message });
      cpu.processes.delete(pid);
    }
  }
}

function memoryArgument(args: readonly string[]): number | undefined {
  const at = args.findIndex((word) => word === "--memory" || word.startsWith("--memory="));
  if (at < 0) return undefined;
  const text = args[at] === "--memory" ? args[at + 1] : args[at]!.slice("--memory=".length);
  return text === undefined ? undefined : parseSize(text);
}
