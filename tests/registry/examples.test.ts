/** The example workspace, copied as its users copy it: every step of its CI job, and what the gate does when a change says too little. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findLinuxGuest } from "@mkvm/testkit";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parse } from "yaml";
import { attempt, type CommandResult } from "./commands.ts";
import { startPublishedRegistry } from "./first-release.ts";
import type { LoopbackRegistry } from "./loopback-registry.ts";
import { UserProject } from "./user-project.ts";
import { workspace } from "./workspace-release.ts";

interface Step {
  name?: string;
  run?: string;
  uses?: string;
  env?: Record<string, string>;
}
interface Workflow {
  on: { workflow_call: { inputs: Record<string, unknown> } };
  jobs: Record<string, { steps: Step[] }>;
}
interface Caller {
  jobs: Record<string, { uses: string; with: Record<string, string> }>;
}

const example = join(workspace, "examples", "fleet");
const workflow = (name: string) => parse(readFileSync(join(example, ".github", "workflows", name), "utf8"));
const caller = Object.values((workflow("ci.yml") as Caller).jobs)[0]!;
const gate = workflow("kvm-gate.yml") as Workflow;
/** What prepares a CI machine, which this one is by now. */
const machineSteps = ["Programs that Debian's image does not have"];
const steps = Object.values(gate.jobs)[0]!.steps.filter(
  ({ run, name = "" }) => run !== undefined && !machineSteps.includes(name),
) as (Step & { name: string; run: string })[];

let registry: LoopbackRegistry;
let project: UserProject;

beforeAll(async () => {
  registry = await startPublishedRegistry();
  project = new UserProject(registry, { empty: true });
  await project.copyFrom("examples/fleet");
}, 400_000);
afterAll(async () => {
  await project?.remove();
  await registry?.close();
}, 400_000);

/** Runs a step as the job does: its inputs are the caller's. */
function runStep({ run, env = {} }: { run: string; env?: Record<string, string> }): Promise<CommandResult> {
  const inputs = caller.with;
  const resolved = Object.fromEntries(
    Object.entries(env).map(([name, text]) => [
      name,
      text.replace(/\$\{\{\s*inputs\.([\w-]+)\s*\}\}/g, (_, input: string) => inputs[input] as string),
    ]),
  );
  return attempt("bash", ["-euo", "pipefail", "-c", run], { cwd: project.folder, env: { ...project.env, ...resolved } });
}

test("the job that is called takes what its caller gives", () => {
  expect(caller.uses).toBe("./.github/workflows/kvm-gate.yml");
  expect(Object.keys(caller.with).sort()).toEqual(Object.keys(gate.on.workflow_call.inputs).sort());
  expect(steps.map(({ name }) => name)).toEqual([
    "Packages",
    "Build",
    "A guest to measure with",
    "ABI against what is published",
    "A/B test against the KVM of today",
    "Stage it under a running VM, and take it back",
  ]);
});

test("every step of the job passes", { timeout: 900_000 }, async () => {
  const linux = await findLinuxGuest({ log: console.log });
  for (const step of steps) {
    // Fetched once for all tests, rather than by the step
    if (step.name === "A guest to measure with" && linux) {
      copyFileSync(linux.kernel, join(project.folder, "bzImage"));
      copyFileSync(linux.initrd, join(project.folder, "initramfs.cpio"));
    }
    const { status, stdout, stderr } = await runStep(step);
    if (status !== 0) throw new Error(`${step.name}: status ${status}\n${stdout}${stderr}`);
  }
  for (const report of ["ab-report.html", "ab-report.xml"]) expect(existsSync(join(project.folder, report))).toBe(true);
  expect(await project.git("status", "--porcelain", "--untracked-files=no", "--", "packages")).toBe("");
});

test("the committed report is the one that is written", { timeout: 400_000 }, async () => {
  const { status, stdout, stderr } = await runStep({ run: "npx -y pnpm@12 abi-report" });
  expect(status, stdout + stderr).toBe(0);
  expect(await project.git("status", "--porcelain", "--untracked-files=no", "--", "packages")).toBe("");
});

test("the gate stops a change that no changeset announces, and lets it pass with one", {
  timeout: 300_000,
}, async () => {
  const source = join(project.folder, "packages", "kvm-fleet", "src", "index.ts");
  writeFileSync(source, readFileSync(source, "utf8").replace("80_000", "90_000"));
  expect((await runStep(steps.find(({ name }) => name === "Build")!)).status).toBe(0);
  const abi = steps.find(({ name }) => name.startsWith("ABI"))!;

  const stopped = await runStep(abi);
  expect(stopped.status).toBe(1);
  expect(stopped.stdout + stopped.stderr).toContain("@fleet/kvm-fleet needs a patch bump");

  mkdirSync(join(project.folder, ".changeset"), { recursive: true });
  writeFileSync(join(project.folder, ".changeset", "poll.md"), '---\n"@fleet/kvm-fleet": patch\n---\n\nPoll longer.\n');
  const passed = await runStep(abi);
  expect(passed.status, passed.stdout + passed.stderr).toBe(0);
});
