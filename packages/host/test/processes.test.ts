import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { createHostWithModules, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host;
afterEach(() => host?.close());

describe("a process", () => {
  it("prints, returns its status, and is gone", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["hello", "you"]);
    expect(await process.exited).toEqual({ status: 7, reason: "exited" });
    expect(textOf(process)).toBe("hello you\nto stderr\n");
    const streams: string[] = [];
    process.onOutput((bytes, fd) => streams.push(`${fd}:${new TextDecoder().decode(bytes)}`));
    expect(streams).toEqual(["1:hello you\n", "2:to stderr\n"]);
    expect(await host.ps()).toEqual([]);
  });

  it("reads its input to the end", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["echo"]);
    process.write("one ");
    process.write("two");
    process.endInput();
    expect((await process.exited).status).toBe(0);
    expect(textOf(process)).toBe("one two");
  });

  it("has memory and files as system calls say", async () => {
    host = await createHostWithModules();
    const file = join(mkdtempSync(join(tmpdir(), "mkvm-files-")), "text");
    writeFileSync(file, "export const nothing = 0;\n");
    const process = await run(host, ["memory", file]);
    expect(await process.exited).toEqual({ status: 0, reason: "exited" });
    expect(textOf(process).trim().split("\n")).toEqual([
      "small-aligned true",
      "large-aligned true",
      "munmap 0",
      "twice -22",
      "zeroed true",
      "too-much -12",
      "kvm-run true",
      "module-bytes 4096",
      "size 26",
      "read 4",
      "pread 4",
      "text expoxpor",
      "bad-address -14",
      "read-only -9",
      "close 0",
      "closed -9",
      "pwrite 4",
      "written 8",
      "text exxpor c",
      "unwritten -14",
      "console -29",
      "missing -2",
    ]);
  });

  it("can be killed in a busy loop and in a halt, and gives its module back", async () => {
    host = await createHostWithModules();
    const busy = await run(host, ["count"]);
    const halted = await run(host, ["halt"]);
    await printed(busy, "count");
    await printed(halted, "halted");
    await Promise.all([host.kill(busy.pid), host.kill(halted.pid)]);
    expect(await busy.exited).toEqual({ status: 137, reason: "killed" });
    expect(await halted.exited).toEqual({ status: 137, reason: "killed" });
    await host.rmmod("kvma");
    await expect(host.kill(busy.pid)).rejects.toThrow("no process 1");
  });

  it("refuses programs that are none, and too much memory", async () => {
    host = await createHostWithModules();
    await expect(run(host, [], { program: "./not-a-module" })).rejects.toThrow("exports no main function");
    await expect(run(host, [], { program: "no-such-program" })).rejects.toThrow("is not installed");
    await expect(run(host, ["hello"], { memoryBytes: 2 ** 32 })).rejects.toThrow("at most 4 GiB");
    await expect(run(host, ["hello"], { cpu: 3 })).rejects.toThrow("no cpu 3: this host has 0 to 0");
  });
});

describe("containment", () => {
  it.each([
    ["throw", "kvma: a fault in the module"],
    ["throwLater", "kvma: a later fault in the module"],
    ["throwInTimer", "kvma: a fault in a timer"],
    ["program", "programs: a fault in the program"],
    ["stray", "programs: a stray fault in the program"],
  ])("%s ends that process, and nobody else", async (where, message) => {
    host = await createHostWithModules();
    const other = await run(host, ["count", "100000"]);
    await printed(other, "count");
    const process = await run(host, ["throwing", where]);
    const exit = await process.exited;
    expect(exit).toEqual({ status: 134, reason: "crashed", message });
    const log = (await host.dmesg()).find((entry) => entry.message.includes("exception"));
    expect(log?.message).toMatch(/process 2 \(programs\) ends: Error: .*\n\s+at /);
    other.write("stop\n");
    expect((await other.exited).status).toBe(0);
  });
});

describe("scheduling", () => {
  it("shares a CPU fairly", async () => {
    host = await createHostWithModules();
    const total = 4_000_000;
    const starts = await Promise.all([1, 2, 3].map(() => run(host, ["busy", String(total)])));
    await Promise.all(starts.map((process) => process.exited));
    const ends = starts.map((process) => Number(/done at (\d+)/.exec(textOf(process))![1]));
    // All three end within the last few slices of the three runs' total time.
    for (const end of ends) expect(end).toBeGreaterThan(3 * total * 0.85);
  });

  it("lets a halted guest sleep to its timer while nothing else runs", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["halt", "3600000000000"]);
    expect((await process.exited).status).toBe(0);
    expect(textOf(process)).toBe("halted\nwoken 0 0\n");
  });

  it("answers while guests run", async () => {
    host = await createHostWithModules(2);
    const one = await run(host, ["count"]);
    const two = await run(host, ["count"]);
    expect([one.cpu, two.cpu]).toEqual([0, 1]);
    await printed(one, "count", 3);
    await printed(two, "count", 3);
    const states = await host.ps();
    expect(states.map((process) => process.vms)).toEqual([1, 1]);
    expect(states.every((process) => process.retiredInstructions > 0)).toBe(true);
  });
});
