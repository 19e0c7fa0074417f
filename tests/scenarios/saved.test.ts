import { copyFileSync, existsSync, mkdtempSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost, type Host, type HostOptions, type ProcessHandle } from "@mkvm/host";
import { expect, test } from "vitest";
import { chooseSeed } from "../../packages/hw-x86/test/random.ts";
import { random } from "./move-schedule.ts";
import { RunningGuest, tinyGuest } from "./running-guest.ts";

const SEED = chooseSeed();
const folder = mkdtempSync(join(tmpdir(), "mkvm-saved-"));

async function withHost<Result>(options: HostOptions, body: (host: Host) => Promise<Result>): Promise<Result> {
  const host = await createHost({ directory: import.meta.dirname, ...options });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    return await body(host);
  } finally {
    await host.close();
  }
}

async function consoleOf(process: ProcessHandle): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of process.output) text += decoder.decode(chunk, { stream: true });
  return text;
}

const vendors = ["intel", "amd"] as const;

test.each(vendors)(
  `saved at random instructions, restored in other hosts, on the other version: it ends as without (seed ${SEED}, %s)`,
  async (vendor) => {
    const args = [...tinyGuest(50), "--digest"];
    const options = { clock: "icount", vendor } as const;
    const still = await withHost(options, async (host) => consoleOf(await host.run({ args })));
    expect(still).toMatch(/mkvm-check-end.*\n.*mkvm-digest/s);
    const numbers = random(SEED, 6000);
    let at = 0;
    let said = "";
    let path: string | undefined;
    for (let saves = 0; saves < 2; saves++) {
      at += 500 + numbers.next().value;
      const next = join(folder, `${vendor}-${saves}`);
      said += await withHost(options, async (host) => {
        const save = { at, path: next };
        const process = path
          ? await host.restore({ path, module: saves % 2 ? "kvm2" : "kvm1", save })
          : await host.run({ args, save });
        return consoleOf(process);
      });
      path = next;
    }
    said += await withHost(options, async (host) => consoleOf(await host.restore({ path: path!, module: "kvm2" })));
    expect(said).toBe(still);
  },
);

test("a guest that is busy is saved and runs on; another host takes it up on the other version, with input on its way", async () => {
  const path = join(folder, "busy");
  await withHost({}, async (host) => {
    const guest = await RunningGuest.start(host, tinyGuest());
    await guest.rounds(20);
    const before = await host.resources();
    const saved = await host.save({ pid: guest.pid, path });
    expect(saved).toMatchObject({ pid: guest.pid, bytes: statSync(path).size });
    await guest.rounds(20);
    expect(await host.resources()).toMatchObject({ vpids: before.vpids, processes: before.processes });
    expect(await guest.stop()).toBe(0);
    expect(guest.report).toMatchObject({ problems: [], ended: true });
  });
  await withHost({}, async (host) => {
    const process = await host.restore({ path, module: "kvm2" });
    expect((await host.ps())[0]).toMatchObject({ modules: ["kvm2"], vms: 1 });
    let said = "";
    let rounds = 0;
    const reached = new Promise<void>((resolve) => {
      process.onOutput((bytes) => {
        said += new TextDecoder().decode(bytes);
        rounds = said.split("\n").length;
        if (rounds > 20) resolve();
      });
    });
    await reached;
    expect((await host.upgrade({ pid: process.pid, to: "kvm1" }))[0]).toMatchObject({ moved: true });
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
    expect(said).toContain("mkvm-check-end");
  });
});

test("a file that is damaged or cut short is refused, the section named, and nothing is there that was not", async () => {
  const path = join(folder, "whole");
  await withHost({}, async (host) => {
    const guest = await RunningGuest.start(host, tinyGuest());
    await guest.rounds(3);
    await host.save({ pid: guest.pid, path, stop: true });
    await guest.process.exited;
    const before = await host.resources();
    const whole = readFileSync(path);
    const refuses = async (what: string, change: (bytes: Buffer) => Buffer, why: RegExp): Promise<void> => {
      const bad = join(folder, "bad");
      writeFileSync(bad, change(Buffer.from(whole)));
      await expect(host.restore({ path: bad }), what).rejects.toThrow(why);
      expect(await host.resources(), what).toEqual(before);
      expect(await host.ps(), what).toEqual([]);
    };
    const sections = sectionsOf(whole);
    expect(sections.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["manifest", "vm.shape", "vcpu.registers", "vmm.serial", "run-page", "memory", "end"]),
    );
    const flip = (at: number) => (bytes: Buffer) => {
      bytes[at]! ^= 1;
      return bytes;
    };
    for (const { name, instance, at, stored } of sections) {
      const title = `section ${name}[${instance}]`;
      const damaged = new RegExp(`${title.replace(/[[\].]/g, "\\$&")}[ ;].*nothing was restored`);
      // The version in its head, and the last byte of what it stores
      await refuses(`${title}, its head`, flip(at + 60), damaged);
      if (stored > 0) await refuses(title, flip(at + 128 + stored - 1), damaged);
      if (stored > 0) await refuses(`${title}, cut`, (bytes) => bytes.subarray(0, at + 128 + (stored >> 1)), damaged);
      await refuses(
        `before ${title}`,
        (bytes) => bytes.subarray(0, at),
        name === "manifest" ? /cut short behind its head/ : /cut short behind section/,
      );
    }
    const last = sections.at(-2)!;
    const without = (bytes: Buffer) => Buffer.concat([bytes.subarray(0, last.at), bytes.subarray(last.at + 128 + last.stored)]);
    await refuses("a section less", without, /section end\[\d+\] says that \d+ sections are before it/);
    await refuses("another file", () => Buffer.from("no saved VM at all"), /is no saved VM/);
    await refuses("a later format", flip(8), /has format 0, this host reads 1/);
    await expect(host.restore({ path: join(folder, "none") })).rejects.toThrow(/none cannot be read/);
    await expect(host.restore({ path, module: "kvm9" })).rejects.toThrow(/no module kvm9 is loaded/);
    copyFileSync(path, join(folder, "copy"));
    const process = await host.restore({ path: join(folder, "copy") });
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
  });
  await withHost({ vendor: "amd" }, async (host) => {
    await expect(host.restore({ path })).rejects.toThrow(/saved on a machine with intel CPUs, this one has amd CPUs/);
  });
});

test("what cannot be saved says why, runs on, and leaves no file", async () => {
  await withHost({}, async (host) => {
    const path = join(folder, "never");
    const guest = await RunningGuest.start(host, tinyGuest());
    await guest.rounds(2);
    await expect(host.save({ pid: guest.pid, path: join(folder, "no", "such", "folder") })).rejects.toThrow(
      /cannot be written/,
    );
    await expect(host.save({ pid: 99, path })).rejects.toThrow(/no process 99/);
    const other = await host.run({ program: join(import.meta.dirname, "statistics-program"), args: [] });
    await expect(host.save({ pid: other.pid, path })).rejects.toThrow(
      /cannot be saved: its program takes no part|no VM|no process/,
    );
    expect(existsSync(path) || existsSync(`${path}.partial`)).toBe(false);
    await guest.rounds(5);
    expect(await guest.stop()).toBe(0);
  });
});

/** Heads of a saved file, as docs/upgrade.md tells: 128 bytes each, what they store behind them. */
function sectionsOf(file: Buffer): { name: string; instance: number; at: number; stored: number }[] {
  const found = [];
  for (let at = 16; at < file.length; ) {
    const stored = Number(file.readBigUInt64LE(at + 80));
    const name = file.toString("latin1", at + 8, at + 56).replace(/\0.*$/, "");
    found.push({ name, instance: file.readUInt32LE(at + 56), at, stored });
    at += 128 + stored;
  }
  return found;
}
