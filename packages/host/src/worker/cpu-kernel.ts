/** The kernel on one logical CPU: what its parts share, and what the control plane asks of it. */
import type { LogicalCpu, MachineDescription, RegionThread } from "@mkvm/hw-x86";
import type { Main, SystemCalls } from "@mkvm/kvm-abi";
import type { Vac } from "@mkvm/vac";
import type { CpuBoot, CpuEvent, ProcessRestore, ProcessSave, ProcessStart } from "../control/protocol.ts";
import type { RequestHandlers } from "../control/requests.ts";
import type { ExitStatus, LogLevel, ModuleUser, MoveLimits, VmStatistics } from "../control/types.ts";
import { DeviceTree } from "../devices/device-tree.ts";
import { HostError, messageOf } from "../errors.ts";
import { ModuleInstances } from "../loader/module-instances.ts";
import { timeStampUs } from "../log/kernel-log.ts";
import { CpuMemory } from "../memory/kernel-memory.ts";
import { BankUserMemory, bankBytesFor } from "../memory/user-memory.ts";
import { Migrations } from "../migration/migrations.ts";
import { ConsoleInput, ConsoleOutput } from "../processes/console.ts";
import { KernelProcess, killedStatus } from "../processes/process.ts";
import { processInfo, usesOf, usesOfComing } from "../processes/process-info.ts";
import { createSystemCalls, processEnds } from "../processes/system-calls.ts";
import type { KernelTask } from "../processes/task.ts";
import { restoreProcess } from "../saved/restore-process.ts";
import { saveProcess } from "../saved/save-process.ts";
import { CpuScheduler } from "../scheduler/scheduler.ts";
import { statisticsOfProcess } from "../statistics/vm-statistics.ts";
import { blockerOfMove } from "../upgrade/check-move.ts";
import { leaveCpuToVms } from "../upgrade/rehearsal.ts";
import { atInstruction } from "./at-instruction.ts";
import { CpuSleep } from "./cpu-sleep.ts";
import { EngineAccounts } from "./engine-accounts.ts";
import { GuestEntries } from "./guest-entries.ts";
import { ModuleMoves } from "./module-moves.ts";
import { RegionPort } from "./region-port.ts";

/** What a CPU's thread runs on: the real hardware and VAC, or a test's. */
export interface Hardware {
  createCpu(boot: CpuBoot, log: (line: string) => void, regions: RegionThread): LogicalCpu;
  createVac(boot: CpuBoot, cpu: LogicalCpu, allocateCpuPages: (count: number) => number): Vac;
}

export class CpuKernel {
  readonly id: number;
  readonly cpu: LogicalCpu;
  readonly vac: Vac;
  readonly scheduler: CpuScheduler;
  readonly memory: CpuMemory;
  readonly tree = new DeviceTree();
  readonly modules: ModuleInstances;
  readonly #processes = new Map<number, KernelProcess>();
  readonly #send: (event: CpuEvent, transfer?: ArrayBuffer[]) => void;
  readonly #startedMs: number;
  readonly moveLimits: MoveLimits;
  readonly machine: Pick<MachineDescription, "vendor" | "cpuModel">;
  #turns: Promise<void> = Promise.resolve();
  readonly #accounts = new EngineAccounts(this);
  readonly #migrations: Migrations;
  readonly #moves = new ModuleMoves((report) => this.#send({ event: "moved", report }));
  readonly #sleep = new CpuSleep(this);
  readonly #entries = new GuestEntries(this);

  constructor(boot: CpuBoot, hardware: Hardware, send: (event: CpuEvent) => void) {
    this.id = boot.cpu;
    this.#send = send;
    this.#startedMs = boot.startedMs;
    this.moveLimits = boot.moveLimits;
    this.machine = { vendor: boot.machine.vendor, cpuModel: boot.machine.cpuModel };
    const regions = new RegionPort(boot.regions);
    this.cpu = hardware.createCpu(boot, (line) => this.log("info", `cpu${boot.cpu}`, line), regions);
    // Nothing of this kernel's sends any
    this.cpu.nmiHandler = () => this.log("warn", "host", `NMI received for unknown reason on cpu${boot.cpu}`);
    this.cpu.sanitizer.keepHostRegisters();
    this.scheduler = new CpuScheduler(this.cpu, boot.machine);
    // Banks 1 to 64 are the CPUs' own; processes' come after them.
    this.memory = new CpuMemory(this.cpu.memory, this.cpu.sanitizer, 1 + boot.cpu);
    this.vac = hardware.createVac(boot, this.cpu, (count) => this.memory.allocateCpuPages(count));
    this.modules = new ModuleInstances(this);
    this.#migrations = new Migrations(this);
  }

  /** The process whose turn it is: whom to blame for what is thrown without a caller. */
  get current(): KernelProcess | undefined {
    return this.scheduler.running as KernelProcess | undefined;
  }

  set current(process: KernelProcess | undefined) {
    this.scheduler.running = process;
  }

  /** The log's time. */
  readonly uptimeUs = (): number => timeStampUs(this.#startedMs);

  log(level: LogLevel, source: string, message: string): void {
    this.#send({ event: "log", timeUs: timeStampUs(this.#startedMs), level, source, message });
  }

  /** Something was thrown that no call waits for. */
  uncaught(thrown: unknown): void {
    if (thrown === processEnds) return;
    const process = this.current;
    if (process && !process.ending) process.crash(process.name, thrown);
    else this.log("err", `cpu${this.id}`, `exception: ${messageOf(thrown)}`);
  }

  /** Starts a thread; resolves with its result. */
  runTask(process: KernelProcess, task: KernelTask, body: (sys: SystemCalls) => Promise<number>): Promise<number> {
    return new Promise((resolve) => {
      const run = async () => {
        this.current = process;
        try {
          resolve(await body(createSystemCalls(process, task)));
        } catch (thrown) {
          if (thrown !== processEnds) process.crash(process.name, thrown);
        }
        process.taskFinished(task);
      };
      if (!process.resumption?.holdsStart(task, run)) this.scheduler.makeRunnable(run, process, task);
    });
  }

  /** The process has given everything back but its bank. */
  processEnded(process: KernelProcess, exit: ExitStatus, statistics: VmStatistics[]): void {
    const engine = this.#accounts.report(process);
    this.#forget(process);
    for (const name of process.previous) this.released(name);
    this.#send({ event: "exited", pid: process.pid, exit, statistics, engine });
  }

  /** The process is another CPU's now, with its bank. */
  departed(process: KernelProcess): void {
    this.#forget(process);
    for (const name of this.modules.names()) this.released(name);
  }

  #forget(process: KernelProcess): void {
    this.#accounts.close(process);
    this.#processes.delete(process.pid);
    for (const cancel of process.atEnd) cancel();
    this.memory.forget(process.bank);
    this.cpu.memory.releaseBank(process.bank);
    if (this.current === process) this.current = undefined;
  }

  /** Somebody let go of a module: one that drains may be without users now. */
  released(name: string): void {
    if (this.modules.get(name)?.draining && this.#usersOf(name).length === 0) this.#send({ event: "module.idle", name });
  }

  /** Runs `work` when earlier such work has ended. */
  takeTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#turns.then(work);
    this.#turns = turn.catch(() => {});
    return turn;
  }

  /**
   * Runs a piece of work on a VM that runs, in a turn of its own: not while another VM stands still, and after it VMs have the CPU for as
   * long as it took, however many moves wait. What `work` promises is not part of the turn.
   */
  takePiece<Result>(work: () => Result): Promise<Awaited<Result>> {
    return new Promise((resolve, reject) => {
      void this.takeTurn(async () => {
        const began = performance.now();
        try {
          const result = work();
          void Promise.resolve(result).then(resolve, reject);
        } catch (thrown) {
          reject(thrown);
        }
        await leaveCpuToVms(performance.now() - began, 1);
      });
    });
  }

  readonly handlers: RequestHandlers = {
    "module.describe": ({ url }) => this.modules.describe(url),
    "module.load": ({ name, url, parameters }) => this.modules.load(name, url, parameters),
    "module.users": ({ name }) => this.#usersOf(name),
    "module.seize": ({ name }) => {
      const users = this.#usersOf(name);
      const loaded = this.modules.get(name);
      if (users.length === 0 && loaded) loaded.seized = true;
      return users;
    },
    "module.unseize": ({ name }) => {
      const loaded = this.modules.get(name);
      if (loaded) loaded.seized = false;
      return null;
    },
    "module.drain": ({ name, draining }) => {
      const loaded = this.modules.get(name);
      if (loaded) loaded.draining = draining;
      return null;
    },
    "module.unload": ({ name }) => {
      this.modules.unload(name);
      return null;
    },
    "devices.set": ({ entries }) => {
      this.tree.assign(entries);
      return null;
    },
    "process.start": (start) => this.#start(start),
    "process.kill": ({ pid }) => {
      this.#process(pid).end({ status: killedStatus, reason: "killed" });
      return null;
    },
    "process.input": ({ pid, bytes }) => {
      const input = this.#processes.get(pid)?.input;
      if (bytes) input?.push(bytes);
      else input?.end();
      return null;
    },
    "process.mount": ({ pid, mount }) => {
      this.#process(pid).mounts.mount(mount.source, mount.target);
      return null;
    },
    "process.engine": ({ pid }) => this.#accounts.report(this.#process(pid)),
    "process.list": () => [...this.#processes.values()].map(processInfo),
    "process.statistics": ({ pid }) => statisticsOfProcess(this.#process(pid)),
    "process.save": async (save) => {
      const process = this.#process(save.pid);
      await process.takesPart(this.moveLimits.freezeMs);
      return saveProcess(process, this.machine.vendor, save);
    },
    "process.restore": (restore) => this.#restore(restore),
    "move.to": ({ pid, to, at, finalise }) => {
      const process = this.#process(pid);
      return at === undefined ? this.#moves.to(process, to, finalise) : this.#moves.toAt(process, to, at, finalise);
    },
    "move.check": ({ pid, to }) => blockerOfMove(this.#process(pid), to),
    "move.back": ({ pid }) => this.#moves.back(this.#process(pid)),
    "move.finalise": ({ pid }) => this.#moves.finalise(this.#process(pid)),
    "leave.offer": ({ pid, to }) => this.#migrations.offer(this.#process(pid), to),
    "leave.ends": ({ pid }) => this.#migrations.ends(pid),
    "leave.still": ({ pid }) => this.#migrations.still(pid),
    "leave.go": ({ pid }) => this.#migrations.go(pid),
    "leave.stay": ({ pid }) => this.#migrations.stay(pid),
    "leave.free": ({ pid, reserved }) => this.#migrations.free(this.#processes.get(pid), reserved),
    "arrive.prepare": ({ program, ...offer }) => {
      if (this.#sleep.begun) throw new HostError("EAGAIN", `cpu${this.id} is losing its power`);
      this.#accounts.programs.add(program);
      return this.#migrations.prepare(offer, this.#import(program, offer.name));
    },
    "arrive.await": ({ pid }) => this.#migrations.awaitState(pid),
    "arrive.restore": ({ pid, image }) => this.#migrations.restore(pid, image),
    "arrive.abort": ({ pid }) => this.#migrations.abort(pid),
    "arrive.left": ({ pid, left }) => this.#migrations.left(pid, left),
    "arrive.go": ({ pid }) =>
      new Promise((resolve) => {
        const { process, main } = this.#migrations.arrive(pid);
        const runs = () => {
          this.#entries.forget(process);
          if (this.scheduler.favoured === process) this.scheduler.favoured = undefined;
          resolve(performance.timeOrigin + performance.now());
        };
        this.#entries.first(process, runs);
        this.scheduler.favoured = process;
        process.atEnd.add(runs);
        this.#run(process, main, undefined);
        // A VM whose vCPUs do not run has come too: its threads wait for something else
        this.scheduler.whenAtRest(process, runs);
      }),
    "cpu.ping": () => null,
    "cpu.resources": () => ({
      timers: this.modules.armedTimers(),
      processes: [...this.#processes.values()].map((process) => ({
        pid: process.pid,
        modulePages: process.memory.pages.kernelPages,
        moduleFiles: [...process.moduleFiles()].length,
      })),
    }),
    "cpu.suspend": async () => {
      const [coming] = this.#migrations.arriving();
      if (coming) throw new HostError("EBUSY", `process ${coming.pid} is moving to cpu${this.id}: wait for that to end`);
      await this.#sleep.suspend([...this.#processes.values()].filter((process) => !process.ending));
      return null;
    },
    "cpu.resume": () => {
      this.#sleep.resume();
      return null;
    },
    "cpu.stop": () => {
      this.#sleep.resume();
      for (const process of this.#processes.values()) process.end({ status: killedStatus, reason: "killed" });
      return null;
    },
  };

  #process(pid: number): KernelProcess {
    const process = this.#processes.get(pid);
    if (!process) throw new HostError("ESRCH", `no process ${pid}: see 'mkvm ps'`);
    return process;
  }

  /** The program's entry. */
  async #import(program: string, name: string): Promise<Main> {
    const namespace: { main?: unknown } = await import(program).catch((thrown) => {
      throw new HostError("EIO", `program ${name} cannot be imported: ${messageOf(thrown)}`);
    });
    if (typeof namespace.main !== "function") throw new HostError("EINVAL", `program ${name} exports no main function`);
    return namespace.main as Main;
  }

  #run(process: KernelProcess, main: Main, save: ProcessSave | undefined): void {
    this.#processes.set(process.pid, process);
    if (save?.at !== undefined) {
      atInstruction(process, save.at, () => saveProcess(process, this.machine.vendor, save)).catch((thrown) =>
        this.log("err", "host", `process ${process.pid} was to be saved at instruction ${save.at}: ${messageOf(thrown)}`),
      );
    }
    this.runTask(process, process.createTask(process.name), (sys) => main(sys, process.args)).then((status) => {
      process.end({ status: status & 0xff, reason: "exited" });
    });
    process.begins();
  }

  outputOf(pid: number): ConsoleOutput {
    return new ConsoleOutput((fd, bytes) => this.#send({ event: "output", pid, fd, bytes }));
  }

  get hasProcesses(): boolean {
    return this.#processes.size > 0;
  }

  async #restore(restore: ProcessRestore): Promise<{ module: string }> {
    const main = await this.#import(restore.program, "of the saved process");
    // The guest's timers are armed before it has a thread to run on: no time may pass in between
    const releaseIdle = this.scheduler.holdIdle();
    let restored: Awaited<ReturnType<typeof restoreProcess>>;
    try {
      restored = await restoreProcess(this, restore);
      this.#run(restored.process, main, restore.save);
    } finally {
      releaseIdle();
    }
    const { process, module } = restored;
    this.#accounts.programs.add(restore.program);
    this.log("info", "host", `process ${process.pid} (${process.name}) goes on from ${restore.path} on ${module}`);
    return { module };
  }

  async #start(start: ProcessStart): Promise<null> {
    const main = await this.#import(start.program, start.name);
    let memory: BankUserMemory;
    try {
      memory = new BankUserMemory(this.cpu.memory.createBank(start.bank, bankBytesFor(start.memoryBytes)));
    } catch (thrown) {
      throw new HostError(
        "ENOMEM",
        `no room for ${start.memoryBytes} bytes of memory: ${messageOf(thrown)}; use less with --memory`,
      );
    }
    const process = new KernelProcess({
      pid: start.pid,
      name: start.name,
      args: start.args,
      memory,
      mounts: this.tree.createNamespace(),
      input: new ConsoleInput(),
      output: this.outputOf(start.pid),
      kernel: this,
    });
    try {
      for (const mount of start.mounts) process.mounts.mount(mount.source, mount.target);
    } catch (thrown) {
      this.cpu.memory.releaseBank(start.bank);
      throw thrown;
    }
    this.memory.adopt(process.bank, memory.pages);
    this.#accounts.programs.add(start.program);
    if (start.profile) this.#accounts.open(process);
    for (const { at, to } of start.moves) this.#moves.toAt(process, to, at, false).catch(() => {});
    this.#run(process, main, start.save);
    return null;
  }

  #usersOf(name: string): ModuleUser[] {
    const coming = [...this.#migrations.arriving()].flatMap((process) => [...usesOfComing(name, process)]);
    return [...coming, ...[...this.#processes.values()].flatMap((process) => [...usesOf(name, process)])];
  }
}
