/**
 * From registry to running host, as a user goes: packages published by changesets to a registry on loopback, installed with pnpm in
 * a fresh project, and a KVM staged, tried and taken away under a Linux that runs and checks itself all the while.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CheckWorkload } from "@mkvm/testkit";
import { afterAll, beforeAll, expect, test } from "vitest";
import { linuxGuest, tinyGuest } from "../scenarios/running-guest.ts";
import { DaemonGuest, type ListedProcess } from "./daemon-guest.ts";
import { type LoopbackRegistry, startLoopbackRegistry } from "./loopback-registry.ts";
import { UserProject } from "./user-project.ts";
import { type Bump, WorkspaceRelease } from "./workspace-release.ts";

/** The oldest Node.js that the packages claim to run on: everything here runs on it. */
const OLDEST_NODE = "22.12.0";
const minutes = (count: number) => ({ timeout: count * 60_000 });

let registry: LoopbackRegistry;
let release: WorkspaceRelease;
let project: UserProject;
let guest: DaemonGuest;
let guestArgs: readonly string[];

interface ListedModule {
  name: string;
  package: string;
  version: string;
}
const modules = async () =>
  (await project.json<ListedModule[]>("lsmod")).map(({ name, version }) => `${name} ${version}`).sort();

beforeAll(async () => {
  registry = await startLoopbackRegistry();
  release = await WorkspaceRelease.create(registry.env);
  project = new UserProject(registry);
}, 400_000);
afterAll(async () => {
  await project?.remove();
  release?.remove();
  await registry?.close();
}, 400_000);

test("a first release of everything but kvm-v2 is published, each package on its own version", minutes(3), async () => {
  release.change("@mkvm/kvm-v2", (manifest) => {
    manifest.private = true;
  });
  const names = [...release.packages().keys()];
  expect(names).not.toContain("@mkvm/kvm-v2");
  await release.version(Object.fromEntries(names.map((name) => [name, "major" as Bump])), "First release.");
  const { status, stdout, stderr } = await release.publish();
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  for (const name of names) expect(stdout).toContain(`${name}@1.0.0`);
  expect(release.packages().get("@mkvm/kvm-v1")?.mkvm?.requires).toEqual({ "@mkvm/kvm-abi": "^1.0.0", "@mkvm/vac": "^1.0.0" });
});

test("a fresh project adds host and kvm-v1 and starts a Linux", minutes(5), async () => {
  await project.pnpm("add", "@mkvm/host", "@mkvm/kvm-v1", `node-${process.platform}-${process.arch}@${OLDEST_NODE}`);
  expect((await project.pnpm("exec", "node", "--version")).trim()).toBe(`v${OLDEST_NODE}`);
  await project.mkvm("up");
  await project.mkvm("insmod", "@mkvm/kvm-v1");
  await project.mkvm("ln", "/dev/kvm1", "/dev/kvm");
  guestArgs = (await linuxGuest("check")) ?? tinyGuest();
  guest = await DaemonGuest.start(project, guestArgs);
  await guest.until("mkvm-check n=", 3);
  expect(await guest.module()).toBe("kvm1");
});

test("kvm-v2 is published and staged under the running Linux, which moves to it and back", minutes(5), async () => {
  release.change("@mkvm/kvm-v2", (manifest) => {
    delete manifest.private;
  });
  await release.version({ "@mkvm/kvm-v2": "major" }, "A KVM with a TDP MMU.");
  expect((await release.publish()).status).toBe(0);

  await project.pnpm("add", "@mkvm/kvm-v2");
  expect(await project.mkvm("insmod", "@mkvm/kvm-v2")).toContain("kvm2 from @mkvm/kvm-v2 1.0.0");
  await project.mkvm("upgrade", String(guest.pid), "--to", "kvm2");
  expect(await guest.module()).toBe("kvm2");
  await guest.until("mkvm-check n=", 3);
  await project.mkvm("rollback", String(guest.pid));
  expect(await guest.module()).toBe("kvm1");
  await guest.until("mkvm-check n=", 3);

  await project.mkvm("rmmod", "kvm2");
  await project.pnpm("remove", "@mkvm/kvm-v2");
  expect(await modules()).toEqual(["kvm1 1.0.0"]);
  const { status, stderr } = await project.attemptMkvm("insmod", "@mkvm/kvm-v2");
  expect(status).not.toBe(0);
  expect(stderr).toBe(
    "mkvm: package @mkvm/kvm-v2 is not installed: add it with 'pnpm add @mkvm/kvm-v2', or give a path to its directory\n",
  );
});

test("two releases of one package run side by side through npm aliases", minutes(5), async () => {
  await release.version({ "@mkvm/kvm-v1": "minor" }, "A release with news.");
  expect((await release.publish()).status).toBe(0);
  await project.pnpm("add", "kvm-v1-next@npm:@mkvm/kvm-v1@1.1.0");
  expect(project.installed("@mkvm/kvm-v1")).toBe("1.0.0");

  const same = await project.attemptMkvm("insmod", "kvm-v1-next");
  expect(same).toMatchObject({ status: 1, stderr: expect.stringContaining("kvm1 is loaded already (@mkvm/kvm-v1 1.0.0)") });
  await project.mkvm("insmod", "kvm-v1-next", "--id", "next");
  expect(await modules()).toEqual(["kvm1 1.0.0", "kvmnext 1.1.0"]);
  await project.mkvm("upgrade", String(guest.pid), "--to", "kvmnext", "--finalize");
  await project.mkvm("rmmod", "kvm1");
  expect(await modules()).toEqual(["kvmnext 1.1.0"]);
  await guest.until("mkvm-check n=", 3);
});

test(
  "a release whose requirements do not fit is refused before its code runs, and the one that fits is named",
  minutes(5),
  async () => {
    const trace = join(project.folder, "code-ran");
    const code = `import { writeFileSync } from "node:fs"; writeFileSync(${JSON.stringify(trace)}, ""); export default {};\n`;
    release.change("@mkvm/kvm-v2", (manifest) => {
      manifest.version = "2.0.0";
      manifest.mkvm = { id: "2", requires: { "@mkvm/kvm-abi": "^1.0.0", "@mkvm/vac": "^2.0.0" } };
    });
    release.write("@mkvm/kvm-v2", "dist/index.js", code);
    expect((await release.publish()).status).toBe(0);
    await project.pnpm("add", "@mkvm/kvm-v2@2.0.0");

    const before = await modules();
    const refusal =
      "@mkvm/kvm-v2 2.0.0 requires @mkvm/vac ^2.0.0, and this host has 1.0.0: update @mkvm/host; release 1.0.0 fits: pnpm add @mkvm/kvm-v2@1.0.0";
    for (const command of ["insmod", "modinfo"]) {
      expect(await project.attemptMkvm(command, "@mkvm/kvm-v2")).toEqual({
        status: 1,
        stdout: "",
        stderr: `mkvm: ${refusal}\n`,
      });
    }
    expect(existsSync(trace)).toBe(false);
    expect(await modules()).toEqual(before);

    await project.pnpm("add", "@mkvm/kvm-v2@1.0.0");
    expect(await project.mkvm("insmod", "@mkvm/kvm-v2")).toContain("kvm2 from @mkvm/kvm-v2 1.0.0");
  },
);

test("a tarball that was tampered with is not installed, and nothing else changes", minutes(5), async () => {
  await release.version({ "@mkvm/kvm-v1": "patch" }, "A repair.");
  expect((await release.publish()).status).toBe(0);
  registry.tamper("@mkvm/kvm-v1", "1.1.1");
  const before = { modules: await modules(), manifest: project.manifest(), installed: project.installed("@mkvm/kvm-v1") };
  const { status, stdout, stderr } = await project.attemptPnpm("add", "@mkvm/kvm-v1@1.1.1", "--config.fetch-retries=0");
  expect(status).not.toBe(0);
  expect(stdout + stderr).toMatch(/integrity/i);
  expect({ modules: await modules(), manifest: project.manifest(), installed: project.installed("@mkvm/kvm-v1") }).toEqual(
    before,
  );
});

test("the Linux noticed nothing of all this", minutes(2), async () => {
  await guest.until("mkvm-check n=", 2);
  const { moves } = (await project.json<(ListedProcess & { moves: number })[]>("ps")).find(({ pid }) => pid === guest.pid)!;
  expect(moves).toBe(3);
  const check = new CheckWorkload(!guestArgs.includes("--format"));
  check.feed(await guest.console());
  expect(check.report.problems).toEqual([]);
  expect(check.report.rounds).toBeGreaterThan(10);
  await project.mkvm("kill", String(guest.pid));
  await project.mkvm("down");
});
