import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it, vi } from "vitest";
import { runExternalCommand } from "../src/cli/external-commands.ts";

const cli = fileURLToPath(new URL("../src/cli.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "mkvm-cli-"));
const environment = { ...process.env, MKVM_STATE_DIR: join(folder, "state") };

interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

function mkvm(...words: string[]): Promise<Ended> {
  return mkvmIn(process.cwd(), ...words);
}

function mkvmIn(cwd: string, ...words: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, ...words], { env: environment, cwd, stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (bytes) => {
      stdout += bytes;
    });
    child.stderr.on("data", (bytes) => {
      stderr += bytes;
    });
    child.on("close", (status) => resolve({ status, stdout, stderr }));
  });
}

async function json(...words: string[]): Promise<unknown> {
  const { stdout, stderr } = await mkvm(...words, "--json");
  expect(stderr).toBe("");
  return JSON.parse(stdout);
}

function image(name: string, ...bytes: number[]): string {
  const path = join(folder, name);
  writeFileSync(path, Uint8Array.from(bytes));
  return path;
}

const flat = ["--memory", "16M", "--", "--format", "flat16"];
const flat64 = ["--memory", "16M", "--format", "flat64"];
/** mov al, 42; out 0xf4, al */
const exits = image("exits.bin", 0xb0, 0x2a, 0xe6, 0xf4, 0xf4);
/** mov dx, 0x3f8; mov al, '!'; out dx, al; hlt; jmp to hlt */
const waits = image("waits.bin", 0xba, 0xf8, 0x03, 0xb0, 0x21, 0xee, 0xf4, 0xeb, 0xfd);
/** lidt [0x600]; int 3 */
const faults = image("faults.bin", 0x0f, 0x01, 0x1e, 0x00, 0x06, 0xcd, 0x03);

afterAll(async () => {
  await mkvm("down");
  rmSync(folder, { recursive: true, force: true });
});

describe("without a daemon", () => {
  it("runs a VM and ends with its status", async () => {
    expect(await mkvm("run", "--kernel", exits, ...flat)).toEqual({ status: 85, stdout: "", stderr: "" });
    const fault = await mkvm("run", "--kernel", faults, "--clock", "icount", ...flat);
    expect(fault.status).toBeGreaterThan(1);
    expect(fault.stderr).toMatch(/^vCPU 0: triple fault at .*\n$/);
  });

  it.each(["off", "hot", "always"])("tells what the engine did in mode %s", async (engine) => {
    const run = await mkvm("run", "--kernel", exits, "--engine", engine, "--engine-stats", "--json", ...flat64);
    expect(run).toMatchObject({ status: 85, stdout: "" });
    const report = JSON.parse(run.stderr);
    expect(report).toMatchObject({ mode: engine, exits: expect.arrayContaining([{ reason: "io", count: 1 }]) });
    expect(report.retiredInstructions).toBeGreaterThanOrEqual(1);
    expect(report.translator.regionsMade > 0).toBe(engine === "always");
    expect(report.blocks.decoded).toBeGreaterThan(0);
    expect(Object.values(report.timeMs as Record<string, number>).reduce((sum, ms) => sum + ms, 0)).toBeGreaterThan(0);
  });

  it("shows them to a person, on the standard error that the guest does not use", async () => {
    const { stdout, stderr } = await mkvm("run", "--kernel", exits, "--engine-stats", ...flat);
    expect(stdout).toBe("");
    expect(stderr).toMatch(/guest instructions in .*\ntranslation hot: .*\n\nTRANSLATED CODE\n/);
    expect(stderr).toMatch(/\nTIME OF THE CPU'S THREAD, SAMPLED.*\n(.+ ms +[\d.]+ %\n)+\nVM EXITS .*\n(.*\n)*io +1 /);
  });

  it.each([
    [["lsmod"], "mkvm: no daemon is running: start one with 'mkvm up'\n"],
    [["down"], "mkvm: no daemon is running: start one with 'mkvm up'\n"],
    [["run", "--kernel", "/nowhere"], "mkvm: --kernel /nowhere: no such file\n"],
    [["run", "--kernel", exits, "--memory", "much"], "mkvm: 'much' is no size: write a number with K, M or G, as in 256M\n"],
    [["run", "--kernel", exits, "--memory", "9G"], /^mkvm: 9663676416 bytes of memory are too many: .*\n$/],
    [["run", "--kernel", exits, "--module", "@mkvm/kvm-v99"], /^mkvm: package @mkvm\/kvm-v99 is not installed: .*\n$/],
    [["run", "--kernel", exits, "--param", "speed=1"], /^mkvm: @mkvm\/kvm-v1 has no parameter 'speed': it has .*\n$/],
    [["run", "--kernel", exits, "--detach"], "mkvm: --detach needs a daemon: start one with 'mkvm up'\n"],
    [["stat"], "mkvm: no daemon is running: start one with 'mkvm up'\n"],
    [["stat", "one"], "mkvm: 'one' is no process: give a pid, see 'mkvm ps'\n"],
    [["stat", "--times", "2"], /^mkvm: --times goes with --watch: .*\n$/],
    [["stat", "--watch", "0"], /'--watch <seconds>' argument '0' is invalid. give seconds, from 0.1 on/],
    [["stat", "--watch", "1", "--times", "0"], /argument '0' is invalid. give a number from 1 on/],
    [["run"], "mkvm: give what to boot: --kernel IMAGE, or UEFI firmware with --pflash CODE --pflash VARIABLES\n"],
    [["run", "--pflash", exits, "/nowhere"], "mkvm: --pflash /nowhere: no such file\n"],
    [
      ["run", "--kernel", exits, "--pflash", exits],
      "mkvm: --pflash and --kernel do not go together: firmware finds by itself what to boot\n",
    ],
    [["up", "--cpus", "65"], /a machine has 1 to 64 CPUs, not 65/],
    [
      ["up", "--cpu", "i486"],
      /'--cpu <model>' argument 'i486' is invalid. Allowed choices are x86-64-v1, x86-64-v2, x86-64-v3, max\./,
    ],
    [["frobnicate"], "error: unknown command 'frobnicate'\n(see 'mkvm help')\n"],
  ])("refuses %j in a line", async (words, message) => {
    const { status, stderr } = await mkvm(...words);
    expect(status).toBe(1);
    if (typeof message === "string") expect(stderr).toBe(message);
    else expect(stderr).toMatch(message);
  });

  it("shows examples in the help of every command", async () => {
    const { stdout } = await mkvm("--help");
    const commands = [...stdout.matchAll(/^ {2}([a-z-]+) .*$/gm)]
      .map((match) => match[1]!)
      .filter((name) => name !== "mkvm" && name !== "help" && !["ab", "abi"].includes(name));
    expect(commands.length).toBe(26);
    for (const command of commands) expect((await mkvm(command, "--help")).stdout, command).toMatch(/Examples?:\n/);
  });
});

describe("commands of other packages", () => {
  it("says in a line that one needs its package", async () => {
    const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    expect(await runExternalCommand(["ab", "run", "plan.json"], [folder])).toBe(127);
    expect(await runExternalCommand(["help", "abi"], [folder])).toBe(127);
    expect(write.mock.calls).toEqual([
      ["mkvm ab needs the package @mkvm/ab: pnpm add -D @mkvm/ab\n"],
      ["mkvm abi needs the package @mkvm/abi-gate: pnpm add -D @mkvm/abi-gate\n"],
    ]);
    write.mockRestore();
    expect(await runExternalCommand(["lsmod"], [folder])).toBeUndefined();
  });

  it("hands its words to the package in the user's project, and ends with its status", async () => {
    const project = projectWith("export const runCommandLine = async (words) => (console.log(words.join(' ')), 7);");
    expect(await mkvmIn(project, "ab", "run", "--help", "-x")).toEqual({ status: 7, stdout: "run --help -x\n", stderr: "" });
    expect(await mkvmIn(project, "help", "ab")).toEqual({ status: 7, stdout: "--help\n", stderr: "" });
  });

  it.each([
    ["export const other = 1;", "mkvm: @mkvm/ab 3.1.4 has no command line for this mkvm: update it and @mkvm/host together\n"],
    ["throw new Error('broken');", "mkvm: @mkvm/ab 3.1.4 cannot be imported: broken\n"],
  ])("refuses a package of %j in a line", async (code, stderr) => {
    expect(await mkvmIn(projectWith(code), "ab")).toEqual({ status: 1, stdout: "", stderr });
  });
});

/** A project that has an @mkvm/ab with this code. */
function projectWith(code: string): string {
  const project = mkdtempSync(join(folder, "project-"));
  const directory = join(project, "node_modules", "@mkvm", "ab");
  mkdirSync(directory, { recursive: true });
  const json = { name: "@mkvm/ab", version: "3.1.4", type: "module", exports: "./index.js" };
  writeFileSync(join(directory, "package.json"), JSON.stringify(json));
  writeFileSync(join(directory, "index.js"), code);
  return project;
}

describe("with a daemon", () => {
  it("loads, links, runs, moves, and says no with a reason", async () => {
    expect(await mkvm("up")).toMatchObject({ status: 0, stdout: expect.stringMatching(/1 CPU\(s\), wall clock/) });
    expect(await mkvm("up")).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/the daemon runs already, as process \d+: stop it with 'mkvm down'/),
    });
    expect(await mkvm("run", "--kernel", waits, ...flat)).toMatchObject({
      status: 1,
      stderr:
        "mkvm: the daemon has no /dev/kvm: load a module ('mkvm insmod @mkvm/kvm-v1') and link it ('mkvm ln /dev/kvm1 /dev/kvm')\n",
    });
    expect(await json("insmod", "@mkvm/kvm-v1")).toMatchObject({ name: "kvm1", devices: ["/dev/kvm1"] });
    expect(await json("insmod", "@mkvm/kvm-v1", "max_vcpus=4", "--id", "9")).toMatchObject({
      name: "kvm9",
      parameters: { max_vcpus: 4 },
    });
    expect((await mkvm("insmod", "@mkvm/kvm-v1")).stderr).toMatch(/kvm1 is loaded already .*: choose another id with --id/);
    expect((await mkvm("insmod", "@mkvm/kvm-v1", "--id", "8", "max_vcpus=0")).stderr).toMatch(
      "max_vcpus=0 is refused: it takes a whole number from 1",
    );
    await mkvm("ln", "/dev/kvm1", "/dev/kvm");
    expect((await mkvm("ls")).stdout).toMatch(/\/dev\/kvm +link +\/dev\/kvm1\n\/dev\/kvm1 +node +module kvm1\n/);

    expect(await mkvm("run", "--kernel", exits, ...flat)).toMatchObject({ status: 85 });
    const { stdout } = await mkvm("run", "--kernel", waits, "--detach", ...flat);
    const pid = stdout.trim();
    expect(await json("ps")).toMatchObject([{ pid: Number(pid), name: "vmm", vms: 1, modules: ["kvm1"] }]);
    expect(await json("stat")).toMatchObject([{ pid: Number(pid), process: "vmm", id: `kvm-${pid}`, module: "kvm1" }]);
    const stat = await mkvm("stat", pid);
    expect(stat.stdout).toMatch(
      new RegExp(`^process ${pid} \\(vmm\\), VM kvm-${pid} on kvm1\nSTATISTIC +VM +VCPU 0\n(.*\n)*io_exits +- +1\n`),
    );
    expect(stat.stdout).not.toMatch(/nested_run/);
    expect((await mkvm("stat", pid, "--all")).stdout).toMatch(/\nnested_run +- +0\n/);
    const watched = (await mkvm("stat", "--watch", "0.1", "--times", "2", "--json")).stdout.trim().split("\n");
    expect(watched.map((line) => JSON.parse(line)[0].pid)).toEqual([Number(pid), Number(pid)]);
    expect((await mkvm("stat", "--watch", "0.1", "--times", "2")).stdout.match(/STATISTIC/g)?.length).toBe(2);
    expect(await mkvm("stat", "77")).toMatchObject({ status: 1, stderr: "mkvm: no process 77: see 'mkvm ps'\n" });
    const engine = (await json("engine-stats", pid)) as { timeMs?: unknown };
    expect(engine).toMatchObject({ pid: Number(pid), mode: "hot" });
    expect(engine.timeMs).toBeUndefined();
    expect((await mkvm("engine-stats", "77")).stderr).toBe("mkvm: no process 77: see 'mkvm ps'\n");
    expect(await mkvm("rmmod", "kvm1")).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/kvm1 is in use by process \d+ \(vmm: fd \d+ \/dev\/kvm/),
    });
    expect(await json("upgrade", pid, "--to", "kvm9")).toMatchObject([
      { moved: true, from: "kvm1", to: "kvm9", finalised: false },
    ]);
    expect(await json("rollback", pid)).toMatchObject([{ moved: true, to: "kvm1" }]);
    expect((await mkvm("rollback", pid)).stderr).toMatch("has nothing to roll back to, it has not moved");
    expect(await json("upgrade", "--all", "--to", "kvm9")).toMatchObject([{ moved: true }]);
    expect(await json("finalize", pid)).toEqual({ released: ["kvm1"] });
    expect(await mkvm("rmmod", "kvm1")).toMatchObject({ status: 0 });
    expect(await mkvm("upgrade", pid, "--to", "kvm1")).toMatchObject({
      status: 1,
      stderr: "mkvm: no module kvm1 is loaded: there is kvm9\n",
    });
    expect((await mkvm("console", pid, "--dump")).stdout).toBe("!");
    expect((await mkvm("dmesg")).stdout).toMatch(
      /^\[ +\d+\.\d{6}\] host: process \d+ moved from kvm1 to kvm9, blackout [\d.]+ us$/m,
    );
    expect(await mkvm("kill", pid)).toMatchObject({ status: 0, stderr: "" });
    expect(await json("stat", pid)).toMatchObject([{ pid: Number(pid), module: "kvm9" }]);
    expect(await mkvm("stat")).toMatchObject({ status: 1, stderr: "mkvm: no VM runs: see 'mkvm ps'\n" });
    expect((await mkvm("kill", pid)).stderr).toBe(`mkvm: no process ${pid}: see 'mkvm ps'\n`);
    expect(await mkvm("down")).toMatchObject({ status: 0, stderr: "" });
    expect((await mkvm("ps")).status).toBe(1);
  });

  it("rolls out, takes back, and draws a move", { timeout: 600_000 }, async () => {
    await mkvm("up");
    await mkvm("insmod", "@mkvm/kvm-v1");
    await mkvm("insmod", "@mkvm/kvm-v1", "--id", "9");
    await mkvm("ln", "/dev/kvm1", "/dev/kvm");
    const pid = (await mkvm("run", "--kernel", waits, "--detach", ...flat)).stdout.trim();
    const rollout = ["rollout", "--from", "kvm1", "--to", "kvm9", "--baseline", "50ms", "--soak", "50ms"];
    expect(await json(...rollout, "--dry-run")).toMatchObject({ waves: [[{ pid: Number(pid), blocker: null }]], left: [] });
    expect((await mkvm("rollout", "status")).stderr).toBe("mkvm: there was no rollout: begin one with 'mkvm rollout start'\n");
    expect(await mkvm(...rollout, "--health", "exits=many")).toMatchObject({
      status: 1,
      stderr: "mkvm: rollout: health.exits: give a multiple, as 1.5\n",
    });
    expect(await mkvm(...rollout, "--wait")).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/wave 1 of 1: healthy\n(.*\n)*.*done: 1 VM on kvm9\n(.*\n)*kvm1 -> kvm9: done\n/),
    });
    expect((await mkvm("rollout", "status")).stdout).toMatch(new RegExp(`1 +${pid} +vmm +healthy`));
    expect(await json("rollout", "abort", "--all")).toMatchObject({ status: "aborted", vms: [{ state: "rolled back" }] });

    const trace = join(folder, "move.json");
    expect(await json("upgrade", pid, "--to", "kvm9", "--trace", trace)).toMatchObject([
      { moved: true, from: "kvm1", to: "kvm9", finalised: false },
    ]);
    const { traceEvents } = JSON.parse(readFileSync(trace, "utf8")) as { traceEvents: { name: string }[] };
    expect(traceEvents.map(({ name }) => name)).toEqual(expect.arrayContaining(["freeze", "save", "blackout"]));
    await mkvm("down");
  });
});
