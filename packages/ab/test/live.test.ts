import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { checkGuest } from "@mkvm/testkit";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Daemon, findDaemon } from "../src/live/daemon.ts";
import { runLive } from "../src/live/live-run.ts";
import { directory, folder, image, mkvmAb } from "./comparison.ts";

const cli = join(directory, "..", "host", "dist", "cli.js");
const endless = image("endless.bin", checkGuest());
let daemon: Daemon;

function mkvm(...words: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...words], { cwd: directory, encoding: "utf8" });
  if (status !== 0) throw new Error(`mkvm ${words.join(" ")}: ${stderr}`);
  return stdout;
}

beforeAll(async () => {
  process.env.MKVM_STATE_DIR = join(folder, "state");
  mkvm("up");
  for (const id of ["1", "2"]) mkvm("insmod", `@mkvm/kvm-v${id}`);
  mkvm("ln", "/dev/kvm1", "/dev/kvm");
  for (let vm = 0; vm < 4; vm++) mkvm("run", "--detach", "--kernel", endless, "--format", "flat64", "--memory", "16M");
  daemon = await findDaemon();
}, 120_000);
afterAll(() => {
  daemon?.close();
  spawnSync(process.execPath, [cli, "down"]);
  delete process.env.MKVM_STATE_DIR;
});

const modulesOf = async () => (await daemon.call("ps")).map(({ modules }) => modules[0]);

it("moves half of the VMs, watches, reports, and moves them back", async () => {
  const words = ["live", "--from", "kvm1", "--to", "kvm2", "--for", "0.5", "--seed", "3", "--json", "-"];
  const { status, stdout, stderr } = await mkvmAb(...words);
  const result = JSON.parse(stdout);
  // Two VMs on each arm cannot show anything, and the command says so.
  expect({ status, verdict: result.verdict }).toEqual({ status: 2, verdict: "inconclusive" });
  expect(stderr).toMatch(/^mkvm ab: seed 3\nmkvm ab: 2 and 2 VMs are too few to find any difference /);
  expect(result.rounds.map(({ arm }: { arm: string }) => arm)).toEqual(["a", "a", "b", "b"]);
  const exits = result.comparisons.find(({ metric }: { metric: string }) => metric === "exits");
  expect(exits.unit).toBe("count/s");
  expect(exits.a.median).toBeGreaterThan(0);
  expect(result.onlyOn.b).toContain("blackout");
  expect(await modulesOf()).toEqual(["kvm1", "kvm1", "kvm1", "kvm1"]);
  expect((await daemon.call("ps")).map(({ moves }) => moves).sort()).toEqual([0, 0, 2, 2]);
});

it("chooses the same half for the same seed, keeps it there when told to, and says when too few are left", async () => {
  const moved = result(
    await mkvmAb("live", "--from", "kvm1", "--to", "kvm2", "--for", "0.2", "--seed", "3", "--keep", "--json", "-"),
  );
  expect((await modulesOf()).filter((name) => name === "kvm2")).toHaveLength(2);
  expect(moved).toHaveLength(2);
  expect((await daemon.call("ps")).filter(({ moves }) => moves === 3).map(({ pid }) => pid)).toEqual(moved);
  const none = await mkvmAb("live", "--from", "kvm1", "--to", "kvm2", "--name", "web");
  expect(none).toMatchObject({
    status: 64,
    stderr: expect.stringMatching(/0 VMs called web on kvm1: two halves need at least 2; see 'mkvm ps'\n$/),
  });
  for (const pid of moved) await daemon.call("rollback", pid);
});

it("moves them back when it is interrupted", async () => {
  const controller = new AbortController();
  const interrupting = {
    call: (method: "statistics", pid: number) => {
      const answer = daemon.call(method, pid);
      if (method === "statistics") controller.abort();
      return answer;
    },
  } as unknown as Daemon;
  const options = { from: "kvm1", to: "kvm2", seconds: 3600, seed: 1, keep: true, signal: controller.signal };
  expect(await runLive(interrupting, options)).toMatchObject({ interrupted: true });
  expect(await modulesOf()).toEqual(["kvm1", "kvm1", "kvm1", "kvm1"]);
});

it("refuses modules that are not loaded, and a comparison with itself", async () => {
  const to = (name: string) => mkvmAb("live", "--from", "kvm1", "--to", name, "--quiet");
  expect(await to("kvm7")).toMatchObject({ status: 69, stderr: "mkvm ab: no module kvm7 is loaded: there is kvm1, kvm2\n" });
  expect(await to("kvm1")).toMatchObject({
    status: 64,
    stderr: "mkvm ab: --from and --to are both kvm1: nothing would differ\n",
  });
});

/** Processes of arm B. */
function result({ stdout }: { stdout: string }): number[] {
  const { rounds } = JSON.parse(stdout) as { rounds: { arm: string; round: number }[] };
  return rounds
    .filter(({ arm }) => arm === "b")
    .map(({ round }) => round)
    .sort((a, b) => a - b);
}
