/** Releases that are more than one apart: a VM moves between them where both know its state, and else nothing is touched. */
import { afterEach, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { createTestHost, printed, run } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

/** Releases by the versions of the counter's section that they take. */
async function load(releases: Readonly<Record<string, readonly [oldest: number, newest: number]>>): Promise<void> {
  host = await createTestHost();
  for (const [id, [oldest, newest]] of Object.entries(releases))
    await host.insmod("./fake-kvm-a", { id, parameters: { oldest, newest } });
  await host.ln("/dev/kvm1", "/dev/kvm");
}

it("a release that still takes the old version of a section takes the VM, from two releases before it, and gives it back", async () => {
  await load({ 1: [1, 1], 3: [1, 3] });
  const process = await run(host, ["count", "100000"]);
  await printed(process, "count");
  expect(await host.upgrade({ pid: process.pid, to: "kvm3" })).toMatchObject([{ moved: true, finalised: false }]);
  expect(await host.rollback(process.pid)).toMatchObject({ moved: true, to: "kvm1" });
  process.write("stop\n");
  expect((await process.exited).status).toBe(0);
});

it("one that does not is refused in check, by the section's name, and the way goes over the release between", async () => {
  await load({ 1: [1, 1], 2: [1, 2], 3: [2, 3] });
  const process = await run(host, ["count", "100000"]);
  const { pid } = process;
  await printed(process, "count");
  const before = await host.resources();
  const refused = async (to: string, reason: string) => {
    const [report] = await host.upgrade({ pid, to });
    expect(report).toMatchObject({ moved: false, blackoutUs: 0, failed: { step: "check" } });
    expect(report!.steps.map(({ step }) => step)).toEqual(["check"]);
    expect(report!.failed!.reason).toBe(reason);
  };
  await refused("kvm3", "kvm3 takes section vm.counter in versions 2 to 3, and it comes in version 1");
  expect(await host.checkUpgrade({ pid, to: "kvm3" })).toContain("kvm3 takes section vm.counter in versions 2 to 3");
  expect(await host.resources()).toEqual(before);
  await host.upgrade({ pid, to: "kvm2" });
  // It could still go back to the first, which does not know what the third needs
  await refused("kvm3", "a module that it could roll back to does not know the required section vm.counter");
  await printed(process, "count", 3);
  await host.finalize(pid);
  expect(await host.upgrade({ pid, to: "kvm3" })).toMatchObject([{ moved: true }]);
  expect(await host.rollback(pid)).toMatchObject({ moved: true, to: "kvm2" });
  await expect(host.rollback(pid)).rejects.toThrow("it was finalised on kvm2");
  process.write("stop\n");
  expect((await process.exited).status).toBe(0);
});
