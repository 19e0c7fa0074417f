import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { createHostWithModules, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

/** Resolves when the log says so. */
function logged(text: string): Promise<void> {
  return new Promise((resolve) => {
    const stop = host.onLog((entry) => {
      if (!entry.message.includes(text)) return;
      stop();
      resolve();
    });
  });
}

async function names(): Promise<string[]> {
  return (await host.lsmod()).map(({ name }) => name);
}

describe("rmmod when idle", () => {
  it("unloads at once what nobody uses", async () => {
    host = await createHostWithModules();
    expect(await host.rmmod("kvmb", { whenIdle: true })).toBe(true);
    expect(await names()).toEqual(["kvma"]);
  });

  it("lets the last user go first: a move that is finalised", async () => {
    host = await createHostWithModules(2);
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    expect(await host.rmmod("kvma", { whenIdle: true })).toBe(false);
    expect(await host.lsmod()).toMatchObject([{ name: "kvma", draining: true }, { name: "kvmb" }]);
    const late = await run(host, ["open", "/dev/kvma"]);
    await late.exited;
    expect(textOf(late)).toContain("/dev/kvma -6");
    const { pid } = process;
    await host.upgrade({ pid, to: "kvmb" });
    expect(await host.rollback(pid)).toMatchObject({ moved: true, to: "kvma" });
    await host.upgrade({ pid, to: "kvmb" });
    expect(await names()).toEqual(["kvma", "kvmb"]);
    const gone = logged("unloaded kvma");
    await host.finalize(pid);
    await gone;
    expect(await names()).toEqual(["kvmb"]);
    await expect(host.rollback(pid)).rejects.toThrow("it was finalised on kvmb");
  });

  it("lets the last user go first: a process that ends", async () => {
    host = await createHostWithModules(2);
    const [one, other] = await Promise.all([run(host, ["count"], { cpu: 0 }), run(host, ["count"], { cpu: 1 })]);
    await Promise.all([printed(one, "count"), printed(other, "count")]);
    await host.rmmod("kvma", { whenIdle: true });
    await host.kill(one.pid);
    const gone = logged("unloaded kvma");
    await host.kill(other.pid);
    await gone;
    expect(await names()).toEqual(["kvmb"]);
  });

  it("takes no VMs meanwhile, and can be taken back", async () => {
    host = await createHostWithModules();
    const [a, b] = await Promise.all([run(host, ["count"]), run(host, ["count", "1000000", "/dev/kvmb"])]);
    await Promise.all([printed(a, "count"), printed(b, "count")]);
    await host.rmmod("kvmb", { whenIdle: true });
    await expect(host.upgrade({ pid: a.pid, to: "kvmb" })).rejects.toThrow("kvmb is about to be unloaded and takes no VMs");
    await host.keep("kvmb");
    await expect(host.keep("kvmb")).rejects.toThrow("kvmb stays anyway");
    expect((await host.upgrade({ pid: a.pid, to: "kvmb" }))[0]).toMatchObject({ moved: true });
  });
});
