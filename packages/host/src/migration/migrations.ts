/** Processes that leave a CPU or come to it, as the control plane drives them. */
import type { Main } from "@mkvm/kvm-abi";
import type { LeftBehind, MigrationImage, MigrationOffer } from "../control/protocol.ts";
import { HostError } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import type { ProcessImage } from "../saved/process-image.ts";
import type { CpuKernel } from "../worker/cpu-kernel.ts";
import { Arriving } from "./arriving.ts";
import { Leaving } from "./leaving.ts";

export class Migrations {
  readonly #kernel: CpuKernel;
  readonly #leaving = new Map<number, Leaving>();
  readonly #arriving = new Map<number, Arriving>();
  /** Of processes that have come: what is to be done when the other CPU has let go, or is no more. */
  readonly #arrived = new Map<number, (left: LeftBehind) => void>();

  constructor(kernel: CpuKernel) {
    this.#kernel = kernel;
  }

  /** Processes that are not this CPU's yet: they use its modules already. */
  *arriving(): Generator<KernelProcess> {
    for (const { process, givenUp } of this.#arriving.values()) if (!givenUp) yield process;
  }

  async offer(process: KernelProcess, to: string): Promise<MigrationOffer> {
    await process.takesPart(this.#kernel.moveLimits.freezeMs);
    const leaving = new Leaving(process, to, this.#kernel.machine.vendor);
    this.#leaving.set(process.pid, leaving);
    try {
      return leaving.offer();
    } catch (thrown) {
      this.stay(process.pid);
      throw thrown;
    }
  }

  ends(pid: number): Promise<boolean> {
    return this.#goes(pid).ends;
  }

  still(pid: number): Promise<MigrationImage> {
    return this.#goes(pid).still();
  }

  go(pid: number): { ending: boolean } {
    const ending = this.#goes(pid).go();
    this.#leaving.delete(pid);
    return { ending };
  }

  stay(pid: number): null {
    const leaving = this.#leaving.get(pid);
    this.#leaving.delete(pid);
    leaving?.stay();
    return null;
  }

  /** Gives pages back that were set aside for another CPU, unless the process has gone. */
  free(process: KernelProcess | undefined, reserved: MigrationOffer["reserved"]): null {
    process?.memory.pages.freeKernel(reserved.offset, reserved.count);
    return null;
  }

  /** What fails is to be taken back with `abort`. @throws HostError that says why the process cannot come here */
  async prepare(offer: MigrationOffer, main: Promise<Main>): Promise<null> {
    const { pid } = offer;
    // Nobody may wait for it any more when it fails
    main.catch(() => {});
    if (this.#arriving.has(pid))
      throw new HostError(
        "EBUSY",
        `${offer.module} on cpu${this.#kernel.id} has not come back from preparing an earlier move of process ${pid}`,
      );
    const arriving = new Arriving(this.#kernel, offer);
    this.#arriving.set(pid, arriving);
    await arriving.prepare(main);
    return null;
  }

  awaitState(pid: number): null {
    this.#come(pid).awaitState();
    return null;
  }

  restore(pid: number, image: ProcessImage): null {
    this.#come(pid).restore(image);
    return null;
  }

  /** The process with its program, to be run here. */
  arrive(pid: number): { process: KernelProcess; main: Main } {
    const { left, ...arrived } = this.#come(pid).go();
    this.#arriving.delete(pid);
    this.#arrived.set(pid, left);
    arrived.process.atEnd.add(() => this.#arrived.delete(pid));
    return arrived;
  }

  /** The CPU that a process came from has let go of it at last, or is no more. */
  left(pid: number, how: LeftBehind): null {
    this.#arrived.get(pid)?.(how);
    this.#arrived.delete(pid);
    return null;
  }

  async abort(pid: number): Promise<null> {
    await this.#arriving.get(pid)?.abort();
    this.#arriving.delete(pid);
    return null;
  }

  #goes(pid: number): Leaving {
    const leaving = this.#leaving.get(pid);
    if (!leaving) throw new HostError("ESRCH", `process ${pid} is not about to leave cpu${this.#kernel.id}`);
    return leaving;
  }

  #come(pid: number): Arriving {
    const arriving = this.#arriving.get(pid);
    if (!arriving) throw new HostError("ESRCH", `process ${pid} is not about to come to cpu${this.#kernel.id}`);
    return arriving;
  }
}
