import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { createHostWithModules, createTestHost, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

async function stop(process: Awaited<ReturnType<typeof run>>): Promise<number> {
  process.write("stop\n");
  return (await process.exited).status;
}

describe("a move", () => {
  it("goes there, back, there and final, under a running VM", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    const { pid } = process;
    const [there] = await host.upgrade({ pid, to: "kvmb" });
    expect(there).toMatchObject({ from: "kvma", to: "kvmb", moved: true, finalised: false, stateBytes: 32 });
    expect(there!.steps.map(({ step }) => step)).toEqual([
      "check",
      "prepare",
      "freeze",
      "save",
      "restore",
      "verify",
      "commit",
      "thaw",
    ]);
    expect(there!.blackoutUs).toBeGreaterThan(0);
    await expect(host.rmmod("kvma")).rejects.toThrow("can roll back to it until finalised): 'mkvm finalize 1' lets go of it");
    await printed(process, "count", 3);
    expect(await host.rollback(pid)).toMatchObject({ to: "kvma", moved: true, finalised: true });
    await expect(host.rollback(pid)).rejects.toThrow("nothing to roll back to, it has not moved");
    await host.upgrade({ pid, to: "kvmb" });
    expect(await host.finalize(pid)).toEqual(["kvma"]);
    await expect(host.rollback(pid)).rejects.toThrow("it was finalised on kvmb");
    await host.rmmod("kvma");
    expect((await host.ps())[0]).toMatchObject({ modules: ["kvmb"], moves: 3, previous: [] });
    expect(process.moves.length).toBe(3);
    expect(await stop(process)).toBe(0);
    await host.rmmod("kvmb");
  });

  it("wakes a halted vCPU no earlier and no later", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["halt"]);
    await printed(process, "halted");
    expect((await host.upgrade({ pid: process.pid, to: "kvmb" }))[0]).toMatchObject({ moved: true });
    expect((await host.ps())[0]).toMatchObject({ modules: ["kvmb"] });
    await host.kill(process.pid);
  });

  it("moves all VMs with one command, on all CPUs", async () => {
    host = await createHostWithModules(2);
    const all = await Promise.all([1, 2, 3, 4].map(() => run(host, ["count", "10000"])));
    for (const process of all) await printed(process, "count");
    const reports = await host.upgrade({ pid: "all", to: "kvmb", finalize: true });
    expect(reports.map((report) => report.moved && report.finalised)).toEqual([true, true, true, true]);
    await host.rmmod("kvma");
    for (const process of all) expect(await stop(process)).toBe(0);
  });

  it("cannot begin without a VM, a module, or a reason", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["echo"]);
    const { pid } = process;
    await expect(host.upgrade({ pid, to: "kvmb" })).rejects.toThrow("process 1 (programs) has no VM");
    await expect(host.upgrade({ pid, to: "kvmz" })).rejects.toThrow("no module kvmz is loaded: there is kvma, kvmb");
    await expect(host.upgrade({ pid: 99, to: "kvmb" })).rejects.toThrow("no process 99");
    await expect(host.finalize(pid)).rejects.toThrow("no move to finalise");
    const vm = await run(host, ["count"]);
    await printed(vm, "count");
    await expect(host.upgrade({ pid: vm.pid, to: "kvma" })).rejects.toThrow("is on kvma already");
    const both = await Promise.allSettled([1, 2].map(() => host.upgrade({ pid: vm.pid, to: "kvmb" })));
    expect(both.map((result) => result.status).sort()).toEqual(["fulfilled", "rejected"]);
    expect(await stop(vm)).toBe(0);
  });
});

describe("a move that fails leaves the VM where it was", () => {
  it.each([
    ["a", "describe", "check", "kvmb does not know the required section vm.secret"],
    ["b", "prepare-refuses", "prepare", "this module takes no VMs today"],
    ["b", "prepare-throws", "prepare", "prepare threw"],
    ["a", "save", "save", "save threw"],
    ["b", "restore-refuses", "restore", "the counter is not to my taste"],
    ["b", "restore-throws", "restore", "restore threw"],
    ["b", "verify", "verify", "kvmb restored another state: section vm.counter[0] differs at byte"],
    ["b", "commit", "commit", "commit threw"],
  ])("%s fails: %s", async (which, fail, step, reason) => {
    host = await createTestHost();
    for (const letter of ["a", "b"]) {
      await host.insmod(`./fake-kvm-${letter}`, { parameters: { fail: letter === which ? fail : "none" } });
    }
    await host.ln("/dev/kvma", "/dev/kvm");
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    const [report] = await host.upgrade({ pid: process.pid, to: "kvmb" });
    expect(report).toMatchObject({ moved: false, failed: { step } });
    expect(report!.failed!.reason).toContain(reason);
    const log = await host.dmesg();
    expect(log.some((entry) => entry.message.includes("stays on kvma"))).toBe(true);
    // What a rehearsal finds out never stops the VM. Commit is not rehearsed: how often the rest was depends on how fast it was
    const aborted = log.filter((entry) => entry.source === "kvmb" && entry.message === "aborted").length;
    if (step === "commit") expect(aborted).toBeGreaterThanOrEqual(2);
    else expect(aborted).toBe(step === "check" || step === "prepare" ? 0 : 1);
    if (step !== "commit") expect(report!.blackoutUs).toBe(0);
    await printed(process, "count", 3);
    expect((await host.ps())[0]).toMatchObject({ modules: ["kvma"], moves: 0, previous: [] });
    await host.rmmod("kvmb");
    expect(await stop(process)).toBe(0);
  });

  it.each(["release", "free"])("goes through when only the old side fails to let go: %s", async (fail) => {
    host = await createTestHost();
    await host.insmod("./fake-kvm-a", { parameters: { fail } });
    await host.insmod("./fake-kvm-b");
    await host.ln("/dev/kvma", "/dev/kvm");
    const process = await run(host, ["count", "100000"]);
    await printed(process, "count");
    expect((await host.upgrade({ pid: process.pid, to: "kvmb" }))[0]).toMatchObject({ moved: true });
    expect((await host.dmesg()).some((entry) => entry.message.includes(`${fail} threw`))).toBe(true);
    expect(await stop(process)).toBe(0);
  });

  it("gives up on a thread that stays inside", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["stick"]);
    await printed(process, "inside");
    const [report] = await host.upgrade({ pid: process.pid, to: "kvmb" });
    expect(report!.failed).toMatchObject({ step: "freeze" });
    expect(report!.failed!.reason).toMatch(/thread 1000 \(programs\) did not come out of kvma within \d+ ms/);
    expect(await stop(process)).toBe(0);
    expect(textOf(process)).toBe("inside\nout\n");
  });

  it("ends with the process when that ends meanwhile", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["stick"]);
    await printed(process, "inside");
    const move = host.upgrade({ pid: process.pid, to: "kvmb" });
    const killed = host.kill(process.pid);
    expect((await move)[0]).toMatchObject({ moved: false, failed: { reason: "the process ended" } });
    expect((await host.ps())[0]).toMatchObject({ state: "ending" });
    void killed.catch(() => {});
  });
});

describe("moves at an instruction", () => {
  it("happen exactly there, and change nothing that the guest can tell", async () => {
    const total = 3_000_000;
    const outcome = async (moves: { at: number; to: string }[]) => {
      host = await createHostWithModules();
      const process = await run(host, ["busy", String(total)], { moves });
      await process.exited;
      const text = textOf(process);
      await host.close();
      return { text, moves: process.moves };
    };
    const without = await outcome([]);
    const points = [1, 12_345, 200_000, 200_001, 1_999_999, total - 1];
    const withMoves = await outcome(points.map((at, index) => ({ at, to: index % 2 ? "kvma" : "kvmb" })));
    expect(withMoves.text).toBe(without.text);
    expect(withMoves.moves.map((move) => [move.moved, move.retiredInstructions])).toEqual(points.map((at) => [true, at]));
  });

  it("fail where there is nothing to move", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["busy", "1000"]);
    await expect(host.upgrade({ pid: process.pid, to: "kvmb", at: 5_000_000 })).rejects.toThrow(/process 1/);
  });
});
