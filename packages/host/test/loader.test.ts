import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { findPackage } from "../src/loader/package-files.ts";
import { checkParameters, parseParameterWords } from "../src/loader/parameters.ts";
import { createHostWithModules, createTestHost, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host | undefined;
afterEach(async () => {
  await host?.close();
  host = undefined;
});

const folder = mkdtempSync(join(tmpdir(), "mkvm-loader-"));
afterAll(() => rmSync(folder, { recursive: true }));

function writePackage(name: string, json: object, code?: string): string {
  const directory = join(folder, "node_modules", name);
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "package.json"), JSON.stringify(json));
  if (code !== undefined) writeFileSync(join(directory, "index.js"), code);
  return directory;
}

describe("finding packages", () => {
  it("goes up node_modules folders, by name and by path", () => {
    const directory = writePackage(
      "@scope/pkg",
      { name: "@scope/pkg", version: "1.2.3", exports: { ".": { types: "x", import: "./index.js" } } },
      "",
    );
    expect(findPackage("@scope/pkg", [join(folder, "deep", "er")]).version).toBe("1.2.3");
    expect(findPackage(directory, ["/"]).name).toBe("@scope/pkg");
    expect(findPackage("./node_modules/@scope/pkg", [folder]).entryUrl).toContain("index.js?v=1.2.3-");
  });

  it.each([
    ["nowhere-to-be-found", "is not installed: add it with 'pnpm add nowhere-to-be-found'"],
    ["./nothing", "no package at './nothing'"],
    ["what ever", "neither a package name nor a path"],
  ])("refuses %s in one line", (spec, message) => {
    expect(() => findPackage(spec, [folder])).toThrow(message);
  });

  it("says when a package is not built", () => {
    writePackage("unbuilt", { name: "unbuilt", version: "1.0.0", exports: "./dist/index.js" });
    expect(() => findPackage("unbuilt", [folder])).toThrow("unbuilt 1.0.0 has no built entry");
  });
});

describe("parameters", () => {
  const specs = {
    depth: { type: "int", default: 2, minimum: 1, maximum: 8, description: "" },
    fast: { type: "bool", default: true, description: "" },
    mode: { type: "choice", default: "a", choices: ["a", "b"], description: "" },
  } as const;

  it("takes values and their text, and both ends of a range", () => {
    expect(checkParameters("m", specs, {})).toEqual({ depth: 2, fast: true, mode: "a" });
    expect(checkParameters("m", specs, { depth: "0x8", fast: "N", mode: "b" })).toEqual({ depth: 8, fast: false, mode: "b" });
    expect(checkParameters("m", specs, { depth: 1 }).depth).toBe(1);
  });

  it.each([
    [{ depth: 0 }, "parameter depth=0 is refused: it takes a whole number from 1 to 8"],
    [{ depth: 9 }, "it takes a whole number from 1 to 8"],
    [{ depth: "1e1" }, "depth=1e1 is refused"],
    [{ depth: "" }, "depth= is refused"],
    [{ fast: "maybe" }, "it takes true or false"],
    [{ mode: "c" }, "it takes one of a, b"],
    [{ speed: 1 }, "m has no parameter 'speed': it has depth, fast, mode"],
  ])("refuses %o", (given, message) => {
    expect(() => checkParameters("m", specs, given)).toThrow(message);
  });

  it("reads words of a command line", () => {
    expect(parseParameterWords(["a=1", "b=x=y"])).toEqual({ a: "1", b: "x=y" });
    expect(() => parseParameterWords(["nonsense"])).toThrow("write name=value");
  });
});

describe("insmod", () => {
  it("refuses by version before any code of the module runs", async () => {
    host = await createTestHost();
    await expect(host.insmod("./needs-newer")).rejects.toThrow(
      /needs-newer 9\.0\.0 requires @mkvm\/kvm-abi \^99\.0\.0, and this host has .*: update @mkvm\/host/,
    );
    await expect(host.modinfo("./needs-newer")).rejects.toThrow("requires @mkvm/kvm-abi");
    expect(await host.lsmod()).toEqual([]);
  });

  it("refuses by version when the registry that could name a fitting release is down, too", async () => {
    host = await createTestHost();
    const manifest = { name: "m7", version: "1.0.0", type: "module", exports: "./index.js" };
    const module = writePackage("m7", { ...manifest, mkvm: { requires: { "@mkvm/kvm-abi": "^99.0.0" } } }, "throw 'ran'");
    const { npm_config_registry: before } = process.env;
    // The discard port: nobody listens
    process.env.npm_config_registry = "http://127.0.0.1:9/";
    try {
      await expect(host.insmod(module)).rejects.toThrow(
        /^m7 1\.0\.0 requires @mkvm\/kvm-abi \^99\.0\.0, .*; the registry could not be asked which release fits$/,
      );
    } finally {
      if (before === undefined) delete process.env.npm_config_registry;
      else process.env.npm_config_registry = before;
    }
    expect(await host.lsmod()).toEqual([]);
  });

  it("refuses packages that are no modules", async () => {
    host = await createTestHost();
    await expect(host.insmod("./not-a-module")).rejects.toThrow(
      'not-a-module 1.0.0 is no KVM module: its package.json has no "mkvm" field',
    );
    const requires = { "@mkvm/kvm-abi": ">=0.1.0" };
    const odd = (name: string, mkvm: object, code: string) =>
      writePackage(name, { name, version: "1.0.0", type: "module", exports: "./index.js", mkvm }, code);
    await expect(host.insmod(odd("m1", { requires: {} }, ""))).rejects.toThrow("does not say which @mkvm/kvm-abi it requires");
    await expect(host.insmod(odd("m2", { requires: { ...requires, "@mkvm/moon": "1" } }, ""))).rejects.toThrow(
      "requires @mkvm/moon 1, and this host provides only",
    );
    await expect(host.insmod(odd("m3", { requires: { "@mkvm/kvm-abi": "soon" } }, ""))).rejects.toThrow(
      "which is no version range",
    );
    await expect(host.insmod(odd("m4", { id: "a/b", requires }, ""))).rejects.toThrow("id 'a/b' cannot name a device");
    await expect(host.insmod(odd("m5", { requires }, "export default 5"))).rejects.toThrow(
      "its default export is no KVM module",
    );
    await expect(host.insmod(odd("m6", { requires }, "throw new Error('broken')"))).rejects.toThrow(
      "cannot be imported: broken",
    );
  });

  it("loads one package twice, under other ids and with other parameters", async () => {
    host = await createTestHost();
    await host.insmod("./fake-kvm-a", { parameters: { step: 11 } });
    await host.insmod("./fake-kvm-a", { id: "x", parameters: { step: "22" } });
    await host.insmod("./fake-kvm-a", { id: "" });
    expect((await host.lsmod()).map((module) => module.devices)).toEqual([["/dev/kvm"], ["/dev/kvma"], ["/dev/kvmx"]]);
    const process = await run(host, ["open", "/dev/kvma", "/dev/kvmx", "/dev/kvm", "/dev/kvmz"]);
    await process.exited;
    expect(textOf(process)).toBe("/dev/kvma ok 11\n/dev/kvmx ok 22\n/dev/kvm ok 100\n/dev/kvmz -2 \n");
    expect((await host.modinfo("kvmx")).loadedAs).toEqual(["kvma", "kvmx", "kvm"]);
  });

  it("refuses an id that is taken, and unknown or out-of-range parameters", async () => {
    host = await createHostWithModules();
    await expect(host.insmod("./fake-kvm-b", { id: "a" })).rejects.toThrow(
      /kvma is loaded already .*: choose another id with --id/,
    );
    await expect(host.insmod("./fake-kvm-a", { id: "c", parameters: { step: 1001 } })).rejects.toThrow("from 1 to 1000");
    await expect(host.insmod("./fake-kvm-a", { id: "c", parameters: { stop: 1 } })).rejects.toThrow("no parameter 'stop'");
    expect((await host.lsmod()).map((module) => module.name)).toEqual(["kvma", "kvmb"]);
  });

  it("leaves nothing behind when init fails", async () => {
    host = await createTestHost(2);
    await expect(host.insmod("./fake-kvm-a", { parameters: { fail: "init" } })).rejects.toThrow(
      "kvma refused to start on cpu0 with ENODEV",
    );
    await expect(host.insmod("./fake-kvm-a", { parameters: { fail: "init-throws" } })).rejects.toThrow(
      "kvma failed in init on cpu0: init threw",
    );
    expect(await host.ls()).toEqual([]);
    await host.insmod("./fake-kvm-a");
  });
});

describe("rmmod", () => {
  it("is refused while a process has the device open, and says who", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["count"], { name: "counter" });
    await printed(process, "count");
    await expect(host.rmmod("kvma")).rejects.toMatchObject({
      code: "EBUSY",
      message:
        "kvma is in use by process 1 (counter: fd 3 /dev/kvm, fd 4 kvm-vm, fd 5 kvm-vcpu:0): move it with 'mkvm upgrade', or end it with 'mkvm kill 1'",
    });
    await host.rmmod("kvmb");
    process.write("stop\n");
    expect((await process.exited).status).toBe(0);
    await host.rmmod("kvma");
    expect(await host.lsmod()).toEqual([]);
    await expect(host.rmmod("kvma")).rejects.toThrow("no module kvma is loaded");
  });

  it("gives memory back: 1,000 times load and unload", async () => {
    host = await createTestHost();
    const cycle = async (count: number) => {
      for (let i = 0; i < count; i++) {
        await host!.insmod("./fake-kvm-a");
        await host!.rmmod("kvma");
      }
    };
    const settled = () => {
      globalThis.gc?.();
      return process.memoryUsage().rss;
    };
    await cycle(200);
    const before = settled();
    await cycle(1000);
    expect((settled() - before) / 2 ** 20).toBeLessThan(20);
  });
});
