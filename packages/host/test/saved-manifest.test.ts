/** What a saved file says before its state: files of earlier releases are read, and what is wrong is named. */
import { expect, it } from "vitest";
import { manifestOf } from "../src/saved/manifest.ts";
import { parseManifest } from "../src/saved/manifest-schema.ts";
import type { ProcessImage } from "../src/saved/process-image.ts";

const image: ProcessImage = {
  name: "vmm",
  args: ["--cpus", "2"],
  module: "kvm1",
  machine: { vendor: "intel", cpuModel: "max", tscKhz: 1_000_000 },
  clock: { tsc: 1000, monotonicNs: 1000 },
  retired: 1000,
  bankBytes: 65536,
  memory: [{ address: 4096, lengthBytes: 4096 }],
  program: [],
  systemFiles: [{ fd: 3, path: "/dev/kvm" }],
  vms: [{ sections: [], files: [{ fd: 4, name: "kvm-vm", role: { kind: "vm" } }] }],
  eventfds: [],
  runPages: [],
  undelivered: [],
  turns: [{ fd: 6, slice: { start: -20, end: 180 } }, { fd: 5 }, { thread: "console" }],
  input: { bytes: new Uint8Array(), ended: false },
};
const packages = {
  program: { package: "@mkvm/vmm", version: "1.0.0" },
  savedBy: { module: "kvm1", package: "@mkvm/kvm-v1", version: "1.0.0" },
};
const read = (value: object) => parseManifest(new TextEncoder().encode(JSON.stringify(value)), "vm.saved");

it("says whose turn it was", () => {
  expect(read(manifestOf(image, packages)).turns).toEqual(image.turns);
});

it("of an earlier release is read without what was not kept then; what a later one adds is passed by", () => {
  const { turns: _turns, eventfds: _eventfds, ...early } = manifestOf(image, packages);
  expect(read({ ...early, later: 1 })).toEqual({ ...early, turns: [], eventfds: [] });
});

it("names the key that is wrong", () => {
  const manifest = manifestOf(image, packages);
  expect(() => read({ ...manifest, turns: [{ fd: -1 }] })).toThrow(/^vm\.saved: section manifest\[0\]: turns\.0\.fd: /);
  expect(() => read({ ...manifest, turns: [{ slice: { start: 0 } }] })).toThrow("turns.0.slice.end");
});
