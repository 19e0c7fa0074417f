/** Moves of this CPU's processes between modules, as the control plane asks for them. */
import type { MoveReport } from "../control/types.ts";
import { HostError, messageOf } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import { moveVms } from "../upgrade/move.ts";
import { atInstruction } from "./at-instruction.ts";

export class ModuleMoves {
  readonly #moved: (report: MoveReport) => void;

  /** `moved` is told of each that was tried. */
  constructor(moved: (report: MoveReport) => void) {
    this.#moved = moved;
  }

  to(process: KernelProcess, to: string, finalise: boolean): Promise<MoveReport> {
    return this.#move(process, to, false, finalise);
  }

  /** When the CPU has retired exactly `at` instructions since the process started. */
  toAt(process: KernelProcess, to: string, at: number, finalise: boolean): Promise<MoveReport> {
    return atInstruction(process, at, () => this.#move(process, to, true, finalise)).catch((thrown) => {
      if (!(thrown instanceof HostError && thrown.code === "ESRCH")) {
        const why = `was to move at instruction ${at}: ${messageOf(thrown)}`;
        process.kernel.log("err", "host", `process ${process.pid} ${why}`);
      }
      throw thrown;
    });
  }

  back(process: KernelProcess): Promise<MoveReport> {
    const to = process.previous.at(-1);
    if (to === undefined) {
      const why = process.finalisedOn ? `it was finalised on ${process.finalisedOn}` : "it has not moved";
      throw new HostError(
        "EINVAL",
        `process ${process.pid} has nothing to roll back to, ${why}: use 'mkvm upgrade' to move it`,
      );
    }
    return this.#move(process, to, false, false);
  }

  /** Modules that are no longer held. */
  async finalise(process: KernelProcess): Promise<string[]> {
    await process.standstill?.done;
    const released = process.previous;
    if (released.length === 0) throw new HostError("EINVAL", `process ${process.pid} has no move to finalise: see 'mkvm ps'`);
    process.previous = [];
    process.finalisedOn = [...process.moduleFiles()].map(([, file]) => file.operations.owner)[0];
    for (const name of released) process.kernel.released(name);
    return released;
  }

  async #move(process: KernelProcess, to: string, stopFirst: boolean, finalise: boolean): Promise<MoveReport> {
    const { kernel, pid } = process;
    const report = await moveVms(process, { to, stopFirst, finalise });
    const { failed, from, blackoutUs } = report;
    if (failed) kernel.log("warn", "host", `process ${pid} stays on ${from}: ${failed.step} on ${to} failed: ${failed.reason}`);
    else kernel.log("info", "host", `process ${pid} moved from ${from} to ${to}, blackout ${blackoutUs} us`);
    this.#moved(report);
    kernel.released(from);
    kernel.released(to);
    return report;
  }
}
