/**
 * CPUs whose threads hang, as a module in an endless loop would have them: whoever asks one is told so by name, the rest of the host
 * goes on, and when such a CPU comes back it is as the others are.
 */
import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import type { ProcessHandle } from "../src/control/process-handle.ts";
import type { MoveLimits, ResourceUsage } from "../src/control/types.ts";
import { comesBack, createTestHost, printed, run, textOf, threadHangs } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

/** Longer than a thread that does not hang needs. */
const answerMs = 1500;
const silent = (cpu: number) => `cpu${cpu} did not answer within ${answerMs} ms`;
const refusal = (cpu: number) => ({ code: "ETIMEDOUT", message: expect.stringContaining(silent(cpu)) });

/** Two CPUs, with kvma that fails so and kvmb. */
async function start(fail = "none", options: { failB?: string } & Partial<MoveLimits> = {}): Promise<void> {
  const { failB = "none", ...moveLimits } = options;
  host = await createTestHost(2, { answerMs, moveLimits });
  await host.insmod("./fake-kvm-a", { parameters: { fail } });
  await host.insmod("./fake-kvm-b", { parameters: { fail: failB } });
  await host.ln("/dev/kvma", "/dev/kvm");
}

async function vmOn(cpu: number): Promise<ProcessHandle> {
  const process = await run(host, ["migrant"], { cpu });
  await printed(process, "ready");
  return process;
}

/** Hangs the CPU that the process is on, from within its module. */
async function hang(process: ProcessHandle): Promise<void> {
  process.write("hang\n");
  await threadHangs(host);
}

/** Resolves when the VM has counted on from now. */
async function goesOn(process: ProcessHandle): Promise<void> {
  let isNew = false;
  let counts = 0;
  const on = Promise.withResolvers<void>();
  const stop = process.onOutput((bytes) => {
    if (isNew && new TextDecoder().decode(bytes).includes("count") && ++counts === 2) on.resolve();
  });
  isNew = true;
  const ended = process.exited.then(() => {
    throw new Error(`process ${process.pid} ended`);
  });
  await Promise.race([on.promise, ended]).finally(stop);
}

const states = async () => (await host.cpus()).map(({ state }) => state);
const pids = async () => (await host.ps()).map(({ pid }) => pid);
const messages = async () => (await host.dmesg()).map(({ message }) => message).join("\n");
const modules = async () => (await host.lsmod()).map(({ name }) => name);

it("a host whose CPU never starts is refused by name, and does not wait for it", async () => {
  const cpuEntry = new URL("data:text/javascript,setInterval(() => {}, 1000)");
  await expect(createTestHost(1, { cpuEntry, answerMs: 10 })).rejects.toMatchObject({
    code: "ETIMEDOUT",
    message: "cpu0 did not start within 10 ms: give it longer, or the host fewer CPUs",
  });
});

describe("what goes over all CPUs", () => {
  it("lists tell of the others, and the CPU is named until it answers", async () => {
    await start();
    const [other, victim] = [await vmOn(0), await vmOn(1)];
    await hang(victim);
    expect(await pids()).toEqual([other.pid]);
    expect(await states()).toEqual(["online", "silent"]);
    expect((await host.cpus())[1]!.pids).toEqual([victim.pid]);
    expect((await host.lsmod()).map(({ users }) => users.map(({ pid }) => pid))).toEqual([Array(3).fill(other.pid), []]);
    expect((await host.resources()).processes).toMatchObject([{ pid: other.pid }]);
    expect(await host.modinfo("kvmb")).toMatchObject({ loadedAs: ["kvmb"] });
    await goesOn(other);
    await comesBack(host);
    expect(await pids()).toEqual([other.pid, victim.pid]);
    expect(await states()).toEqual(["online", "online"]);
    expect(await messages()).toMatch(new RegExp(`${silent(1)}(.|\n)*cpu1 answers again`));
    await goesOn(victim);
  });

  it("changes are refused by name, and nothing has changed", async () => {
    await start();
    const [other, victim] = [await vmOn(0), await vmOn(1)];
    const { pid } = victim;
    const before = [await host.ls(), await modules()];
    await hang(victim);
    const changes = [
      () => host.insmod("./fake-kvm-a", { id: "c" }),
      () => host.rmmod("kvmb"),
      () => host.rmmod("kvma", { whenIdle: true }),
      () => host.ln("/dev/kvmb", "/dev/kvm"),
      () => host.unlink("/dev/kvm"),
      () => host.mount("/dev/kvmb", "/dev/kvm"),
      () => host.mount("/dev/kvmb", "/dev/kvm", { pid }),
      () => host.suspend(),
      () => host.offline(1),
      () => run(host, ["hello"], { cpu: 1 }),
      () => host.migrate({ pid: other.pid, cpu: 1 }),
      () => host.migrate({ pid, cpu: 0 }),
      () => host.upgrade({ pid, to: "kvmb" }),
      () => host.checkUpgrade({ pid, to: "kvmb" }),
      () => host.rollback(pid),
      () => host.finalize(pid),
      () => host.save({ pid, path: "/nowhere" }),
      () => host.statistics(pid),
    ];
    for (const change of changes) await expect(change()).rejects.toMatchObject(refusal(1));
    expect([await host.ls(), await modules()]).toEqual(before);
    expect((await (await run(host, ["hello"])).exited).status).toBe(7);
    await goesOn(other);
    await comesBack(host);
    expect([await host.ls(), await modules()]).toEqual(before);
    expect(await host.ps()).toMatchObject([
      { pid: other.pid, cpu: 0 },
      { pid, cpu: 1, modules: ["kvma"], state: "running" },
    ]);
    await host.ln("/dev/kvmb", "/dev/kvm");
    await host.rmmod("kvma", { whenIdle: true });
    expect(await host.insmod("./fake-kvm-a", { id: "c" })).toMatchObject({ name: "kvmc" });
    expect(textOf(await ended(["open", "/dev/kvm", "/dev/kvma", "/dev/kvmc"], 1))).toMatch(/kvm ok.*\n.*kvma -.*\n.*kvmc ok/);
  });

  it("a kill and input wait for it", async () => {
    await start();
    const [stopped, killed] = [await vmOn(1), await vmOn(1)];
    await hang(killed);
    await expect(host.kill(killed.pid)).rejects.toMatchObject(refusal(1));
    stopped.write("stop\n");
    await comesBack(host);
    expect(await killed.exited).toMatchObject({ reason: "killed" });
    expect(await stopped.exited).toMatchObject({ reason: "exited", status: 0 });
  });

  it("one that hangs in the middle of a change makes it when it comes back, before anything else", async () => {
    await start("exit-hangs");
    expect(await host.rmmod("kvma")).toBe(true);
    expect(await modules()).toEqual(["kvmb"]);
    expect(await states()).toEqual(["silent", "silent"]);
    await expect(host.insmod("./fake-kvm-a")).rejects.toMatchObject({ code: "ETIMEDOUT" });
    await comesBack(host);
    await expect.poll(states).toEqual(["online", "online"]);
    await host.insmod("./fake-kvm-a");
    for (const cpu of [0, 1]) expect(textOf(await ended(["open", "/dev/kvma"], cpu))).toContain("/dev/kvma ok");
  });

  it("a module that hangs in init is loaded nowhere, and what it comes to is unloaded", async () => {
    await start();
    const loading = host.insmod("./fake-kvm-a", { id: "c", parameters: { fail: "init-hangs" } });
    await expect(loading).rejects.toMatchObject(refusal(0));
    expect(await modules()).toEqual(["kvma", "kvmb"]);
    await comesBack(host);
    expect(textOf(await ended(["open", "/dev/kvmc"], 0))).toContain("/dev/kvmc -");
    expect(await host.insmod("./fake-kvm-a", { id: "c" })).toMatchObject({ name: "kvmc" });
  });

  it("modules that wait for their last user are unloaded when a CPU that hung has answered that it has none", async () => {
    await start();
    const [last, victim] = [await vmOn(0), await run(host, ["migrant", "idle", "/dev/kvmb"], { cpu: 1 })];
    await printed(victim, "ready");
    expect(await host.rmmod("kvma", { whenIdle: true })).toBe(false);
    await hang(victim);
    last.write("stop\n");
    await last.exited;
    await expect.poll(messages, { timeout: 10 * answerMs }).toContain(`kvma could not be unloaded: ${silent(1)}`);
    await comesBack(host);
    await expect.poll(modules).toEqual(["kvmb"]);
  });

  it("it can be ended: its processes with it, and the host goes on", async () => {
    await start();
    const [other, victim] = [await vmOn(0), await vmOn(1)];
    await hang(victim);
    await host.killCpu(1);
    expect(await victim.exited).toMatchObject({ reason: "crashed", message: expect.stringContaining("cpu1 stopped") });
    expect(await states()).toEqual(["online", "gone"]);
    await host.insmod("./fake-kvm-a", { id: "c" });
    await expect(host.killCpu(1)).rejects.toThrow("cpu1 stopped");
    await goesOn(other);
  });
});

async function ended(args: string[], cpu: number): Promise<ProcessHandle> {
  const process = await run(host, args, { cpu });
  await process.exited;
  return process;
}

describe("upgrades", () => {
  it("of all VMs: those of other CPUs move, and the others are named", async () => {
    await start();
    const [one, victim, two] = [await vmOn(0), await vmOn(1), await vmOn(0)];
    await hang(victim);
    const reports = await host.upgrade({ pid: "all", to: "kvmb" });
    expect(reports).toMatchObject([
      { pid: one.pid, moved: true },
      { pid: two.pid, moved: true },
      {
        pid: victim.pid,
        from: "",
        to: "kvmb",
        moved: false,
        failed: { step: "check", reason: expect.stringContaining(silent(1)) },
      },
    ]);
  });

  it("one that was asked for and not begun never begins", async () => {
    await start();
    const victim = await vmOn(1);
    await hang(victim);
    await expect(host.upgrade({ pid: victim.pid, to: "kvmb" })).rejects.toMatchObject(refusal(1));
    await comesBack(host);
    await goesOn(victim);
    expect(await host.ps()).toMatchObject([{ modules: ["kvma"], moves: 0 }]);
  });

  it("one in the middle of which the new module hangs ends when that comes back, and upgrades elsewhere do not wait", async () => {
    await start("none", { failB: "restore-hangs" });
    const victim = await vmOn(1);
    const other = await run(host, ["migrant", "100000", "/dev/kvmb"], { cpu: 0 });
    await printed(other, "ready");
    const upgrading = host.upgrade({ pid: victim.pid, to: "kvmb" });
    upgrading.catch(() => {});
    await threadHangs(host);
    expect(await host.upgrade({ pid: other.pid, to: "kvma" })).toMatchObject([{ moved: true }]);
    await expect(upgrading).rejects.toMatchObject(refusal(1));
    await comesBack(host);
    await expect.poll(() => host.ps()).toMatchObject([{ pid: victim.pid, modules: ["kvmb"] }, { pid: other.pid }]);
    await goesOn(victim);
  });
});

describe("moves to another CPU", () => {
  /** On cpu0 and whole, with nothing of an attempt left anywhere; it can move. */
  async function isAsBefore(process: ProcessHandle, before: ResourceUsage): Promise<void> {
    await goesOn(process);
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 0, modules: ["kvma"], vms: 1 }]);
    expect(await host.resources()).toEqual(before);
    process.write("ioctl\n");
    await printed(process, "did ioctl");
  }

  it("the old CPU hangs while it describes the VM: refused, and what comes late is taken back", async () => {
    await start("describe-hangs");
    const process = await vmOn(0);
    const before = await host.resources();
    await expect(host.migrate({ pid: process.pid, cpu: 1 })).rejects.toMatchObject(refusal(0));
    await comesBack(host);
    await isAsBefore(process, before);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true });
  });

  it("the old CPU hangs while the other prepares: the VM stays", async () => {
    await start("prepare-late");
    const [process, victim] = [await vmOn(0), await vmOn(0)];
    const before = await host.resources();
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    await expect.poll(async () => (await host.lsmod())[0]!.users.some(({ what }) => what === "is moving to cpu1")).toBe(true);
    await hang(victim);
    await expect.poll(states, { timeout: 10 * answerMs }).toEqual(["silent", "online"]);
    await ended(["open", "/dev/kvma"], 1);
    expect((await moving).failed).toMatchObject({ step: "prepare", reason: expect.stringContaining(silent(0)) });
    await comesBack(host);
    await goesOn(process);
    await goesOn(victim);
    expect(await host.resources()).toEqual(before);
  });

  it("the old CPU hangs in the freeze: the VM goes on there when that comes back, and can move", async () => {
    await start("save-hangs");
    const process = await vmOn(0);
    const before = await host.resources();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, failed: { step: "freeze", reason: expect.stringContaining(silent(0)) } });
    expect(await messages()).toContain(`process ${process.pid} stays on cpu0: freeze failed: ${silent(0)}`);
    await comesBack(host);
    await isAsBefore(process, before);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true });
  });

  it("the old CPU hangs before every thread is out: it need not stand still any more when that comes back", async () => {
    await start("none", { freezeMs: 3_600_000 });
    const [process, victim] = [await vmOn(0), await vmOn(0)];
    process.write("stick\n");
    await printed(process, "does stick");
    const moving = host.migrate({ pid: process.pid, cpu: 1 });
    await expect.poll(async () => (await host.ps())[0]!.state).toBe("frozen");
    await hang(victim);
    expect((await moving).failed).toMatchObject({ step: "freeze", reason: expect.stringContaining(silent(0)) });
    await comesBack(host);
    await goesOn(process);
    victim.write("stick\n");
    await printed(process, "did stick");
    await goesOn(process);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true });
  });

  it("the other CPU hangs in restore: the VM goes on where it was, and pages are set aside until that comes back", async () => {
    await start("restore-hangs", { prepareMs: answerMs });
    const process = await vmOn(0);
    const before = await host.resources();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, failed: { step: "restore", reason: expect.stringContaining(silent(1)) } });
    await goesOn(process);
    const { modulePages } = (await host.resources()).processes[0]!;
    expect(modulePages).toBeGreaterThan(before.processes[0]!.modulePages);
    await comesBack(host);
    await expect.poll(() => host.resources()).toEqual(before);
    await isAsBefore(process, before);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true });
  });

  it("the other CPU refuses, and the old one hangs before it hears that the VM stays: both are told", async () => {
    await start("save-hangs-soon-restore-refuses");
    const process = await vmOn(0);
    const before = await host.resources();
    const { failed } = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(failed!.step).toBe("restore");
    expect(failed!.reason).toMatch(new RegExp(`the counter is not to my taste; and ${silent(0)}`));
    await comesBack(host);
    await isAsBefore(process, before);
  });

  it("the old CPU hangs while it lets go: the VM runs on the other, and on that alone", async () => {
    await start("release-hangs");
    const process = await vmOn(0);
    const { modulePages } = (await host.resources()).processes[0]!;
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: true, toCpu: 1, notReleased: expect.stringContaining(silent(0)) });
    await goesOn(process);
    const held = async () => (await host.resources()).processes.map((each) => each.modulePages);
    await comesBack(host);
    // What the first preparation takes, beside the page that the VMM has mapped
    await expect.poll(held).toEqual([modulePages + 3]);
    expect(await host.ps()).toMatchObject([{ pid: process.pid, cpu: 1 }]);
    await goesOn(process);
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
    expect(await host.resources()).toMatchObject({ timers: {}, processes: [] });
  });

  it("the other CPU hangs before it begins to run the VM: that goes on where it was, and never there", async () => {
    await start("restore-hangs-soon", { prepareMs: answerMs });
    const [process, bystander] = [await vmOn(0), await vmOn(1)];
    const before = await host.resources();
    const report = await host.migrate({ pid: process.pid, cpu: 1 });
    expect(report).toMatchObject({ moved: false, failed: { step: "thaw", reason: expect.stringContaining(silent(1)) } });
    expect(process.cpu).toBe(0);
    expect(await states()).toEqual(["online", "silent"]);
    await goesOn(process);
    await comesBack(host);
    await goesOn(bystander);
    await expect.poll(() => host.resources()).toEqual(before);
    expect(await host.ps()).toMatchObject([
      { pid: process.pid, cpu: 0 },
      { pid: bystander.pid, cpu: 1 },
    ]);
    await goesOn(process);
    expect(await host.migrate({ pid: process.pid, cpu: 1 })).toMatchObject({ moved: true });
    await goesOn(process);
  });

  it("the other CPU hangs when it may have begun to run the VM: its thread ends first, and others of it with that", async () => {
    await start("run-hangs");
    const [process, bystander] = [await vmOn(0), await vmOn(1)];
    await expect(host.migrate({ pid: process.pid, cpu: 1 })).rejects.toThrow(
      `process ${process.pid} was lost on its way to cpu1: thaw failed: ${silent(1)}`,
    );
    expect(await states()).toEqual(["online", "gone"]);
    expect(await process.exited).toMatchObject({ status: 134, message: expect.stringContaining("it was lost between CPUs") });
    expect(await bystander.exited).toMatchObject({ status: 134, message: expect.stringContaining("cpu1 stopped") });
    await goesOn(await vmOn(0));
  });
});
