/** Moves with everything going wrong that can: afterwards the VM is on one module, nothing is left behind, and the log says why. */
import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import type { ProcessHandle } from "../src/control/process-handle.ts";
import type { ResourceUsage } from "../src/control/types.ts";
import { createHostWithModules, createTestHost, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

/** Short for what never ends, and for what is to come too late; long for what ends by itself, on a busy machine too. */
const prepareMs = (fail: string): number => (/^prepare-(hangs|late)$/.test(fail) ? 50 : 60_000);

async function start(failing: "a" | "b", fail: string, args: string[]): Promise<ProcessHandle> {
  host = await createTestHost(1, { moveLimits: { prepareMs: prepareMs(fail) } });
  for (const letter of ["a", "b"]) {
    await host.insmod(`./fake-kvm-${letter}`, { parameters: { fail: letter === failing ? fail : "none" } });
  }
  await host.ln("/dev/kvma", "/dev/kvm");
  return run(host, args);
}

async function messages(): Promise<string> {
  return (await host.dmesg()).map(({ source, message }) => `${source}: ${message}`).join("\n");
}

/** A halted or running vCPU arms no timer of the fake module's own, so that what is counted is what moves leave. */
function usage(): Promise<ResourceUsage> {
  return host.resources();
}

describe("each step of a move can go wrong", () => {
  it.each([
    ["a", "describe", "check", "does not know the required section vm.secret"],
    ["a", "describe-throws", "check", "describe threw"],
    ["a", "describe-answers", "check", "kvma: describe answered no { sections, early }"],
    ["b", "prepare-refuses", "prepare", "this module takes no VMs today"],
    ["b", "prepare-throws", "prepare", "prepare threw"],
    ["b", "prepare-hangs", "prepare", "kvmb did not finish preparing within 50 ms"],
    ["b", "prepare-answers", "prepare", "kvmb: prepare answered no incoming VM: save, commit, abort missing"],
    ["b", "prepare-no-memory", "prepare", "no memory for its tables: errno 12"],
    ["a", "save", "save", "save threw"],
    ["a", "save-answers", "save", "kvma: save answered a section that is none: vm.counter"],
    ["b", "restore-refuses", "restore", "the counter is not to my taste"],
    ["b", "restore-throws", "restore", "restore threw"],
    ["b", "restore-answers", "restore", "kvmb: restore answered with a promise"],
    ["b", "save-again-throws", "verify", "save threw"],
    ["b", "save-again-answers", "verify", "kvmb: save answered no list of sections"],
    ["b", "verify", "verify", "kvmb restored another state: section vm.counter[0] differs at byte"],
    ["b", "commit", "commit", "commit threw"],
    ["b", "commit-answers", "commit", "kvmb gave no operations for"],
    ["b", "commit-foreign", "commit", "kvmb gave operations of 'kvmz' for"],
  ] as const)("%s %s", async (which, fail, step, reason) => {
    const process = await start(which, fail, ["count", "100000"]);
    await printed(process, "count");
    const before = await usage();
    for (let attempt = 0; attempt < 2; attempt++) {
      const [report] = await host.upgrade({ pid: process.pid, to: "kvmb" });
      expect(report).toMatchObject({ moved: false, failed: { step } });
      expect(report!.failed!.reason).toContain(reason);
    }
    expect(await messages()).toContain(`stays on kvma: ${step} on kvmb failed: `);
    // Of prepare-throws: what a module itself drops before it throws is its own
    if (fail !== "prepare-throws") expect(await usage()).toEqual(before);
    await printed(process, "count", 3);
    expect((await host.ps())[0]).toMatchObject({ modules: ["kvma"], moves: 0, previous: [] });
    await host.rmmod("kvmb");
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
    expect((await usage()).processes).toEqual([]);
  });

  it("says so when taking back fails too, and the VM runs on", async () => {
    host = await createTestHost();
    await host.insmod("./fake-kvm-a", { parameters: { fail: "save" } });
    await host.insmod("./fake-kvm-b", { parameters: { fail: "abort" } });
    await host.ln("/dev/kvma", "/dev/kvm");
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    expect((await host.upgrade({ pid: process.pid, to: "kvmb" }))[0]).toMatchObject({ failed: { step: "save" } });
    expect(await messages()).toContain("kvmb: exception while aborting a move: Error: abort threw");
    await printed(process, "count", 3);
  });

  it("leaves nothing behind over many moves", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    const there = async () => {
      await host.upgrade({ pid: process.pid, to: "kvmb" });
      return usage();
    };
    const first = await there();
    for (let round = 0; round < 5; round++) {
      await host.rollback(process.pid);
      expect(await there()).toEqual(first);
    }
  });
});

describe("what happens during prepare", () => {
  it("aborts an incoming VM that comes after the limit", async () => {
    const process = await start("b", "prepare-late", ["restless", "ioctl"]);
    await printed(process, "ready");
    const before = await usage();
    const [report] = await host.upgrade({ pid: process.pid, to: "kvmb" });
    expect(report).toMatchObject({ failed: { step: "prepare" } });
    const opened = await run(host, ["open", "/dev/kvmb"]);
    await opened.exited;
    expect(await messages()).toContain("kvmb: prepared process 1 after the move was given up: aborted");
    expect((await usage()).processes).toEqual(before.processes);
    await host.rmmod("kvmb");
  });

  it.each([
    ["close", "kvm-vm"],
    ["open", "kvm-vm"],
  ])("a VMM that does this to its VMs is told to be moved again: %s", async (what) => {
    const process = await start("b", "prepare-late", ["restless", what]);
    await printed(process, "ready");
    const before = await usage();
    const move = host.upgrade({ pid: process.pid, to: "kvmb" });
    process.write("go\n");
    await printed(process, `did ${what}`);
    const opened = await run(host, ["open", "/dev/kvmb"]);
    await opened.exited;
    const [report] = await move;
    expect(report).toMatchObject({ moved: false });
    expect(report!.failed!.reason).toMatch(/opened or closed meanwhile|did not finish preparing/);
    const after = await usage();
    expect(after.timers).toEqual(before.timers);
    expect((await host.ps())[0]!.modules).toEqual(["kvma"]);
  });

  it("a second upgrade is refused by name, and ioctls go on", async () => {
    const process = await start("b", "prepare-late", ["restless", "ioctl"]);
    await printed(process, "ready");
    const move = host.upgrade({ pid: process.pid, to: "kvmb" });
    await expect(host.upgrade({ pid: process.pid, to: "kvmb" })).rejects.toThrow("process 1 is moving to kvmb");
    process.write("go\n");
    await printed(process, "did ioctl");
    expect((await move)[0]).toMatchObject({ failed: { step: "prepare" } });
  });

  it("a process that is killed ends at once, not when prepare does", async () => {
    host = await createTestHost(1, { moveLimits: { prepareMs: 3_600_000 } });
    await host.insmod("./fake-kvm-a");
    await host.insmod("./fake-kvm-b", { parameters: { fail: "prepare-hangs" } });
    await host.ln("/dev/kvma", "/dev/kvm");
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    const move = host.upgrade({ pid: process.pid, to: "kvmb" });
    await host.kill(process.pid);
    expect((await move)[0]).toMatchObject({ failed: { step: "prepare", reason: "the process ended" } });
    expect((await usage()).processes).toEqual([]);
  });
});

describe("a CPU's thread that dies in a move", () => {
  it("takes its VMs along, and nobody else's", async () => {
    host = await createTestHost(2);
    await host.insmod("./fake-kvm-a");
    await host.insmod("./fake-kvm-b", { parameters: { fail: "prepare-ends-thread" } });
    await host.ln("/dev/kvma", "/dev/kvm");
    const lost = await run(host, ["count", "100000"], { cpu: 0 });
    const other = await run(host, ["count", "100000"], { cpu: 1 });
    await printed(lost, "count");
    await printed(other, "count");
    await expect(host.upgrade({ pid: lost.pid, to: "kvmb" })).rejects.toThrow("cpu0 stopped");
    expect(await lost.exited).toMatchObject({ status: 134, reason: "crashed" });
    expect((await host.ps()).map(({ pid }) => pid)).toEqual([other.pid]);
    expect(await messages()).toContain("cpu0 stopped: its thread ended with status 3");
    await expect(run(host, ["count"], { cpu: 0 })).rejects.toThrow("cpu0 stopped");
    const next = await run(host, ["count", "100000"]);
    expect(next.cpu).toBe(1);
    await printed(next, "count");
    await host.insmod("./fake-kvm-b", { id: "c" });
    expect((await host.upgrade({ pid: next.pid, to: "kvmc" }))[0]).toMatchObject({ moved: true });
    other.write("stop\n");
    expect((await other.exited).status).toBe(0);
  });
});

describe("a module that throws while it runs a VM", () => {
  it("stops that VM with KVM_EXIT_INTERNAL_ERROR on each vCPU, and no other", async () => {
    host = await createHostWithModules();
    const other = await run(host, ["count", "100000"]);
    const process = await run(host, ["faulty"]);
    await printed(process, "system");
    const lines = textOf(process).trim().split("\n").sort();
    expect(lines).toEqual(["first 0 17 4d4b564d", "second 0 17", "system true", "then -5 -5"]);
    expect(await messages()).toMatch(/kvma: exception while running kvm-vcpu:0 of process 2 .*a fault while running/);
    await expect(host.upgrade({ pid: process.pid, to: "kvmb" })).rejects.toThrow(/cannot move: kvma failed while it ran it/);
    await printed(other, "count", 2);
    expect((await host.upgrade({ pid: other.pid, to: "kvmb" }))[0]).toMatchObject({ moved: true });
    process.write("end\n");
    expect((await process.exited).status).toBe(5);
    other.write("stop\n");
    expect((await other.exited).status).toBe(0);
    await host.rmmod("kvma");
  });
});
