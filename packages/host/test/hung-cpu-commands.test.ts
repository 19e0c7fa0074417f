/** What `mkvm` says of a CPU that hangs. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { serveDaemon } from "../src/cli/daemon.ts";
import { findEndpoint } from "../src/cli/endpoint.ts";
import type { Host } from "../src/control/host.ts";
import { createTestHost, printed, run, threadHangs } from "./fixtures/test-host.ts";

const cli = fileURLToPath(new URL("../src/cli.ts", import.meta.url));
const environment = { ...process.env, MKVM_STATE_DIR: mkdtempSync(join(tmpdir(), "mkvm-hung-")) };
let host: Host;
let daemon: Awaited<ReturnType<typeof serveDaemon>>;

/** A daemon with a VM on cpu0, and one on cpu1, which hangs. */
beforeAll(async () => {
  host = await createTestHost(2, { answerMs: 1500 });
  await host.insmod("./fake-kvm-a");
  await host.insmod("./fake-kvm-b");
  await host.ln("/dev/kvma", "/dev/kvm");
  daemon = await serveDaemon(host, findEndpoint(environment));
  for (const cpu of [0, 1]) await printed(await run(host, ["migrant", "idle"], { cpu }), "ready");
  host.process(2).write("hang\n");
  await threadHangs(host);
});
afterAll(async () => {
  daemon.stop();
  await daemon.stopped;
  rmSync(environment.MKVM_STATE_DIR, { recursive: true, force: true });
});

function mkvm(...words: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, ...words], { env: environment, stdio: ["ignore", "pipe", "pipe"] });
    const text = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"] as const) {
      child[stream].on("data", (bytes) => {
        text[stream] += bytes;
      });
    }
    child.on("close", (status) => resolve({ status, ...text }));
  });
}

const named = "mkvm: cpu1 does not answer, process 2 is not shown: 'mkvm cpu kill 1' ends it\n";
const refused = "mkvm: cpu1 did not answer within 1500 ms: 'mkvm cpu kill 1' ends it with its processes\n";

it("names the CPU beside lists of the rest, refuses what is for all, and ends it when told to", async () => {
  const ps = await mkvm("ps");
  expect(ps).toMatchObject({ status: 0, stderr: named });
  expect(ps.stdout.match(/^\d+/gm)).toEqual(["1"]);
  const lsmod = await mkvm("lsmod");
  expect(lsmod).toMatchObject({ status: 0, stderr: named });
  expect(lsmod.stdout).toMatch(/kvma .*pid 1\n/);
  expect((await mkvm("cpu", "list")).stdout).toMatch(/0 +online +1\n1 +silent +2\n/);
  expect(await mkvm("ln", "/dev/kvmb", "/dev/kvm")).toMatchObject({ status: 1, stderr: refused });
  const upgrade = await mkvm("upgrade", "--all", "--to", "kvmb");
  expect(upgrade.status).toBe(1);
  expect(upgrade.stdout).toMatch(/^1 +kvma +kvmb +moved /m);
  expect(upgrade.stderr).toBe(`mkvm: process 2 stays where it is: check on kvmb failed: ${refused.slice("mkvm: ".length)}`);
  expect(await mkvm("cpu", "kill", "1")).toEqual({ status: 0, stdout: "", stderr: "" });
  expect(await mkvm("ps")).toMatchObject({ status: 0, stderr: "" });
  expect(await mkvm("ln", "/dev/kvmb", "/dev/kvm")).toMatchObject({ status: 0, stderr: "" });
});
