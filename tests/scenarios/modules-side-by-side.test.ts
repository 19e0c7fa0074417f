import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { RunningGuest, tinyGuest } from "./running-guest.ts";

test("two modules, and two instances of one with other parameters, each run a VM at the same time", async () => {
  const host = await createHost({ directory: import.meta.dirname, cpus: 2 });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2", { parameters: { halt_poll_ns: "0" } });
    await host.insmod("@mkvm/kvm-v2", { id: "3", parameters: { halt_poll_ns: "50000", huge_pages: "false" } });
    const modules = await host.lsmod();
    expect(modules.map(({ name, package: from, parameters }) => [name, from, parameters.halt_poll_ns])).toEqual([
      ["kvm1", "@mkvm/kvm-v1", undefined],
      ["kvm2", "@mkvm/kvm-v2", 0],
      ["kvm3", "@mkvm/kvm-v2", 50000],
    ]);
    const guests = await Promise.all(
      ["/dev/kvm1", "/dev/kvm2", "/dev/kvm3"].map((device) => RunningGuest.start(host, tinyGuest(), { device })),
    );
    await Promise.all(guests.map((guest) => guest.rounds(20)));
    const users = (await host.lsmod()).map((module) => new Set(module.users.map((user) => user.pid)));
    expect(users).toEqual(guests.map((guest) => new Set([guest.pid])));
    for (const guest of guests) expect(await guest.stop()).toBe(0);
    for (const guest of guests) expect(guest.report.problems).toEqual([]);
    for (const name of ["kvm1", "kvm2", "kvm3"]) await host.rmmod(name);
    expect(await host.lsmod()).toEqual([]);
  } finally {
    await host.close();
  }
});

test("the device link decides which module the next VM gets, and leaves running ones alone", async () => {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const first = await RunningGuest.start(host, tinyGuest());
    await first.rounds(3);
    await host.ln("/dev/kvm2", "/dev/kvm");
    const second = await RunningGuest.start(host, tinyGuest());
    await second.rounds(3);
    const modules = Object.fromEntries((await host.ps()).map((process) => [process.pid, process.modules]));
    expect(modules).toEqual({ [first.pid]: ["kvm1"], [second.pid]: ["kvm2"] });
    expect([await first.stop(), await second.stop()]).toEqual([0, 0]);
  } finally {
    await host.close();
  }
});

test("a module in use is busy, says who uses it, and goes once nobody does", async () => {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    const guest = await RunningGuest.start(host, tinyGuest(), { device: "/dev/kvm1" });
    await guest.rounds(2);
    await expect(host.rmmod("kvm1")).rejects.toThrow(new RegExp(`EBUSY|in use.*${guest.pid}`));
    await guest.rounds(2);
    await host.kill(guest.pid);
    await guest.process.exited;
    await host.rmmod("kvm1");
  } finally {
    await host.close();
  }
});

test("an id that is taken, parameters out of range and unknown modules are refused, and VMs go on", async () => {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    const guest = await RunningGuest.start(host, tinyGuest(), { device: "/dev/kvm1" });
    await guest.rounds(2);
    await expect(host.insmod("@mkvm/kvm-v2", { id: "1" })).rejects.toThrow(/kvm1/);
    await expect(host.insmod("@mkvm/kvm-v2", { parameters: { halt_poll_ns: "99999999999" } })).rejects.toThrow(/halt_poll_ns/);
    await expect(host.insmod("@mkvm/kvm-v2", { parameters: { no_such: "1" } })).rejects.toThrow(/no_such/);
    await expect(host.insmod("@mkvm/kvm-v99")).rejects.toThrow(/@mkvm\/kvm-v99/);
    await expect(host.upgrade({ pid: guest.pid, to: "kvm9" })).rejects.toThrow(/kvm9/);
    await expect(host.upgrade({ pid: 4711, to: "kvm1" })).rejects.toThrow(/4711/);
    expect((await host.lsmod()).map((module) => module.name)).toEqual(["kvm1"]);
    await guest.rounds(2);
    expect(await guest.stop()).toBe(0);
  } finally {
    await host.close();
  }
});
