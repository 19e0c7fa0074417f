/**
 * Moves between CPUs with everything going wrong on the CPU that a VM comes to: afterwards the VM is on one CPU and one module, runs,
 * nothing is left behind, and the log says why.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import type { ProcessHandle } from "../src/control/process-handle.ts";
import { noEngineAt, noTakeOverAt } from "./fixtures/fake-hardware.ts";
import { lateMs } from "./fixtures/fake-module.ts";
import { createTestHost, letGo, printed, run, textOf, threadHangs } from "./fixtures/test-host.ts";

let host: Host;

/** Longer than anything takes that ends by itself. */
const patientMs = 60_000;

/** A VM on cpu0, and its module on both CPUs with a step that fails. */
async function start(fail: string, prepareMs = patientMs, args = ["migrant"]): Promise<ProcessHandle> {
  host = await createTestHost(2, { moveLimits: { prepareMs } });
  await host.insmod("./fake-kvm-a", { parameters: { fail } });
  await host.insmod("./fake-kvm-b");
  await host.ln("/dev/kvma", "/dev/kvm");
  const process = await run(host, args, { cpu: 0 });
  await printed(process, "ready");
  return process;
}

async function messages(): Promise<string> {
  return (await host.dmesg()).map(({ source, message }) => `${source}: ${message}`).join("\n");
}

/** Resolves when the VM has counted on. */
async function goesOn(process: ProcessHandle): Promise<void> {
  const counts = () => textOf(process).split("count").length;
  await printed(process, "count", counts() + 2);
}

async function endsWell(process: ProcessHandle): Promise<void> {
  process.write("stop\n");
  expect((await process.exited).status).toBe(0);
  expect(await host.resources()).toMatchObject({ timers: {}, processes: [] });
}

/** What moves leave behind: module pages, timers and descriptors. */
const usage = () => host.resources();

describe("each step can go wrong", () => {
  // One host, with a module for each thing that goes wrong
  let modules = 0;
  beforeAll(async () => {
    host = await createTestHost(2);
    await host.insmod("./fake-kvm-b");
  });
  afterAll(() => host.close());
  const startOn = async (fail: string): Promise<{ process: ProcessHandle; kvm: string }> => {
    const { name } = await host.insmod("./fake-kvm-a", { id: String(++modules), parameters: { fail } });
    const process = await run(host, ["migrant", "100000", `/dev/${name}`], { cpu: 0 });
    await printed(process, "ready");
    return { process, kvm: name };
  };

  it.each([
    ["prepare-refuses", "prepare", "this module takes no VMs today"],
    ["prepare-throws", "prepare", "prepare threw"],
    ["prepare-answers", "prepare", "KVM: prepare answered no incoming VM: save, commit, abort missing"],
    ["prepare-no-memory", "prepare", "no memory for its tables: errno 12"],
    ["restore-refuses", "restore", "the counter is not to my taste"],
    ["restore-throws", "restore", "restore threw"],
    ["restore-answers", "restore", "restore answered with a promise"],
    ["save-again-throws", "restore", "save threw"],
    ["save-again-answers", "restore", "save answered no list of sections"],
    ["verify", "restore", "KVM restored another state: section vm.counter[0] differs at byte"],
    ["commit", "restore", "commit threw"],
    ["commit-answers", "restore", "KVM gave no operations for"],
    ["commit-foreign", "restore", "KVM gave operations of 'kvmz' for"],
  ] as const)("on the CPU that a VM comes to: %s", async (fail, step, reason) => {
    const { process, kvm } = await startOn(fail);
    const before = await usage();
    for (let attempt = 0; attempt < 2; attempt++) {
      const report = await host.migrate({ pid: process.pid, cpu: 1 });
      expect(report).toMatchObject({ moved: false, fromCpu: 0, failed: { step } });
      expect(report.failed!.reason).toContain(reason.replace("KVM", kvm));
    }
    expect(await messages()).toContain(`process ${process.pid} stays on cpu0: ${step} failed: `);
    expect(await usage()).toEqual(before);
    await goesOn(process);
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 0, modules: [kvm], vms: 1 }]);
    // The other module takes it here, and carries it there
    expect(await host.upgrade({ pid: process.pid, to: "kvmb" })).toMatchObject([{ moved: true }]);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true, toCpu: 1 });
    await goesOn(process);
    await endsWell(process);
  });

  it.each([
    ["describe-throws", "describe threw"],
    ["describe-answers", "KVM: describe answered no { sections, early }"],
    ["save", "save threw"],
    ["save-answers", "save answered a section that is none: vm.counter"],
  ] as const)("and on the one that it leaves: %s", async (fail, reason) => {
    const { process, kvm } = await startOn(fail);
    const before = await usage();
    const outcome = await host.migrate({ pid: process.pid, cpu: 1 }).then(
      ({ failed }) => failed?.reason,
      (thrown: Error) => thrown.message,
    );
    expect(outcome).toContain(reason.replace("KVM", kvm));
    expect(await usage()).toEqual(before);
    await goesOn(process);
    await endsWell(process);
  });
});

describe("what never ends", () => {
  afterEach(() => host.close());

  it("a module that does not come back from prepare is given up, and what it writes to stays set aside until it does", async () => {
    const process = await start("prepare-late", 50);
    const before = await usage();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report.failed).toMatchObject({ step: "prepare", reason: "kvma did not finish preparing within 50 ms" });
    expect(report.blackoutUs).toBe(0);
    await goesOn(process);
    const held = (await usage()).processes[0]!.modulePages;
    expect(held).toBeGreaterThan(before.processes[0]!.modulePages);
    const again = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(again.failed?.reason).toContain("kvma on cpu1 has not come back from preparing an earlier move");
    await (await run(host, ["open", "/dev/kvma"], { cpu: 1 })).exited;
    expect(await messages()).toContain(`kvma: prepared process ${process.pid} after the move was given up: aborted`);
    await endsWell(process);
  });

  it("a process that is killed ends at once, not when the other CPU answers", async () => {
    const process = await start("prepare-hangs", 3_600_000);
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    await host.kill(process.pid);
    expect(await host.ps()).toEqual([]);
    expect(await messages()).toContain(`process ${process.pid} ended: killed`);
    expect((await moving).failed).toMatchObject({ step: "prepare", reason: `process ${process.pid} ended` });
  });

  it("it does not take the VM's memory over: the VM stays", async () => {
    const process = await start("none");
    const before = await usage();
    Atomics.store(new Int32Array(host.machine.devices), noTakeOverAt, 1);
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, failed: { step: "thaw" } });
    expect(report.failed!.reason).toMatch(/bank \d+ cannot be taken over/);
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 0, vms: 1 }]);
    expect(await usage()).toEqual(before);
    await goesOn(process);
    await endsWell(process);
  });

  it("no engine can be made for its guest: it never stood still, and comes when one can", async () => {
    const process = await start("none");
    const before = await usage();
    const devices = new Int32Array(host.machine.devices);
    Atomics.store(devices, noEngineAt, 1);
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, blackoutUs: 0, failed: { step: "prepare" } });
    expect(report.failed!.reason).toMatch(/no engine can be made for bank \d+/);
    expect(await usage()).toEqual(before);
    Atomics.store(devices, noEngineAt, 0);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true, toCpu: 1 });
    await goesOn(process);
    await endsWell(process);
  });

  it("the VM stands still until its guest is entered, and no shorter is the blackout that is told", async () => {
    const process = await start("run-late");
    const { moved, blackoutUs } = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(moved).toBe(true);
    expect(blackoutUs).toBeGreaterThanOrEqual(lateMs * 1000);
    await endsWell(process);
  });

  it("a VM that does not come for long keeps those that wait for it from running for a moment alone", async () => {
    const process = await start("save-hangs");
    const there = await run(host, ["migrant"], { cpu: 1 });
    await printed(there, "ready");
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    await threadHangs(host);
    await goesOn(there);
    letGo(host);
    expect(await moving).toMatchObject({ moved: true, toCpu: 1 });
    await goesOn(process);
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
    await goesOn(there);
    await endsWell(there);
  });

  it("a process comes whose vCPU does not run", async () => {
    const process = await start("none", patientMs, ["migrant", "idle"]);
    for (const cpu of [1, 0, 1])
      expect(await host.migrate({ pid: process.pid, cpu })).toMatchObject({ moved: true, toCpu: cpu });
    await endsWell(process);
  });
});

describe("a CPU's thread that dies in a move", () => {
  afterEach(() => host.close());

  it.each([
    ["prepare", "prepare-ends-thread"],
    ["restore", "restore-ends-thread"],
    ["thaw", "restore-ends-thread-soon"],
  ] as const)("the one that a VM comes to, in %s: the VM stays", async (step, fail) => {
    const process = await start(fail);
    const before = await usage();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, failed: { step, reason: "cpu1 stopped: its thread ended with status 3" } });
    expect(await messages()).toContain(`process ${process.pid} stays on cpu0: ${step} failed: cpu1 stopped`);
    expect(await usage()).toEqual(before);
    await goesOn(process);
    await endsWell(process);
  });

  it.each([
    ["save", "as soon as it has given the state"],
    ["release", "while it lets go"],
  ] as const)("the one that a VM leaves, in %s, %s: the VM runs on the other", async (step, _when) => {
    const process = await start(`${step}-ends-thread`);
    const before = await usage();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({
      moved: true,
      toCpu: 1,
      notReleased: "cpu0 stopped: its thread ended with status 3",
    });
    expect(process.cpu).toBe(1);
    const { pid } = process;
    expect(await messages()).toContain(`process ${pid} goes on on cpu1; its old CPU did not let go of it: cpu0 stopped`);
    // What the old module had is free again, but for the page that the VMM has mapped
    const tables = 3;
    const { modulePages } = before.processes[0]!;
    expect((await usage()).processes).toMatchObject([{ pid, modulePages: modulePages + tables }]);
    expect(await host.ps()).toMatchObject([{ pid, cpu: 1, modules: ["kvma"], vms: 1 }]);
    await goesOn(process);
    await endsWell(process);
  });

  it("the one that a VM leaves, in the middle of thaw: the VM runs on the other", async () => {
    const process = await start("run-hangs");
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    await threadHangs(host);
    await host.killCpu(0);
    letGo(host);
    expect(await moving).toMatchObject({ moved: true, toCpu: 1, notReleased: expect.stringContaining("cpu0 stopped") });
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 1, modules: ["kvma"], vms: 1 }]);
    await goesOn(process);
    await endsWell(process);
  });

  it("before it has given the state: the VM has ended, and nothing is left on the other", async () => {
    const process = await start("describe-ends-thread");
    await expect(host.migrate({ pid: process.pid, cpu: 1 })).rejects.toThrow("cpu0 stopped");
    expect(await process.exited).toMatchObject({ status: 134, reason: "crashed" });
    expect(await usage()).toMatchObject({ timers: {}, processes: [] });
    await endsWell(await run(host, ["migrant"], { cpu: 1 }));
  });

  it("afterwards, and the other one does not take it: the VM has ended", async () => {
    const process = await start("save-ends-thread-restore-refuses");
    // The new one may refuse before the old one is dead
    const reason = await host.migrate({ pid: process.pid, cpu: 1 }).then(
      ({ failed }) => failed?.reason,
      (thrown: Error) => thrown.message,
    );
    expect(reason).toContain("the counter is not to my taste");
    const message = expect.stringContaining("cpu0 stopped: its thread ended with status 3");
    expect(await process.exited).toMatchObject({ status: 134, reason: "crashed", message });
    expect(await usage()).toMatchObject({ timers: {}, processes: [] });
    await endsWell(await run(host, ["migrant"], { cpu: 1 }));
  });

  it("modules that wait for their last user are unloaded when it went with its CPU", async () => {
    const process = await start("describe-ends-thread");
    expect(await host.rmmod("kvma", { whenIdle: true })).toBe(false);
    await expect(host.migrate({ pid: process.pid, cpu: 1 })).rejects.toThrow("cpu0 stopped");
    await expect.poll(async () => (await host.lsmod()).map(({ name }) => name)).toEqual(["kvmb"]);
  });
});

describe("what else is asked for in the middle", () => {
  afterEach(() => host.close());

  /** Prepare on the other CPU waits until somebody opens the module's device there. */
  const letPrepare = async () => (await run(host, ["open", "/dev/kvma"], { cpu: 1 })).exited;

  it.each(["close", "open"])("a VMM that does this to its VMs is told to be moved again: %s", async (what) => {
    const process = await start("prepare-late");
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    process.write(`${what}\n`);
    await printed(process, `did ${what}`);
    await letPrepare();
    const { failed } = await moving;
    expect(failed?.reason).toMatch(what === "open" ? /opened or closed meanwhile: move it again/ : /has no VM/);
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 0 }]);
    expect((await usage()).timers).toEqual({});
    await host.kill(process.pid);
  });

  it("ioctls go on; a second move, an upgrade, unloading the module and taking a CPU out of use are refused by name", async () => {
    const process = await start("prepare-late");
    const { pid } = process;
    const moving = host.migrate({ pid, cpu: 1 });
    process.write("ioctl\n");
    await printed(process, "did ioctl");
    await expect(host.migrate({ pid, cpu: 1 })).rejects.toThrow(
      `process ${pid} (programs) cannot move to cpu1: it is moving to cpu1`,
    );
    await expect(host.upgrade({ pid, to: "kvmb" })).rejects.toThrow(`process ${pid} is moving to cpu1: wait for that to end`);
    await expect(host.rmmod("kvma")).rejects.toMatchObject({ code: "EBUSY" });
    await expect(host.offline(0)).rejects.toThrow("it is moving to cpu1");
    await expect(host.offline(1)).rejects.toThrow(`process ${pid} is moving to cpu1: wait for that to end`);
    await expect(host.suspend()).rejects.toThrow("is moving to cpu1");
    expect((await host.cpus()).map(({ state }) => state)).toEqual(["online", "online"]);
    await letPrepare();
    expect(await moving).toMatchObject({ moved: true, toCpu: 1 });
    expect(await host.ps()).toMatchObject([{ pid, cpu: 1, modules: ["kvma"] }]);
    await goesOn(process);
    await endsWell(process);
  });

  it("many moves leave nothing behind, and idle time passes on the CPU that the VM left", async () => {
    const process = await start("none");
    const there = async (cpu: number) => {
      expect(await host.migrate({ pid: process.pid, cpu })).toMatchObject({ moved: true });
      // The module's timer expires when the CPU that the VM comes to is idle before it has come, which may be or not
      return (await usage()).processes;
    };
    await there(1);
    const first = await there(0);
    for (let round = 0; round < 4; round++) {
      await there(1);
      expect(await there(0)).toEqual(first);
    }
    await there(1);
    await printed(await run(host, ["halt", "5000000000"], { cpu: 0 }), "woken 0");
    await endsWell(process);
  });
});
