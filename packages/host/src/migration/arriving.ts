/** The CPU that a process comes to: it prepares while the process runs elsewhere, takes its state, and goes on with it. */
import { type IncomingVm, type Main, type Section, VcpuRunPage } from "@mkvm/kvm-abi";
import type { LeftBehind, MigrationOffer } from "../control/protocol.ts";
import { HostError, stackOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { PageAllocator, pageBytes } from "../memory/page-allocator.ts";
import { BankUserMemory } from "../memory/user-memory.ts";
import { alarm, within } from "../patience.ts";
import { ConsoleInput } from "../processes/console.ts";
import { KernelProcess } from "../processes/process.ts";
import type { ProcessImage } from "../saved/process-image.ts";
import { rebaseSections } from "../saved/rebase.ts";
import { blockerOfResume, installFiles, restoreVerified } from "../saved/resume-process.ts";
import { runPageOffset } from "../saved/take-image.ts";
import { prepareWithin } from "../upgrade/prepare.ts";
import type { CpuKernel } from "../worker/cpu-kernel.ts";

/** For the program to be imported, milliseconds. */
const importMs = 30_000;
/** The longest that this CPU's VMs wait for one that comes: what is not there by then comes among their turns. */
const awaitMs = 20;

export class Arriving {
  readonly process: KernelProcess;
  readonly #kernel: CpuKernel;
  readonly #offer: MigrationOffer;
  readonly #module: LoadedInstance;
  readonly #incoming: IncomingVm[] = [];
  #main: Main | undefined;
  #image: ProcessImage | undefined;
  /** Under icount no idle time may pass once timers are armed and nobody is there yet to run. */
  #releaseIdle: () => void = () => {};
  /** Lets this CPU's VMs go on, which wait for the one that comes. */
  #letOthersRun: () => void = () => {};
  /** The process does not come; its module may still be preparing for it. */
  givenUp = false;

  /** @throws HostError when there is no such module; nothing is left behind then */
  constructor(kernel: CpuKernel, offer: MigrationOffer) {
    const module = kernel.modules.get(offer.module);
    if (!module || module.seized) throw new HostError("ENOENT", `no module ${offer.module} is loaded on cpu${kernel.id}`);
    this.#kernel = kernel;
    this.#offer = offer;
    this.#module = module;
    const bank = kernel.cpu.memory.attachBank(offer.bank, offer.memory);
    const { offset, count } = offer.reserved;
    const memory = new BankUserMemory(bank, PageAllocator.within(bank.u8, bank.firstFreeOffset, offset, count));
    kernel.memory.adopt(bank.id, memory.pages);
    this.process = new KernelProcess({
      pid: offer.pid,
      name: offer.name,
      args: offer.args,
      memory,
      mounts: kernel.tree.createNamespace(),
      input: new ConsoleInput(),
      output: kernel.outputOf(offer.pid),
      kernel,
    });
    this.process.mounts.assign(offer.mounts);
    this.process.startedMs = offer.startedMs;
    this.process.previous = [...offer.previous];
    this.process.finalisedOn = offer.finalisedOn;
    this.process.moves = offer.moves;
    this.process.arrivesOn = offer.module;
  }

  /** @throws HostError that says why the process cannot come here, when its program or its module does not get ready */
  async prepare(main: Promise<Main>): Promise<void> {
    this.#main = await within(main, importMs, () => {
      throw new HostError("ETIMEDOUT", `its program was not imported within ${importMs} ms`);
    });
    for (const description of this.#offer.descriptions) {
      if (this.givenUp) throw new HostError("ECANCELED", "the move was given up");
      const limitMs = this.#kernel.moveLimits.prepareMs;
      const incoming = await prepareWithin(limitMs, this.#module, this.process, description);
      if (typeof incoming === "string") throw new HostError("EINVAL", incoming);
      this.#incoming.push(incoming);
    }
  }

  /**
   * The process is about to stand still elsewhere, until it runs here. VMs of this CPU have no turns meanwhile: a thread that runs guests hears
   * of the state after the slice of one, and each step of the program's start would wait for another; a processor is free as well for the main
   * thread, over which the state comes.
   */
  awaitState(): void {
    const { scheduler } = this.#kernel;
    const inTime = alarm(awaitMs, () => this.#letOthersRun());
    this.#letOthersRun = () => {
      inTime();
      this.#letOthersRun = () => {};
      scheduler.unpause();
    };
    scheduler.pause();
  }

  /** Takes the state of a process that stands still elsewhere. @throws when it does not come back byte for byte */
  restore(image: ProcessImage): void {
    const { process } = this;
    const { cpu, scheduler, machine } = this.#kernel;
    const blocker = blockerOfResume(image, { ...machine, tscKhz: cpu.tscKhz }, this.#module);
    if (blocker) throw new HostError("EINVAL", blocker);
    if (image.vms.length !== this.#incoming.length)
      throw new HostError("EBUSY", "a VM was opened or closed meanwhile: move it again");
    this.#releaseIdle = scheduler.holdIdle();
    this.#kernel.current = process;
    process.eventfds.restore(image.eventfds);
    // Under a wall clock the CPUs of a machine agree, and the guest's time has gone on; elsewhere each counts its own instructions
    if (scheduler.clock.isIcount && !this.#kernel.hasProcesses) scheduler.windTo(image.clock.tsc);
    const now = { tsc: cpu.rdtsc(), monotonicNs: scheduler.clock.monotonicNs() };
    const to = scheduler.clock.isIcount ? now : image.clock;
    image.vms.forEach(({ sections }, index) => {
      const runPage = (vcpu: number) => runPageOfVcpu(sections, vcpu);
      const rebased = rebaseSections(sections, { from: image.clock, to, bank: process.bank, runPage });
      if (typeof rebased === "string") throw new Error(rebased);
      restoreVerified(this.#module, this.#incoming[index]!, rebased);
    });
    installFiles(process, image, this.#module, this.#incoming);
    this.#image = image;
  }

  /** The process is this CPU's, to be run at once. `left`: to be called when the other one has let go, or is no more. */
  go(): { process: KernelProcess; main: Main; left: (how: LeftBehind) => void } {
    const { process } = this;
    const image = this.#image;
    const main = this.#main;
    if (!image || !main) throw new Error("a process cannot go on whose state has not come");
    const { reserved, pages } = this.#offer;
    // Not by the CPU that it leaves, which may be dead, or hang and come back when the process runs here
    this.#kernel.cpu.memory.takeOverBank(process.bank);
    // The other CPU has its tables still
    process.memory.pages.takeOver(pages, reserved.offset, reserved.count);
    const runPages = runPagesOf(image);
    const left = (how: LeftBehind): void => {
      if (how === "released") process.memory.pages.freeGivenBack();
      else process.memory.pages.freeOrphans(runPages);
    };
    const { program: sections, undelivered, turns, retired } = image;
    process.takeUp({ sections, undelivered, turns, retired });
    process.arrivesOn = undefined;
    process.input.push(image.input.bytes);
    if (image.input.ended) process.input.end();
    this.#releaseIdle();
    this.#letOthersRun();
    return { process, main, left };
  }

  /** Gives the attempt up; resolves when nothing of it is left, which is not before the module has come back from preparing. */
  async abort(): Promise<void> {
    this.givenUp = true;
    this.#letOthersRun();
    this.#releaseIdle();
    for (const tell of this.process.atEnding) tell();
    for (const incoming of this.#incoming.splice(0)) {
      try {
        incoming.abort();
      } catch (thrown) {
        this.#kernel.log("err", this.#module.name, `exception while aborting a move: ${stackOf(thrown)}`);
      }
    }
    if (this.#kernel.current === this.process) this.#kernel.current = undefined;
    await Promise.allSettled(this.process.preparing);
    this.#kernel.memory.forget(this.#offer.bank);
    this.#kernel.cpu.memory.releaseBank(this.#offer.bank);
  }
}

/** They stay where they are: the bank goes along. */
function runPageOfVcpu(sections: readonly Section[], vcpu: number): number {
  const page = VcpuRunPage.find(sections, vcpu);
  if (typeof page === "string") throw new Error(page);
  return runPageOffset(page.fixed.address);
}

/** The pages that vCPUs share with their VMM. */
function runPagesOf(image: ProcessImage): { offset: number; count: number }[] {
  return image.runPages.map(({ vm, vcpu, bytes }) => ({
    offset: runPageOfVcpu(image.vms[vm]!.sections, vcpu),
    count: bytes.length / pageBytes,
  }));
}
