/**
 * The CPU that a process leaves: it offers the VM while that runs, stops it, and lets go of it once the other CPU runs it. Until then
 * `stay` takes everything back.
 */
import type { File } from "@mkvm/kvm-abi";
import type { MigrationImage, MigrationOffer } from "../control/protocol.ts";
import { HostError, stackOf } from "../errors.ts";
import { pageBytes } from "../memory/page-allocator.ts";
import type { KernelProcess } from "../processes/process.ts";
import { standingStill } from "../processes/standing-still.ts";
import { blockerOfSave, takeImage } from "../saved/take-image.ts";
import { describeProblem } from "../upgrade/answers.ts";
import { moduleOfVms } from "../upgrade/move.ts";
import { featureLevel } from "../upgrade/sections.ts";

/** Pages set aside for the other CPU's tables beside twice what there is here. */
const sparePages = 256;

export class Leaving {
  readonly process: KernelProcess;
  readonly #vendor: "intel" | "amd";
  /** VMs that the other CPU prepares for. */
  #offered: readonly File[] = [];
  /** Ends the standstill, with the VM where it was. */
  #thaw: (() => void) | undefined;
  #releaseIdle: () => void = () => {};
  /** True when the process begins to end before it has gone, false when it has gone or stays. */
  readonly ends: Promise<boolean>;
  readonly #over: () => void;

  /** @throws HostError when the process cannot leave */
  constructor(process: KernelProcess, to: string, vendor: "intel" | "amd") {
    this.process = process;
    this.#vendor = vendor;
    const refuse = (why: string) =>
      new HostError("EBUSY", `process ${process.pid} (${process.name}) cannot move to ${to}: ${why}`);
    if (process.standstill) throw refuse(`it is ${process.standstill.doing}`);
    const blocker = blockerOfSave(process);
    if (blocker !== null) throw refuse(blocker);
    const done = Promise.withResolvers<void>();
    const ends = Promise.withResolvers<boolean>();
    const ending = () => ends.resolve(true);
    process.atEnding.add(ending);
    this.ends = ends.promise;
    this.#over = () => {
      process.atEnding.delete(ending);
      ends.resolve(false);
      done.resolve();
    };
    process.standstill = { doing: `moving to ${to}`, done: done.promise };
  }

  offer(): MigrationOffer {
    const { process } = this;
    const { kernel, memory } = process;
    const module = moduleOfVms(process);
    const { transfer } = module.instance;
    const wayBack = process.previous.flatMap((name) => kernel.modules.get(name) ?? []);
    const level = featureLevel([module, ...wayBack].map((each) => each.instance.transfer.receives));
    kernel.current = process;
    this.#offered = this.#vmFiles();
    const descriptions = this.#offered.map((file) => {
      const description = transfer.describe(file, level);
      const problem = describeProblem(description);
      if (problem) throw new HostError("EIO", `${module.name}: ${problem}`);
      return description;
    });
    const wanted = 2 * memory.pages.kernelPages + sparePages;
    const offset = memory.pages.allocateKernel(wanted, 1);
    if (offset === undefined)
      throw new HostError("ENOMEM", `process ${process.pid} has not ${wanted * pageBytes} bytes free for tables on two CPUs`);
    return {
      pid: process.pid,
      name: process.name,
      args: process.args,
      startedMs: process.startedMs,
      bank: process.bank,
      memory: memory.bank.memory,
      pages: memory.pages.shared,
      reserved: { offset, count: wanted },
      mounts: process.mounts.list(),
      module: module.name,
      previous: process.previous,
      finalisedOn: process.finalisedOn,
      moves: process.moves,
      descriptions,
    };
  }

  /** Resolves when every thread stands still, with the process's image; it stands until `stay` or `go`. */
  still(): Promise<MigrationImage> {
    const { process } = this;
    const stoppedMs = performance.timeOrigin + performance.now();
    this.#releaseIdle = process.kernel.scheduler.holdIdle();
    return new Promise((resolve, reject) => {
      standingStill(process, () => {
        this.#refuseOtherVms();
        const image = takeImage(process, process.args, this.#vendor);
        // The other CPU may run it before this one has let go
        process.kernel.cpu.memory.leaveBank(process.bank);
        // Should this thread die from now on, the other CPU goes on from here: what was written has to be out
        process.output.flush();
        resolve({ image, stoppedMs });
        return new Promise<void>((thaw) => {
          this.#thaw = thaw;
        });
      })
        .catch(reject)
        .finally(() => this.#letIdle());
    });
  }

  /** Under icount the CPU's idle time may pass again. */
  #letIdle(): void {
    this.#releaseIdle();
    this.#releaseIdle = () => {};
  }

  /** The other CPU has prepared for those that there were. */
  #refuseOtherVms(): void {
    const now = this.#vmFiles();
    if (now.length !== this.#offered.length || now.some((file) => !this.#offered.includes(file)))
      throw new HostError("EBUSY", "a VM was opened or closed meanwhile: move it again");
  }

  /** Lets go of the process, which the other CPU runs. True: it was to end here. */
  go(): boolean {
    const { process } = this;
    const { kernel } = process;
    const ending = process.ending !== undefined;
    const { transfer } = moduleOfVms(process).instance;
    kernel.current = process;
    for (const file of this.#vmFiles()) {
      try {
        transfer.releaseMoved(file)?.();
      } catch (thrown) {
        kernel.log("err", "host", `exception while letting go of a VM that moves to another CPU: ${stackOf(thrown)}`);
      }
    }
    process.depart();
    process.standstill = undefined;
    kernel.departed(process);
    // The standstill itself never ends here: the threads go on elsewhere
    this.#letIdle();
    this.#over();
    return ending;
  }

  /**
   * The process stays, as if nothing had happened, also when it does not stand still yet. Pages set aside stay so until the other CPU
   * writes to them no more.
   */
  stay(): void {
    const { process } = this;
    process.standstill = undefined;
    if (this.#thaw) this.#thaw();
    else process.cancelFreeze();
    this.#over();
    process.settle();
  }

  #vmFiles(): File[] {
    const { transfer } = moduleOfVms(this.process).instance;
    return [...this.process.moduleFiles()].map(([, file]) => file).filter((file) => transfer.roleOf(file).kind === "vm");
  }
}
