/** The machine sleeps, and its CPUs lose power: VMs on every module and both vendors go on as if nothing had been. */
import { createHost, type Host, type ProcessHandle } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, smpTestGuest, tinyGuest } from "./running-guest.ts";

const vendors = ["intel", "amd"] as const;
const modules = ["kvm1", "kvm2"] as const;

async function machine(vendor: "intel" | "amd", clock: "icount" | "wall", cpus = 1): Promise<Host> {
  const host = await createHost({ directory: import.meta.dirname, clock, vendor, cpus });
  for (const version of ["v1", "v2"]) await host.insmod(`@mkvm/kvm-${version}`);
  return host;
}

function start(host: Host, module: string, args: readonly string[], cpu = 0): Promise<ProcessHandle> {
  return host.run({ args: [...args, "--digest"], cpu, mounts: [{ source: `/dev/${module}`, target: "/dev/kvm" }] });
}

/** The console to the end; `sleeps`: the machine sleeps and wakes so often while the guest talks. */
async function consoleOf(host: Host, process: ProcessHandle, sleeps: number): Promise<{ console: string; slept: number }> {
  const decoder = new TextDecoder();
  let console = "";
  let slept = 0;
  for await (const chunk of process.output) {
    console += decoder.decode(chunk, { stream: true });
    if (slept >= sleeps) continue;
    await host.suspend();
    // Its last words may come from a process that is gone
    for (const { state } of await host.ps()) expect(state).toBe("frozen");
    await host.resume();
    slept++;
  }
  expect(await process.exited).toMatchObject({ reason: "exited" });
  return { console, slept };
}

test.each(vendors.flatMap((vendor) => modules.map((module) => [vendor, module] as const)))(
  "on %s, a guest of %s ends the same with sleeps and without, and nothing was lost",
  async (vendor, module) => {
    const runs = [];
    for (const sleeps of [0, 12]) {
      const host = await machine(vendor, "icount");
      try {
        runs.push(await consoleOf(host, await start(host, module, tinyGuest(50)), sleeps));
        const complaints = (await host.dmesg()).filter(({ message }) => /sanitizer|did not come back/.test(message));
        expect(complaints).toEqual([]);
        expect(await host.resources()).toMatchObject({ vpids: 0, processes: [] });
      } finally {
        await host.close();
      }
    }
    const [still, sleepy] = runs;
    expect(sleepy!.slept).toBeGreaterThan(3);
    expect(sleepy!.console).toBe(still!.console);
  },
);

test("VMs with several vCPUs on several CPUs and modules sleep together, and move after it", { timeout: 200_000 }, async () => {
  const host = await machine("intel", "wall", 2);
  try {
    const { args, passed } = smpTestGuest();
    const processes = [await start(host, "kvm1", args, 0), await start(host, "kvm2", args, 1)];
    for (let sleep = 0; sleep < 3; sleep++) {
      await host.suspend();
      await host.resume();
    }
    await host.upgrade({ pid: "all", to: "kvm2" });
    for (const process of processes) expect(await process.exited).toMatchObject({ status: passed });
  } finally {
    await host.close();
  }
});

test("a host that sleeps tells what it has, refuses all else, and can be shut down", async () => {
  const host = await machine("intel", "wall");
  try {
    await expect(host.resume()).rejects.toThrow("the host is not suspended");
    const process = await start(host, "kvm2", tinyGuest(1_000_000));
    // Its VM is there when the guest talks
    await process.output[Symbol.asyncIterator]().next();
    await host.suspend();
    await expect(host.suspend()).rejects.toThrow("the host is suspended: wake it with 'mkvm resume' first");
    await expect(host.kill(process.pid)).rejects.toThrow("the host is suspended: wake it with 'mkvm resume' first");
    await expect(host.run({ args: tinyGuest(1) })).rejects.toThrow("the host is suspended");
    await expect(host.offline(0)).rejects.toThrow("the host is suspended");
    await expect(host.upgrade({ pid: process.pid, to: "kvm1" })).rejects.toThrow("the host is suspended");
    expect(await host.ps()).toHaveLength(1);
    expect((await host.lsmod()).map(({ name }) => name)).toEqual(["kvm1", "kvm2"]);
    const before = await host.statistics(process.pid);
    expect(await host.statistics(process.pid)).toEqual(before);
    await host.resume();
    await host.upgrade({ pid: process.pid, to: "kvm1" });
    await host.suspend();
  } finally {
    await host.close();
  }
});

test.each(vendors)("Linux on %s sleeps while it boots, and does not notice", { timeout: 400_000 }, async (vendor) => {
  // One that talks while it boots
  const args = (await linuxGuest("poweroff"))?.map((word) => word.replace(" quiet ", " "));
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  const host = await machine(vendor, "wall");
  try {
    const { console, slept } = await consoleOf(host, await start(host, "kvm2", args), 20);
    expect(slept).toBe(20);
    expect(console).toContain("mkvm-guest: user space reached");
    expect(console).not.toMatch(/BUG:|WARNING: CPU|Call Trace|Oops|clocksource.*unstable/);
  } finally {
    await host.close();
  }
});

test("CPUs go out of use under VMs that run, and come back for others", { timeout: 200_000 }, async () => {
  const host = await machine("intel", "wall", 3);
  try {
    const { args, passed } = smpTestGuest();
    const processes = [await start(host, "kvm1", tinyGuest(1_000_000), 1), await start(host, "kvm2", args, 1)];
    await expect(host.offline(7)).rejects.toThrow("no cpu 7: this host has 0 to 2");
    await host.offline(1);
    await host.offline(0);
    await expect(host.offline(1)).rejects.toThrow("cpu1 is offline");
    await expect(host.offline(2)).rejects.toThrow("cpu2 is the last one in use");
    await expect(host.online(2)).rejects.toThrow("cpu2 is online already");
    await expect(start(host, "kvm1", args, 1)).rejects.toThrow("cpu1 is offline: 'mkvm cpu online 1' brings it back");
    expect(await host.cpus()).toMatchObject([
      { state: "offline", pids: [] },
      { state: "offline", pids: [] },
      { state: "online", pids: expect.arrayContaining([processes[0]!.pid]) },
    ]);
    expect(await processes[1]!.exited).toMatchObject({ status: passed });
    // A module that is loaded meanwhile is there when the CPU comes back; the machine may sleep with a CPU out of use
    await host.insmod("@mkvm/kvm-v2", { id: "9" });
    await host.suspend();
    await host.resume();
    expect((await host.cpus()).map(({ state }) => state)).toEqual(["offline", "offline", "online"]);
    await host.online(1);
    expect(await (await start(host, "kvm9", args, 1)).exited).toMatchObject({ status: passed });
    const { moved } = await host.migrate({ pid: processes[0]!.pid, cpu: 1 });
    expect(moved).toBe(true);
    expect((await host.dmesg()).filter(({ message }) => message.includes("sanitizer"))).toEqual([]);
  } finally {
    await host.close();
  }
});
