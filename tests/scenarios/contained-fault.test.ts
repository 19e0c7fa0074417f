import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { RunningGuest, tinyGuest } from "./running-guest.ts";

test("a module that throws while running a VM stops that VM; others on its CPU run on and move, and nothing is left", async () => {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.insmod("./faulty-module");
    const other = await RunningGuest.start(host, tinyGuest(), { device: "/dev/kvm1" });
    await other.rounds(5);
    const before = await host.resources();
    const faulty = await host.run({ args: [...tinyGuest(), "--device", "/dev/kvmfaulty"] });
    const exit = await faulty.exited;
    expect(exit.reason).toBe("exited");
    expect(new TextDecoder().decode(faulty.console())).toContain("KVM internal error");
    const log = (await host.dmesg()).find(({ source }) => source === "kvmfaulty");
    expect(log?.message).toMatch(/exception while running kvm-vcpu:0 of process 2 .*a fault in the run loop/);
    await other.rounds(5);
    const after = await host.resources();
    expect(after.vpids).toBe(before.vpids);
    expect(after.processes.map(({ pid }) => pid)).toEqual([other.pid]);
    expect(Object.keys(after.timers)).not.toContain("kvmfaulty");
    await host.rmmod("kvmfaulty");
    expect((await host.upgrade({ pid: other.pid, to: "kvm2" }))[0]).toMatchObject({ moved: true });
    await other.rounds(5);
    expect(await other.stop()).toBe(0);
    expect(other.report).toMatchObject({ problems: [], ended: true });
  } finally {
    await host.close();
  }
});
