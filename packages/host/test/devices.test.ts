import { afterEach, describe, expect, it } from "vitest";
import type { Host } from "../src/control/host.ts";
import { DeviceTree } from "../src/devices/device-tree.ts";
import { createHostWithModules, createTestHost, printed, run, textOf } from "./fixtures/test-host.ts";

let host: Host | undefined;
afterEach(async () => {
  await host?.close();
  host = undefined;
});

describe("the tree", () => {
  it("follows links, and gives up on loops", () => {
    const tree = new DeviceTree();
    tree.addNode("/dev/kvm1", "kvm1", "kvm");
    tree.link("/dev/kvm1", "/dev/stable");
    tree.link("stable", "/dev/kvm");
    expect(tree.lookup("/dev/kvm", new Map())).toMatchObject({ module: "kvm1" });
    tree.link("/dev/loop2", "/dev/loop1");
    tree.link("/dev/loop1", "/dev/loop2");
    expect(tree.lookup("/dev/loop1", new Map())).toBe(-40);
    expect(tree.lookup("/dev/none", new Map())).toBe(-2);
  });

  it("does not let a link hide a node, nor leave /dev", () => {
    const tree = new DeviceTree();
    tree.addNode("/dev/kvm", "kvm", "kvm");
    expect(() => tree.link("/dev/kvm1", "/dev/kvm")).toThrow("/dev/kvm is the device of module kvm");
    expect(() => tree.link("/dev/kvm", "/etc/kvm")).toThrow("links live under /dev");
    expect(() => tree.unlink("/dev/kvm")).toThrow("is no link");
  });

  it("pins what a mount's source names when it is made", () => {
    const tree = new DeviceTree();
    tree.addNode("/dev/kvm1", "kvm1", "kvm");
    tree.addNode("/dev/kvm2", "kvm2", "kvm");
    tree.link("/dev/kvm1", "/dev/kvm");
    const own = tree.createNamespace();
    own.mount("/dev/kvm2", "/dev/kvm");
    expect(own.lookup("/dev/kvm")).toMatchObject({ module: "kvm2" });
    expect(tree.createNamespace().lookup("/dev/kvm")).toMatchObject({ module: "kvm1" });
    own.mount("/dev/kvm", "/dev/other");
    tree.link("/dev/kvm2", "/dev/kvm");
    expect(own.lookup("/dev/other")).toMatchObject({ module: "kvm1" });
    expect(() => own.mount("/dev/kvm9", "/dev/kvm")).toThrow("/dev/kvm9 leads to no device");
  });
});

describe("/dev as processes see it", () => {
  it("switches a link for those that open it later", async () => {
    host = await createTestHost();
    await host.insmod("./fake-kvm-a", { parameters: { step: 1 } });
    await host.insmod("./fake-kvm-b", { parameters: { step: 2 } });
    const openKvm = async () => {
      const process = await run(host!, ["open", "/dev/kvm"]);
      await process.exited;
      return textOf(process);
    };
    expect(await openKvm()).toBe("/dev/kvm -2 \n");
    await host.ln("/dev/kvma", "/dev/kvm");
    expect(await openKvm()).toBe("/dev/kvm ok 1\n");
    await host.ln("/dev/kvmb", "/dev/kvm");
    expect(await openKvm()).toBe("/dev/kvm ok 2\n");
    await host.mount("/dev/kvma", "/dev/kvm");
    expect(await openKvm()).toBe("/dev/kvm ok 1\n");
    await host.umount("/dev/kvm");
    expect(await openKvm()).toBe("/dev/kvm ok 2\n");
    const mounted = await run(host, ["open", "/dev/kvm"], { mounts: [{ source: "/dev/kvma", target: "/dev/kvm" }] });
    await mounted.exited;
    expect(textOf(mounted)).toBe("/dev/kvm ok 1\n");
    expect((await host.ls()).map((entry) => entry.path)).toEqual(["/dev/kvm", "/dev/kvma", "/dev/kvmb"]);
  });

  it("keeps a VM on its module when the link changes", async () => {
    host = await createHostWithModules();
    const process = await run(host, ["count"]);
    await printed(process, "count");
    await host.ln("/dev/kvmb", "/dev/kvm");
    expect((await host.ps())[0]!.modules).toEqual(["kvma"]);
  });
});
