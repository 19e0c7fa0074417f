/** The one rollout of a daemon: begun, looked at, stopped, and gone on with, also by a later daemon. */
import { HostError } from "../errors.ts";
import { checkPlan, type RolloutPlan, type RolloutPlanInput } from "./plan.ts";
import { Rollout } from "./rollout.ts";
import type { RolloutState, RolloutStore, RolloutVm } from "./state.ts";
import type { RolloutClock, RolloutTarget } from "./target.ts";
import { wavesOf } from "./waves.ts";

/** What a rollout would do: nothing is moved. */
export interface RolloutPreview {
  plan: RolloutPlan;
  waves: { pid: number; name: string; blocker: string | null }[][];
  /** VMs on `from` that no wave takes along. */
  left: { pid: number; name: string }[];
}

const ended: readonly string[] = ["done", "failed", "aborted"];

export class Rollouts {
  readonly #parts: { target: RolloutTarget; store: RolloutStore; clock: RolloutClock; log: (text: string) => void };
  #current: Rollout | undefined;

  constructor(parts: { target: RolloutTarget; store: RolloutStore; clock: RolloutClock; log: (text: string) => void }) {
    this.#parts = parts;
    const state = parts.store.load();
    if (!state) return;
    if (!ended.includes(state.status)) {
      if (state.status === "running") state.status = "interrupted";
      // Pids begin anew with each run of a daemon: those of an earlier one name nobody, or somebody else
      if (state.host !== parts.target.instance) for (const vm of state.vms) vm.state = "gone";
      parts.store.save(state);
    }
    this.#current = new Rollout(state, parts);
  }

  /** @throws HostError when the plan is none */
  preview(input: RolloutPlanInput): Promise<RolloutPreview> {
    return this.#preview(checkPlan(input));
  }

  async #preview(plan: RolloutPlan): Promise<RolloutPreview> {
    const { target } = this.#parts;
    const vms = (await target.processes()).filter(
      (process) =>
        process.vms > 0 && process.modules.includes(plan.from) && (plan.name === undefined || process.name === plan.name),
    );
    const waves = wavesOf(vms, plan.waves);
    const taken = waves.flat();
    const withBlocker = async ({ pid, name }: { pid: number; name: string }) => ({
      pid,
      name,
      blocker: await target.blocker(pid, plan.to),
    });
    return {
      plan,
      waves: await Promise.all(waves.map((wave) => Promise.all(wave.map(withBlocker)))),
      left: vms.filter((vm) => !taken.includes(vm)).map(({ pid, name }) => ({ pid, name })),
    };
  }

  /** Begins; does not wait for the end. @throws HostError when one goes on already, nothing moves, or something blocks it */
  async start(input: RolloutPlanInput): Promise<RolloutState> {
    const going = this.#current?.state.status;
    if (going !== undefined && !ended.includes(going))
      throw new HostError("EBUSY", `a rollout is ${going}: see 'mkvm rollout status', or end it with 'mkvm rollout abort'`);
    const state = await this.#plan(checkPlan(input));
    const rollout = new Rollout(state, this.#parts);
    this.#current = rollout;
    void rollout.run();
    return state;
  }

  status(): RolloutState {
    return this.#there().state;
  }

  async pause(): Promise<RolloutState> {
    const rollout = this.#there();
    if (!rollout.going) throw new HostError("EINVAL", `the rollout is ${rollout.state.status}: there is nothing to pause`);
    await rollout.ask("pause");
    return rollout.state;
  }

  /** Goes on; what the VMs are on now counts, not what the state says. */
  async resume(): Promise<RolloutState> {
    const rollout = this.#there();
    const { state } = rollout;
    if (state.status !== "paused" && state.status !== "interrupted")
      throw new HostError("EINVAL", `the rollout is ${state.status}: there is nothing to resume`);
    if (state.host === this.#parts.target.instance) await this.#reconcile(state);
    else Object.assign(state, await this.#plan(state.plan), { events: state.events });
    void rollout.run();
    return state;
  }

  /** Takes back the wave that goes on, or with `all` every wave. */
  async abort(all = false): Promise<RolloutState> {
    const rollout = this.#there();
    const { status } = rollout.state;
    if (ended.includes(status) && !(all && status !== "aborted"))
      throw new HostError(
        "EINVAL",
        `the rollout is ${status}: take VMs back with 'mkvm rollback', or with 'mkvm rollout abort --all'`,
      );
    if (rollout.state.host === this.#parts.target.instance) await this.#reconcile(rollout.state);
    await rollout.ask(all ? "abort all" : "abort");
    return rollout.state;
  }

  /** For the end of the daemon, and for tests. */
  async settled(): Promise<void> {
    if (this.#current?.going) await this.#current.run();
  }

  async #plan(plan: RolloutPlan): Promise<RolloutState> {
    const { waves } = await this.#preview(plan);
    const [silent] = await this.#parts.target.silentCpus();
    if (silent !== undefined)
      throw new HostError(
        "ETIMEDOUT",
        `cpu${silent} does not answer, and its VMs are not known: 'mkvm cpu kill ${silent}' ends them`,
      );
    const { from, to } = plan;
    if (waves.length === 0) throw new HostError("ENOENT", `no VM is on ${from}: see 'mkvm ps'`);
    const blocked = waves.flat().filter((vm) => vm.blocker !== null);
    if (blocked.length > 0) {
      const why = blocked.map((vm) => `process ${vm.pid}: ${vm.blocker}`).join("; ");
      throw new HostError("EINVAL", `not everything can move to ${to}: ${why}. 'mkvm rollout --dry-run' shows the rest`);
    }
    const vms = waves.flatMap((wave, index) =>
      wave.map(({ pid, name }): RolloutVm => ({ pid, name, wave: index, state: "waiting" })),
    );
    return {
      format: 1,
      plan,
      host: this.#parts.target.instance,
      status: "running",
      phase: "baseline",
      wave: 0,
      waves: waves.length,
      vms,
      events: [],
    };
  }

  /** Makes the state what `ps` says: moves may have ended while nobody wrote it down. */
  async #reconcile(state: RolloutState): Promise<void> {
    const processes = await this.#parts.target.processes();
    for (const vm of state.vms) {
      const process = processes.find(({ pid }) => pid === vm.pid);
      if (!process) {
        if (await this.#parts.target.ended(vm.pid).catch(() => true)) vm.state = "gone";
        continue;
      }
      if (process.modules.includes(state.plan.to)) {
        if (vm.state !== "healthy") vm.state = "moved";
      } else if (vm.state === "moved" || vm.state === "healthy") {
        vm.state = vm.wave < state.wave ? "rolled back" : "waiting";
      }
    }
    this.#parts.store.save(state);
  }

  #there(): Rollout {
    if (!this.#current) throw new HostError("ENOENT", "there was no rollout: begin one with 'mkvm rollout start'");
    return this.#current;
  }
}
