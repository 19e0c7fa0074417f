/** `mkvm rollout`: moves in waves that are watched, and taken back when they are not healthy. */
import type { Command } from "commander";
import { HostError } from "../errors.ts";
import { checkPlan, type RolloutPlanInput, readPlanFile } from "../rollout/plan.ts";
import type { RolloutPreview } from "../rollout/rollouts.ts";
import type { RolloutState } from "../rollout/state.ts";
import type { DaemonClient } from "./client.ts";
import { ask, print } from "./module-commands.ts";
import { table } from "./tables.ts";

interface Flags {
  from?: string;
  to?: string;
  name?: string;
  waves?: string;
  soak?: string;
  baseline?: string;
  health?: string[];
  finalize?: boolean;
  dryRun?: boolean;
  wait?: boolean;
  json?: boolean;
}

/** How often `--wait` looks. */
const lookMs = 500;

export function addRolloutCommand(program: Command, done: (status: number) => void): void {
  const rollout = program
    .command("rollout")
    .summary("move VMs in waves, watch them, take them back")
    .description(
      "Moves VMs from one module to another in waves. After each wave the VMs are watched; a wave that is not as healthy as before is rolled back, and the rollout ends there.",
    )
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm rollout --from kvm1 --to kvm2 --waves 1,10%,100% --soak 10s\n  mkvm rollout status --wait\n  mkvm rollout abort",
    );
  rollout
    .command("start [file]", { isDefault: true })
    .summary("begin a rollout")
    .description("Begins a rollout: from a file in YAML or JSON, from flags, or from a file with flags that override it.")
    .option("--from <module>", "loaded module whose VMs move")
    .option("--to <module>", "loaded module that they move to")
    .option("--name <name>", "only processes of this name")
    .option("--waves <list>", "how many VMs have moved after each wave: numbers or shares (default: 1,10%,100%)")
    .option("--soak <duration>", "how long a wave is watched before it is judged (default: 30s)")
    .option("--baseline <duration>", "how long VMs are watched before they move (default: 5s)")
    .option("--health <key=value...>", "limits: exits, progress, interruptLatency (multiples), blackout, heartbeat")
    .option("--finalize", "give up the way back when every wave is healthy")
    .option("--dry-run", "show what would move and what blocks it; move nothing")
    .option("--wait", "follow it to its end; the status is 1 unless every wave was healthy")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      `
Examples:
  mkvm rollout --from kvm1 --to kvm2 --waves 1,10%,100% --soak 10s --dry-run
  mkvm rollout --from kvm1 --to kvm2 --health exits=2 progress=0.8 blackout=50ms heartbeat="^tick" --wait
  mkvm rollout start rollout.yaml`,
    )
    .action(async (file: string | undefined, flags: Flags) => {
      const plan = planOf(file, flags);
      await ask(async (daemon) => {
        if (flags.dryRun) {
          const preview = await daemon.call("rolloutPreview", plan);
          print(preview, flags.json, () => previewText(preview));
          if (preview.waves.flat().some(({ blocker }) => blocker !== null)) done(1);
          return;
        }
        const state = await daemon.call("rolloutStart", plan);
        if (flags.wait) done(await follow(daemon, flags));
        else print(state, flags.json, () => statusText(state));
      });
    });
  rollout
    .command("status")
    .summary("show how far it is")
    .description("Shows the rollout that goes on, or the last one: its waves, its VMs before and after, and what happened.")
    .option("--wait", "follow it to its end; the status is 1 unless every wave was healthy")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm rollout status")
    .action(async (flags: Flags) => {
      await ask(async (daemon) => {
        if (flags.wait) return done(await follow(daemon, flags));
        const state = await daemon.call("rolloutStatus");
        print(state, flags.json, () => statusText(state));
      });
    });
  const control = (
    name: "pause" | "resume" | "abort",
    summary: string,
    description: string,
    call: (daemon: DaemonClient, all: boolean) => Promise<RolloutState>,
  ): Command =>
    rollout
      .command(name)
      .summary(summary)
      .description(description)
      .option("--json", "print JSON")
      .addHelpText("after", `\nExample:\n  mkvm rollout ${name}`)
      .action(async (flags: Flags & { all?: boolean }) => {
        const state = await ask((daemon) => call(daemon, flags.all ?? false));
        print(state, flags.json, () => statusText(state));
      });
  control("pause", "stop before the next move", "Stops it: VMs stay where they are, until 'resume' or 'abort'.", (daemon) =>
    daemon.call("rolloutPause"),
  );
  control(
    "resume",
    "go on",
    "Goes on with a rollout that is paused, or whose daemon ended. The wave soaks anew; what VMs are on now counts.",
    (daemon) => daemon.call("rolloutResume"),
  );
  control("abort", "stop, and take the wave back", "Ends it and rolls the wave that goes on back.", (daemon, all) =>
    daemon.call("rolloutAbort", all),
  ).option("--all", "roll every wave back, also after the end");
}

function planOf(file: string | undefined, flags: Flags): RolloutPlanInput {
  const plan: Record<string, unknown> = file === undefined ? {} : { ...readPlanFile(file, false) };
  for (const key of ["from", "to", "name", "soak", "baseline", "finalize"] as const)
    if (flags[key] !== undefined) plan[key] = flags[key];
  if (flags.waves !== undefined) plan.waves = flags.waves.split(",").map((wave) => wave.trim());
  if (flags.health !== undefined) {
    const limits = flags.health.map((word): [string, string | number] => {
      const at = word.indexOf("=");
      if (at <= 0) throw new HostError("EINVAL", `--health ${word}: write key=value, as exits=2`);
      const [key, value] = [word.slice(0, at), word.slice(at + 1)];
      return [key, key === "blackout" || key === "heartbeat" ? value : Number(value)];
    });
    plan.health = { ...(plan.health as object | undefined), ...Object.fromEntries(limits) };
  }
  checkPlan(plan);
  return plan as unknown as RolloutPlanInput;
}

async function follow(daemon: DaemonClient, flags: Flags): Promise<number> {
  let shown = 0;
  for (;;) {
    const state = await daemon.call("rolloutStatus");
    if (!flags.json) for (const event of state.events.slice(shown)) console.log(eventLine(event));
    shown = state.events.length;
    if (state.status !== "running") {
      print(state, flags.json, () => statusText(state, false));
      return state.status === "done" ? 0 : 1;
    }
    await new Promise((resolve) => setTimeout(resolve, lookMs));
  }
}

function previewText({ plan, waves, left }: RolloutPreview): string {
  const rows = waves.flatMap((vms, index) =>
    vms.map(({ pid, name, blocker }) => [index + 1, pid, name, blocker === null ? "would move" : `blocked: ${blocker}`]),
  );
  const rest = left.map(({ pid, name }) => ["-", pid, name, "in no wave"]);
  if (rows.length + rest.length === 0) return `no VM is on ${plan.from}: nothing would move`;
  return table(["WAVE", "PID", "NAME", `TO ${plan.to}`], [...rows, ...rest]);
}

export function statusText(state: RolloutState, withEvents = true): string {
  const { plan, status, phase, wave, waves, vms, events } = state;
  const where = status === "running" || status === "paused" ? `, wave ${wave + 1} of ${waves}, ${phase}` : "";
  const change = (before: number | undefined, after: number | undefined) =>
    before === undefined ? "-" : `${before.toFixed(0)} -> ${after?.toFixed(0) ?? "?"}`;
  const view = table(
    ["WAVE", "PID", "NAME", "STATE", "BLACKOUT", "EXITS/S", "INSTRUCTIONS/S", "IRQ LATENCY NS"],
    vms.map((vm) => [
      vm.wave + 1,
      vm.pid,
      vm.name,
      vm.reason === undefined ? vm.state : `${vm.state}: ${vm.reason}`,
      vm.blackoutUs === undefined ? "-" : `${vm.blackoutUs} us`,
      change(vm.before?.exitsPerS, vm.after?.exitsPerS),
      change(vm.before?.instructionsPerS, vm.after?.instructionsPerS),
      change(vm.before?.interruptLatencyNs, vm.after?.interruptLatencyNs),
    ]),
  );
  const lines = [`${plan.from} -> ${plan.to}: ${status}${where}`, "", view];
  if (withEvents) lines.push("", ...events.slice(-10).map(eventLine));
  return lines.join("\n");
}

function eventLine({ atMs, text }: { atMs: number; text: string }): string {
  return `${new Date(atMs).toISOString()}  ${text}`;
}
