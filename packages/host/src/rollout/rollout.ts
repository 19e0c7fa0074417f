/** One rollout: waves of moves, each watched and judged, and taken back by itself when it is not healthy. */
import { HostError, messageOf } from "../errors.ts";
import { type Counts, compareRates, ratesBetween } from "./health.ts";
import type { RolloutState, RolloutStore, RolloutVm } from "./state.ts";
import type { RolloutClock, RolloutTarget } from "./target.ts";

const eventsKept = 500;

export class Rollout {
  readonly state: RolloutState;
  readonly #target: RolloutTarget;
  readonly #store: RolloutStore;
  readonly #clock: RolloutClock;
  readonly #log: (text: string) => void;
  #asked: "pause" | "abort" | "abort all" | undefined;
  #interrupt = new AbortController();
  #running: Promise<void> | undefined;

  constructor(
    state: RolloutState,
    parts: { target: RolloutTarget; store: RolloutStore; clock: RolloutClock; log: (text: string) => void },
  ) {
    this.state = state;
    this.#target = parts.target;
    this.#store = parts.store;
    this.#clock = parts.clock;
    this.#log = parts.log;
  }

  get going(): boolean {
    return this.#running !== undefined;
  }

  /** Goes on from where the state is. Resolves when it ends or pauses. */
  run(): Promise<void> {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Resolves when it stands: at once between moves, else when the move that goes on has ended. */
  async ask(what: "pause" | "abort" | "abort all"): Promise<void> {
    this.#asked = what;
    this.#interrupt.abort();
    if (this.#running) await this.#running;
    else if (what !== "pause") await this.#abort(what);
  }

  async #run(): Promise<void> {
    this.#asked = undefined;
    this.#interrupt = new AbortController();
    this.state.status = "running";
    try {
      while (this.state.wave < this.state.waves) {
        if (!(await this.#wave())) return;
        this.state.wave++;
      }
      if (this.state.plan.finalize) await this.#finalize();
      this.#end("done", `done: ${this.#counted("healthy")} on ${this.state.plan.to}`);
    } catch (thrown) {
      // Nothing here is known to fail; what does must not leave a wave unwatched
      await this.#takeBack(this.#ofWave(), `the rollout itself failed: ${messageOf(thrown)}`);
    }
  }

  /** True when the wave is healthy. */
  async #wave(): Promise<boolean> {
    const { plan } = this.state;
    const label = `wave ${this.state.wave + 1} of ${this.state.waves}`;
    const vms = this.#ofWave();
    this.#enter("baseline", `${label}: ${vms.length} VM${vms.length === 1 ? "" : "s"}, watched before they move`);
    const waiting = vms.filter((vm) => vm.state === "waiting");
    if (waiting.length > 0) {
      const before = await this.#counts(waiting);
      const beganMs = this.#clock.nowMs();
      await this.#clock.wait(plan.baselineMs, this.#interrupt.signal);
      if (await this.#interrupted()) return false;
      const after = await this.#counts(waiting);
      this.#rates("before", before, after, this.#clock.nowMs() - beganMs);
    }

    this.#enter("moving", `${label}: moving to ${plan.to}`);
    const problems: string[] = [];
    for (const vm of waiting) {
      if (await this.#interrupted()) return false;
      const problem = await this.#moveOne(vm);
      if (problem) problems.push(problem);
      this.#store.save(this.state);
      if (problem) break;
    }
    if (problems.length === 0) {
      this.#enter("soaking", `${label}: soaking for ${plan.soakMs / 1000} s`);
      const watched = await this.#soak();
      if (!watched) return false;
      problems.push(...watched);
    }
    if (problems.length > 0) {
      await this.#takeBack(vms, problems.join("; "));
      return false;
    }
    for (const vm of vms) if (vm.state === "moved") vm.state = "healthy";
    this.#event(`${label}: healthy`);
    return true;
  }

  /** What went wrong, or undefined. A process that has ended properly is no problem: it has nothing to move. */
  async #moveOne(vm: RolloutVm): Promise<string | undefined> {
    const { plan } = this.state;
    try {
      const report = await this.#target.upgrade(vm.pid, plan.to);
      if (!report.moved) return `process ${vm.pid} did not move: ${report.failed?.step}: ${report.failed?.reason}`;
      vm.state = "moved";
      vm.blackoutUs = report.blackoutUs;
      const most = plan.health.blackoutMs;
      if (most !== undefined && report.blackoutUs > most * 1000)
        return `process ${vm.pid}: blackout of ${report.blackoutUs} us, more than ${most} ms`;
      return undefined;
    } catch (thrown) {
      return (await this.#endedBadly(vm)) ?? (vm.state === "gone" ? undefined : `process ${vm.pid}: ${messageOf(thrown)}`);
    }
  }

  /** What is wrong with the wave; undefined when the operator interrupted. */
  async #soak(): Promise<string[] | undefined> {
    const { plan } = this.state;
    const vms = this.#ofWave().filter((vm) => vm.state === "moved");
    const pattern = plan.health.heartbeat === undefined ? undefined : new RegExp(plan.health.heartbeat, "m");
    const beats = new Map(pattern ? vms.map((vm) => [vm, this.#target.watchConsole(vm.pid, pattern)]) : []);
    try {
      const before = await this.#counts(vms);
      const beganMs = this.#clock.nowMs();
      await this.#clock.wait(plan.soakMs, this.#interrupt.signal);
      if (await this.#interrupted()) return undefined;
      const after = await this.#counts(vms);
      this.#rates("after", before, after, this.#clock.nowMs() - beganMs);
      const problems: string[] = [];
      const processes = await this.#target.processes();
      for (const vm of vms) {
        const process = processes.find(({ pid }) => pid === vm.pid);
        if (!process) {
          const ended = await this.#endedBadly(vm);
          if (ended) problems.push(ended);
          else if (vm.state !== "gone") problems.push(`process ${vm.pid}: its CPU does not answer`);
          continue;
        }
        const found = vm.before && vm.after ? compareRates(vm.before, vm.after, plan.health) : [];
        if (process.fault !== undefined) found.push(`internal error: ${process.fault}`);
        if (beats.get(vm)?.seen() === false) found.push(`no heartbeat /${plan.health.heartbeat}/ on its console`);
        problems.push(...found.map((finding) => `process ${vm.pid}: ${finding}`));
      }
      return problems;
    } finally {
      for (const beat of beats.values()) beat.stop();
    }
  }

  /** Marks a VM whose process has ended; a sentence when it did not end by itself and well. */
  async #endedBadly(vm: RolloutVm): Promise<string | undefined> {
    const exit = await this.#target.ended(vm.pid).catch(() => ({ reason: "exited", status: 0, message: undefined }));
    if (!exit) return undefined;
    const moved = vm.state === "moved";
    vm.state = "gone";
    const badly = exit.reason === "crashed" || (moved && exit.reason === "exited" && exit.status !== 0);
    return badly ? `process ${vm.pid} ended: ${exit.message ?? `${exit.reason}, status ${exit.status}`}` : undefined;
  }

  /** True when the operator asked for something, which is then done. */
  async #interrupted(): Promise<boolean> {
    if (this.#asked === undefined) return false;
    if (this.#asked === "pause") {
      this.state.status = "paused";
      this.#event(`paused in wave ${this.state.wave + 1}`);
    } else await this.#abort(this.#asked);
    return true;
  }

  async #abort(what: "abort" | "abort all"): Promise<void> {
    const vms = what === "abort all" ? this.state.vms : this.#ofWave();
    await this.#takeBack(vms, "aborted by the operator", "aborted");
  }

  async #takeBack(vms: readonly RolloutVm[], reason: string, status: "failed" | "aborted" = "failed"): Promise<void> {
    this.#enter("rolling back", `rolling back: ${reason}`);
    for (const vm of [...vms].reverse()) {
      if (vm.state !== "moved" && vm.state !== "healthy") continue;
      vm.reason = reason;
      try {
        const report = await this.#target.rollback(vm.pid);
        vm.state = report.moved ? "rolled back" : "stuck";
        if (!report.moved) vm.reason = `${report.failed?.step}: ${report.failed?.reason}`;
      } catch (thrown) {
        vm.state = (await this.#target.ended(vm.pid).catch(() => undefined)) ? "gone" : "stuck";
        if (vm.state === "stuck") vm.reason = messageOf(thrown);
      }
      this.#store.save(this.state);
    }
    const stuck = this.state.vms.filter((vm) => vm.state === "stuck").map((vm) => `process ${vm.pid} (${vm.reason})`);
    this.#end(status, `${status}: ${reason}${stuck.length > 0 ? `; could not be rolled back: ${stuck.join(", ")}` : ""}`);
  }

  async #finalize(): Promise<void> {
    this.#enter("finalizing", "finalizing");
    for (const vm of this.state.vms) {
      if (vm.state === "healthy")
        await this.#target
          .finalize(vm.pid)
          .catch((thrown) => this.#event(`process ${vm.pid} is not finalised: ${messageOf(thrown)}`));
    }
  }

  #ofWave(): RolloutVm[] {
    return this.state.vms.filter((vm) => vm.wave === this.state.wave);
  }

  /** Of those that are there. */
  async #counts(vms: readonly RolloutVm[]): Promise<Map<RolloutVm, Counts>> {
    const counts = new Map<RolloutVm, Counts>();
    for (const vm of vms) {
      try {
        counts.set(vm, await this.#target.counts(vm.pid));
      } catch (thrown) {
        if (!(thrown instanceof HostError)) throw thrown;
      }
    }
    return counts;
  }

  #rates(which: "before" | "after", from: Map<RolloutVm, Counts>, to: Map<RolloutVm, Counts>, elapsedMs: number): void {
    for (const [vm, first] of from) {
      const last = to.get(vm);
      if (last) vm[which] = ratesBetween(first, last, elapsedMs);
    }
  }

  #counted(state: RolloutVm["state"]): string {
    const { length } = this.state.vms.filter((vm) => vm.state === state);
    return `${length} VM${length === 1 ? "" : "s"}`;
  }

  #enter(phase: RolloutState["phase"], text: string): void {
    this.state.phase = phase;
    this.#event(text);
  }

  #end(status: "done" | "failed" | "aborted", text: string): void {
    this.state.status = status;
    this.state.phase = "ended";
    this.#event(text);
  }

  #event(text: string): void {
    this.state.events = [...this.state.events, { atMs: this.#clock.nowMs(), text }].slice(-eventsKept);
    this.#log(`rollout: ${text}`);
    this.#store.save(this.state);
  }
}
