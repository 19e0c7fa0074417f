/**
 * One move of a process's VMs from one module to another:
 *
 *   check -> prepare (VM runs) -> freeze -> save -> restore -> verify -> commit -> thaw
 *
 * From the moment the last vCPU stands still to the thaw everything is synchronous. Whatever fails before commit ends with
 * the VM on its old module, as it was, and the report says which step and why.
 */
import type { FileOperations, FileRole, IncomingVm, Section, SectionSupport, VmDescription } from "@mkvm/kvm-abi";
import type { MoveLimits, MoveReport, MoveStep } from "../control/types.ts";
import type { ModuleFile } from "../devices/open-file.ts";
import { HostError, messageOf, stackOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { alarm } from "../patience.ts";
import type { KernelProcess } from "../processes/process.ts";
import { commitProblem, describeProblem, restoreProblem, sectionsProblem } from "./answers.ts";
import { waitForCalm } from "./calm.ts";
import { makeRoom } from "./collection.ts";
import { prepareWithin } from "./prepare.ts";
import { isWarm, leaveCpuToVms, type RehearsalProblem, rehearseOnce, wantsAnotherRound } from "./rehearsal.ts";
import { featureLevel, firstDifference, firstUnknownSection, totalBytes } from "./sections.ts";
import { StepRecorder } from "./step-recorder.ts";

/** When a VM of this thread's CPU last came to the end of its turn. */
let lastMoveMs = Number.NEGATIVE_INFINITY;
/** After this long its report is out. */
const reportMs = 2;

/** Many VMs move, one after the other. */
function hasJustMoved(): boolean {
  return performance.now() - lastMoveMs < reportMs;
}

class MoveFailure extends Error {
  /** The step that it is of, when that is not the one in which it came up. */
  readonly step: MoveStep | undefined;

  constructor(message: string, step?: MoveStep) {
    super(message);
    this.step = step;
  }
}

/** @throws MoveFailure that names the module, when there is a problem */
function refuseIf(problem: string | undefined, module: string): void {
  if (problem) throw new MoveFailure(`${module}: ${problem}`);
}

interface MovingVm {
  file: ModuleFile;
  incoming: IncomingVm;
  /** For the rehearsal just before the freeze; thrown away after it. */
  spare: IncomingVm | undefined;
  sections: readonly Section[];
}

export interface MoveOptions {
  to: string;
  /** The vCPUs stand still from the start, and prepare runs meanwhile: for moves at an exact instruction. */
  stopFirst: boolean;
  finalise: boolean;
}

/** The module that the process's VMs are on. Throws when there is no one such module. */
export function moduleOfVms(process: KernelProcess): LoadedInstance {
  const owners = new Set<string>();
  for (const [, file] of process.moduleFiles()) {
    if (process.kernel.modules.get(file.operations.owner)?.instance.transfer.roleOf(file).kind === "vm")
      owners.add(file.operations.owner);
  }
  const [owner, other] = owners;
  if (owner === undefined) throw new HostError("EINVAL", `process ${process.pid} (${process.name}) has no VM: see 'mkvm ps'`);
  if (other !== undefined)
    throw new HostError(
      "EINVAL",
      `process ${process.pid} has VMs on ${[...owners].join(" and ")}: only VMs of one module move together`,
    );
  return process.kernel.modules.get(owner)!;
}

/**
 * Moves the VMs of a process. Never rejects for a reason that lies in the move: the report tells.
 * @throws HostError when it cannot even begin: no VM, no such module, already there, a move going on
 */
export function moveVms(process: KernelProcess, options: MoveOptions): Promise<MoveReport> {
  const { modules } = process.kernel;
  const from = moduleOfVms(process);
  const to = modules.get(options.to);
  if (!to || to.seized)
    throw new HostError("ENOENT", `no module ${options.to} is loaded: load it with 'mkvm insmod', see 'mkvm lsmod'`);
  if (from === to) throw new HostError("EINVAL", `the VM of process ${process.pid} is on ${to.name} already`);
  if (process.standstill)
    throw new HostError("EBUSY", `process ${process.pid} is ${process.standstill.doing}: wait for that to end`);
  if (process.ending) throw new HostError("ESRCH", `process ${process.pid} is ending`);
  const fault = faultOfVms(process, from);
  if (fault) throw new HostError("EIO", `the VM of process ${process.pid} cannot move: ${fault}`);
  const done = new Move(process, from, to, options).run();
  process.standstill = { doing: `moving to ${to.name}`, module: to.name, done };
  return done.finally(() => {
    process.standstill = undefined;
    process.settle();
  });
}

/** State that a module threw over is not state to move: undefined when there is none such. */
export function faultOfVms(process: KernelProcess, module: LoadedInstance): string | undefined {
  for (const [, file] of process.moduleFiles()) {
    if (file.operations.owner === module.name && file.fault !== undefined)
      return `${module.name} failed while it ran it (${file.fault}), and its state is not to be trusted`;
  }
  return undefined;
}

class Move {
  readonly #process: KernelProcess;
  readonly #from: LoadedInstance;
  readonly #to: LoadedInstance;
  readonly #options: MoveOptions;
  readonly #limits: MoveLimits;
  readonly #steps = new StepRecorder();
  readonly #startedUs: number;
  /** Sections that cross: what the new module takes and, until the move is final, all that the VM can go back to take too. */
  readonly #level: readonly SectionSupport[];
  #vms: MovingVm[] = [];
  /** Frees what the old module still holds. */
  readonly #toFree: (() => void)[] = [];
  #committed = false;
  #failed: { step: MoveStep; reason: string } | undefined;
  #stateBytes = 0;
  #retired = 0;
  /** On the piece of work that goes on, and those that belong to it. */
  #workedMs = 0;

  constructor(process: KernelProcess, from: LoadedInstance, to: LoadedInstance, options: MoveOptions) {
    this.#process = process;
    this.#from = from;
    this.#to = to;
    this.#options = options;
    const { modules, moveLimits, uptimeUs } = process.kernel;
    this.#limits = moveLimits;
    this.#startedUs = uptimeUs();
    const wayBack = options.finalise ? [] : [from.name, ...process.previous];
    this.#level = featureLevel(
      [to, ...wayBack.flatMap((name) => modules.get(name) ?? [])].map((module) => module.instance.transfer.receives),
    );
  }

  async run(): Promise<MoveReport> {
    const releaseIdle = this.#process.kernel.scheduler.holdIdle();
    try {
      if (this.#options.stopFirst) {
        await this.#freeze(async () => {
          await this.#prepare();
          this.#switch();
        });
      } else {
        await this.#prepare();
        // VMs of one CPU stop one after the other: none stands still while another is being switched.
        await this.#process.kernel.takeTurn(() => this.#rehearsedFreeze());
      }
    } catch (thrown) {
      this.#fail(thrown);
    } finally {
      this.#clearAway();
      releaseIdle();
    }
    this.#steps.end();
    return this.#report();
  }

  async #prepare(): Promise<void> {
    const { transfer } = this.#to.instance;
    for (const file of this.#vmFiles()) {
      this.#steps.begin("check");
      const began = performance.now();
      const description = this.#from.instance.transfer.describe(file, this.#level);
      refuseIf(describeProblem(description), this.#from.name);
      const unknown =
        firstUnknownSection(description, transfer.receives, this.#to.name) ??
        firstUnknownSection(description, this.#level, "a module that it could roll back to");
      if (unknown) throw new MoveFailure(unknown);
      this.#steps.begin("prepare");
      if (!this.#options.stopFirst) await leaveCpuToVms(performance.now() - began);
      if (!this.#options.stopFirst && !isWarm(this.#from, this.#to)) await this.#warmUp(file, description);
      const vm: MovingVm = { file, incoming: await this.#incoming(description), spare: undefined, sections: [] };
      this.#vms.push(vm);
      if (!this.#options.stopFirst) vm.spare = await this.#incoming(description);
    }
  }

  /** A VM made ready on the new side, after which the one that runs has the CPU for a while. */
  async #incoming(description: VmDescription): Promise<IncomingVm> {
    this.#workedMs = 0;
    const incoming = await this.#piece(() => prepareWithin(this.#limits.prepareMs, this.#to, this.#process, description));
    if (typeof incoming === "string") throw new MoveFailure(incoming);
    if (this.#options.stopFirst) return incoming;
    await leaveCpuToVms(this.#workedMs);
    if (!this.#process.ending) return incoming;
    this.#abort(incoming);
    throw new MoveFailure("the process ended");
  }

  /** Moves the VM into others that are thrown away, until that is as fast as it gets, giving way in between. */
  async #warmUp(file: ModuleFile, description: VmDescription): Promise<void> {
    const timesMs: number[] = [];
    let spare: IncomingVm | undefined;
    try {
      do {
        const prepared = await this.#incoming(description);
        spare = prepared;
        this.#workedMs = 0;
        const outcome = await this.#piece(() => this.#rehearseOnce(file, prepared));
        if (outcome === undefined) return;
        if (typeof outcome !== "number") throw this.#failureOf(outcome);
        timesMs.push(outcome);
        spare = undefined;
        this.#abort(prepared);
        await leaveCpuToVms(this.#workedMs);
      } while (wantsAnotherRound(this.#from, this.#to, timesMs));
    } finally {
      if (spare) this.#abort(spare);
    }
  }

  /**
   * The last rehearsal, and the move at once: what it needs is in the processor's caches then. After as long as a VM runs between
   * two pieces of work there is nothing of it left in them, and everything takes three to five times as long.
   */
  async #rehearsedFreeze(): Promise<void> {
    try {
      const began = performance.now();
      const collected = makeRoom();
      // As long as between two pieces of many moves, which wait for this turn. What a move just before this one has told goes out meanwhile: the
      // main thread, which it wakes, would take the processor from a VM that stands still
      if (collected || hasJustMoved()) await leaveCpuToVms(performance.now() - began, 1);
      waitForCalm();
      if (this.#process.ending) throw new MoveFailure("the process ended");
      for (const { file, spare } of this.#vms) {
        const outcome = spare && this.#rehearseOnce(file, spare);
        if (outcome !== undefined && typeof outcome !== "number") throw this.#failureOf(outcome);
      }
      await this.#freeze(() => this.#switch());
    } finally {
      lastMoveMs = performance.now();
      this.#clearAway();
    }
  }

  /** What nobody waits for, when the VM runs: in the turn of this move, so that no other VM stands still meanwhile. */
  #clearAway(): void {
    for (const free of this.#toFree.splice(0)) this.#lettingGo(free);
    for (const vm of this.#vms) {
      if (vm.spare) this.#abort(vm.spare);
      vm.spare = undefined;
    }
  }

  /** Undefined: the VM is not there any more, or is broken; the move itself finds out, and says so. */
  #rehearseOnce(file: ModuleFile, spare: IncomingVm): number | RehearsalProblem | undefined {
    if (this.#process.ending) throw new MoveFailure("the process ended");
    if (!this.#vmFiles().includes(file) || faultOfVms(this.#process, this.#from)) return undefined;
    this.#process.kernel.current = this.#process;
    return rehearseOnce(this.#from, this.#to, file, this.#level, spare);
  }

  /** A piece of work on a VM that runs, among those of other moves on its CPU; of one that stands still already, at once. */
  #piece<Result>(work: () => Result): Promise<Awaited<Result>> {
    const timed = (): Result => {
      const began = performance.now();
      try {
        return work();
      } finally {
        this.#workedMs += performance.now() - began;
      }
    };
    return this.#options.stopFirst ? Promise.resolve(timed()) : this.#process.kernel.takePiece(timed);
  }

  #failureOf({ step, reason, thrown }: RehearsalProblem): MoveFailure {
    if (thrown !== undefined)
      this.#process.kernel.log("err", "host", `exception in the ${step} step of a move: ${stackOf(thrown)}`);
    return new MoveFailure(reason, step);
  }

  async #freeze(onStill: () => void | Promise<void>): Promise<void> {
    if (this.#process.ending) throw new MoveFailure("the process ended");
    this.#steps.begin("freeze");
    this.#steps.stop();
    let begun = false;
    const { freezeMs } = this.#limits;
    const inTime = alarm(freezeMs, () => {
      const stuck = this.#process.tasksInside().map((task) => `${task.tid} (${task.name})`);
      if (!this.#process.cancelFreeze()) return;
      const inside = stuck.join(", ");
      this.#fail(new MoveFailure(`thread ${inside} did not come out of ${this.#from.name} within ${freezeMs} ms`));
    });
    // What fails in here is handled before the thaw, so that nothing runs against a half-undone move.
    const guarded = (): void | Promise<void> => {
      begun = true;
      inTime();
      this.#retired = this.#process.kernel.cpu.retiredInstructions() - this.#process.startRetired;
      try {
        const result = onStill();
        if (!result) return this.#beforeThaw();
        return result.catch((thrown) => this.#fail(thrown)).then(() => this.#beforeThaw());
      } catch (thrown) {
        this.#fail(thrown);
        return this.#beforeThaw();
      }
    };
    await this.#process.freeze(guarded);
    inTime();
    if (!begun && !this.#failed) throw new MoveFailure("the process ended");
  }

  /** Save, restore, verify, commit: the process stands still, nothing in here waits. */
  #switch(): void {
    const from = this.#from.instance.transfer;
    this.#process.kernel.current = this.#process;
    const still = this.#vmFiles();
    if (this.#process.ending) throw new MoveFailure("the process ended");
    if (still.length !== this.#vms.length || this.#vms.some((vm) => !still.includes(vm.file))) {
      throw new MoveFailure("a VM was opened or closed meanwhile: move it again");
    }
    const fault = faultOfVms(this.#process, this.#from);
    if (fault) throw new MoveFailure(fault);
    this.#steps.begin("save");
    for (const vm of this.#vms) {
      vm.sections = from.save(vm.file, this.#level);
      refuseIf(sectionsProblem("save", vm.sections), this.#from.name);
      this.#stateBytes += totalBytes(vm.sections);
    }
    this.#steps.begin("restore");
    for (const vm of this.#vms) {
      const problem = vm.incoming.restore(vm.sections);
      refuseIf(restoreProblem(problem), this.#to.name);
      if (problem !== undefined) throw new MoveFailure(problem);
    }
    this.#steps.begin("verify");
    for (const vm of this.#vms) {
      const again = vm.incoming.save();
      refuseIf(sectionsProblem("save", again), this.#to.name);
      const difference = firstDifference(vm.sections, again);
      if (difference) throw new MoveFailure(`${this.#to.name} restored another state: ${difference}`);
    }
    this.#steps.begin("commit");
    this.#commit();
  }

  #commit(): void {
    const from = this.#from.instance.transfer;
    const change: { file: ModuleFile; operations: FileOperations; privateData: unknown }[] = [];
    const take = (file: ModuleFile, role: FileRole, incoming: IncomingVm): void => {
      const answer = incoming.commit(role);
      const problem = commitProblem(answer, this.#to.name, file.name);
      if (problem) throw new MoveFailure(problem);
      change.push({ file, operations: answer.operations, privateData: answer.privateData });
    };
    const unmoved = new Set<ModuleFile>();
    for (const [, file] of this.#process.moduleFiles()) if (file.operations.owner === this.#from.name) unmoved.add(file);
    for (const vm of this.#vms) {
      for (const file of from.filesOf(vm.file)) {
        unmoved.delete(file as ModuleFile);
        take(file as ModuleFile, from.roleOf(file), vm.incoming);
      }
    }
    for (const file of unmoved) {
      const role = from.roleOf(file);
      if (role.kind !== "system") throw new MoveFailure(`open file ${file.name} belongs to no VM that moves`);
      take(file, role, this.#vms[0]!.incoming);
    }
    // Nothing can fail from here on. The old module lets go while the files still show it its own state.
    this.#committed = true;
    for (const vm of this.#vms) {
      this.#lettingGo(() => {
        const free = from.releaseMoved(vm.file);
        if (typeof free === "function") this.#toFree.push(free);
      });
    }
    for (const { file, operations, privateData } of change) {
      file.operations = operations;
      file.privateData = privateData;
    }
    const process = this.#process;
    if (process.previous.at(-1) === this.#to.name) process.previous.pop();
    else process.previous.push(this.#from.name);
    if (this.#options.finalise) {
      process.previous = [];
      process.finalisedOn = this.#to.name;
    }
    process.moves++;
  }

  /** The VM is the new module's, whatever becomes of what the old one holds of it. */
  #lettingGo(work: () => void): void {
    try {
      work();
    } catch (thrown) {
      this.#process.kernel.log(
        "err",
        this.#from.name,
        `exception while letting go of a VM that moves away: ${stackOf(thrown)}`,
      );
    }
  }

  #beforeThaw(): void {
    this.#steps.begin("thaw");
    this.#steps.resume();
  }

  /** Notes why, and takes back what the new module was given. */
  #fail(thrown: unknown): void {
    if (this.#failed || this.#committed) return;
    const step = (thrown instanceof MoveFailure ? thrown.step : undefined) ?? this.#steps.step;
    this.#failed = { step, reason: messageOf(thrown) };
    if (!(thrown instanceof MoveFailure)) {
      this.#process.kernel.log("err", "host", `exception in the ${this.#steps.step} step of a move: ${stackOf(thrown)}`);
    }
    for (const vm of this.#vms) this.#abort(vm.incoming);
  }

  #abort(incoming: IncomingVm): void {
    try {
      incoming.abort();
    } catch (error) {
      this.#process.kernel.log("err", this.#to.name, `exception while aborting a move: ${stackOf(error)}`);
    }
  }

  #vmFiles(): ModuleFile[] {
    const { transfer } = this.#from.instance;
    const files: ModuleFile[] = [];
    for (const [, file] of this.#process.moduleFiles()) {
      if (file.operations.owner === this.#from.name && transfer.roleOf(file).kind === "vm") files.push(file);
    }
    return files;
  }

  #report(): MoveReport {
    const report: MoveReport = {
      pid: this.#process.pid,
      from: this.#from.name,
      to: this.#to.name,
      moved: this.#committed,
      finalised: this.#process.previous.length === 0,
      startedUs: this.#startedUs,
      steps: this.#steps.steps,
      blackoutUs: this.#steps.blackoutUs,
      stateBytes: this.#stateBytes,
      retiredInstructions: this.#retired,
    };
    if (this.#failed) report.failed = this.#failed;
    return report;
  }
}
