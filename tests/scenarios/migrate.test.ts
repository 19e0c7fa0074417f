/** VMs move between logical CPUs while they run, and notice nothing. */
import { BroadcastChannel } from "node:worker_threads";
import { createHost, type Host, type HostOptions } from "@mkvm/host";
import { expect, test } from "vitest";
import { ConsoleLines } from "./console-lines.ts";
import { linuxGuest, RunningGuest, tinyGuest } from "./running-guest.ts";

const vendors = ["intel", "amd"] as const;

async function withHost(
  vendor: "intel" | "amd",
  body: (host: Host) => Promise<void>,
  options: HostOptions = {},
): Promise<void> {
  const host = await createHost({ directory: import.meta.dirname, vendor, cpus: 2, ...options });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    await body(host);
  } finally {
    await host.close();
  }
}

async function move(host: Host, pid: number, cpu: number): Promise<void> {
  const report = await host.migrate({ pid, cpu });
  expect(report).toMatchObject({ pid, moved: true, toCpu: cpu });
  expect(report.steps.map(({ step }) => step)).toEqual(["check", "prepare", "freeze", "restore", "thaw", "release"]);
  expect(report.blackoutUs).toBeGreaterThan(0);
  expect((await host.ps()).filter((process) => process.pid === pid)).toMatchObject([{ cpu, vms: 1 }]);
  expect(host.process(pid).cpu).toBe(cpu);
}

test.each(vendors)("the tiny guest moves between CPUs and modules under load, with exits in flight (%s)", (vendor) =>
  withHost(vendor, async (host) => {
    const guest = await RunningGuest.start(host, tinyGuest(), { cpu: 0 });
    const other = await RunningGuest.start(host, tinyGuest(), { cpu: 1 });
    await guest.rounds(5);
    for (let round = 0; round < 2; round++) {
      await move(host, guest.pid, 1);
      await guest.rounds(5);
      // The way back between modules crosses CPUs as well
      expect(await host.upgrade({ pid: guest.pid, to: "kvm2" })).toMatchObject([{ moved: true }]);
      await move(host, guest.pid, 0);
      expect(await host.rollback(guest.pid)).toMatchObject({ moved: true, to: "kvm1" });
      await guest.rounds(5);
    }
    await other.rounds(5);
    expect(await guest.stop()).toBe(0);
    expect(guest.report).toMatchObject({ problems: [], ended: true });
    expect(await other.stop()).toBe(0);
    expect((await host.resources()).processes).toEqual([]);
    await host.rmmod("kvm2");
    await host.rmmod("kvm1");
  }),
);

test.each(vendors)(
  "Linux with four CPUs moves between CPUs under load and notices nothing (%s)",
  { timeout: 400_000 },
  (vendor) =>
    withHost(vendor, async (host) => {
      const args = await linuxGuest("check");
      if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
      const guest = await RunningGuest.start(host, [...args, "--cpus", "4"], { cpu: 0 });
      await guest.rounds(2);
      guest.send("mark");
      await guest.until("the mark", () => guest.report.marked);
      for (const cpu of [1, 0, 1]) {
        await move(host, guest.pid, cpu);
        await guest.rounds(2);
      }
      expect(await guest.stop()).toBe(0);
      expect(guest.report.ended).toBe(true);
      // The workload looks at the first CPU's timer alone, which stops while that CPU has nothing to do
      expect(guest.report.problems.filter((problem) => !problem.includes("no timer interrupt"))).toEqual([]);
    }),
);

test.each(vendors)("a CPU keeps its own registers when a VM leaves with the memory in which they lay (%s)", (vendor) =>
  withHost(vendor, async (host) => {
    // Its loop has the other CPU in guest mode, with registers that tell themselves from the kernel's, when this one lets go
    const args = await linuxGuest("check", "256M", 1);
    if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
    // Its calls return to user code, at which the sanitizer looks
    const bystander = await host.run({ program: "./eventfd-program", args: [], cpu: 0 });
    const lines = new ConsoleLines(bystander);
    expect(await lines.next()).toBe("as they were");
    const guest = await RunningGuest.start(host, args, { cpu: 0 });
    await guest.rounds(1);
    for (let round = 0; round < 3; round++) {
      await move(host, guest.pid, 1);
      bystander.write("\n");
      expect(await lines.next()).toBe("still so");
      await guest.rounds(1);
      await move(host, guest.pid, 0);
      await guest.rounds(1);
    }
    expect((await host.dmesg()).filter(({ message }) => message.includes("sanitizer"))).toEqual([]);
    expect(guest.report.problems).toEqual([]);
  }),
);

test("what cannot move is refused before anything has changed", () =>
  withHost("intel", async (host) => {
    const guest = await RunningGuest.start(host, tinyGuest(), { cpu: 0 });
    await guest.rounds(2);
    const { pid } = guest;
    const before = await host.resources();
    await expect(host.migrate({ pid, cpu: 0 })).rejects.toThrow(`process ${pid} is on cpu0 already`);
    await expect(host.migrate({ pid, cpu: 7 })).rejects.toThrow("no cpu 7: this host has 0 to 1");
    await expect(host.migrate({ pid: 99, cpu: 1 })).rejects.toThrow("no process 99");
    const [first, second] = await Promise.allSettled([host.migrate({ pid, cpu: 1 }), host.migrate({ pid, cpu: 1 })]);
    expect(first).toMatchObject({ status: "fulfilled", value: { moved: true } });
    expect(second).toMatchObject({ status: "rejected", reason: { message: expect.stringContaining("is moving to cpu1") } });
    await guest.rounds(2);
    await move(host, pid, 0);
    await guest.rounds(2);
    const after = await host.resources();
    expect(after.processes.map(({ moduleFiles }) => moduleFiles)).toEqual(
      before.processes.map(({ moduleFiles }) => moduleFiles),
    );
    expect(after.vpids).toBe(before.vpids);
    expect(await guest.stop()).toBe(0);
  }));

test("a process that is killed on its way has ended, and nothing is left of it on either CPU", () =>
  withHost("intel", async (host) => {
    for (let round = 0; round < 3; round++) {
      const guest = await RunningGuest.start(host, tinyGuest(), { cpu: 0 });
      await guest.rounds(1);
      const moving = host.migrate({ pid: guest.pid, cpu: 1 });
      const killed = host.kill(guest.pid);
      await Promise.allSettled([moving, killed]);
      // The kill may have come to the CPU that had it before
      await host.kill(guest.pid).catch(() => {});
      expect((await guest.process.exited).reason).toBe("killed");
      expect(await host.ps()).toEqual([]);
      expect(await host.resources()).toMatchObject({ vpids: 0, timers: {}, processes: [] });
    }
    await host.rmmod("kvm1");
  }));

test.each(vendors)(
  "a CPU's thread dies while a VM leaves it: that VM runs on, those that stayed have ended, nothing is left of them (%s)",
  (vendor) =>
    withHost(vendor, async (host) => {
      await host.insmod("./faulty-module", { parameters: { ends_thread: true } });
      const there = await RunningGuest.start(host, tinyGuest(), { cpu: 1 });
      const stays = await RunningGuest.start(host, tinyGuest(), { cpu: 0 });
      const leaves = await RunningGuest.start(host, tinyGuest(), { cpu: 0, device: "/dev/kvmfaulty" });
      for (const guest of [there, stays, leaves]) await guest.rounds(2);
      const before = await host.resources();
      const { pid } = leaves;
      const report = await host.migrate({ pid, cpu: 1 });
      expect(report).toMatchObject({ moved: true, notReleased: "cpu0 stopped: its thread ended with status 3" });
      expect(await stays.process.exited).toMatchObject({ reason: "crashed" });
      await leaves.rounds(5);
      await there.rounds(2);
      // AMD's have ASIDs, which VAC gives each CPU anew
      const after = await host.resources();
      expect([before.vpids, after.vpids]).toEqual(vendor === "intel" ? [3, 2] : [0, 0]);
      const pagesOf = (usage: typeof before) => usage.processes.find((process) => process.pid === pid)!.modulePages;
      // Its tables are built in another order, but those of the dead CPU are free
      expect(pagesOf(after)).toBeLessThan(1.5 * pagesOf(before));
      for (const guest of [there, leaves]) {
        expect(await guest.stop()).toBe(0);
        expect(guest.report).toMatchObject({ problems: [], ended: true });
      }
      expect(await host.resources()).toMatchObject({ vpids: 0, timers: {}, processes: [] });
      for (const module of ["kvmfaulty", "kvm2", "kvm1"]) await host.rmmod(module);
      // Its claim has ended with that CPU's part in it
      expect((await host.insmod("@mkvm/kvm-v1")).name).toBe("kvm1");
    }),
);

test.each(vendors)(
  "a CPU hangs while a VM leaves it, and comes back: it touches that VM no more, and its others go on (%s)",
  (vendor) =>
    withHost(
      vendor,
      async (host) => {
        await host.insmod("./faulty-module", { parameters: { hangs: true } });
        const there = await RunningGuest.start(host, tinyGuest(), { cpu: 1 });
        const stays = await RunningGuest.start(host, tinyGuest(), { cpu: 0 });
        const leaves = await RunningGuest.start(host, tinyGuest(), { cpu: 0, device: "/dev/kvmfaulty" });
        for (const guest of [there, stays, leaves]) await guest.rounds(2);
        const { pid } = leaves;
        const report = await host.migrate({ pid, cpu: 1 });
        expect(report).toMatchObject({ moved: true, notReleased: expect.stringContaining("cpu0 did not answer within") });
        for (const guest of [leaves, there]) await guest.rounds(5);
        const back = new Promise<void>((resolve) => host.onLog(({ message }) => message === "cpu0 answers again" && resolve()));
        const channel = new BroadcastChannel("faulty-module");
        channel.postMessage("come back");
        await back;
        channel.close();
        for (const guest of [leaves, there, stays]) await guest.rounds(5);
        expect((await host.ps()).map((process) => [process.pid, process.cpu])).toEqual([
          [there.pid, 1],
          [stays.pid, 0],
          [pid, 1],
        ]);
        for (const guest of [leaves, there, stays]) {
          expect(await guest.stop()).toBe(0);
          expect(guest.report).toMatchObject({ problems: [], ended: true });
        }
        expect(await host.resources()).toMatchObject({ vpids: 0, timers: {}, processes: [] });
        for (const module of ["kvmfaulty", "kvm2", "kvm1"]) await host.rmmod(module);
      },
      { answerMs: 3000 },
    ),
);
