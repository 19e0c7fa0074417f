import type { Profiler } from "node:inspector";
import { describe, expect, it } from "vitest";
import type { TimePart } from "../src/control/types.ts";
import { addTimes, partOfStack } from "../src/worker/time-parts.ts";

const sources = {
  hardware: "file:///a/hw-x86/dist/index.js",
  kernel: ["file:///a/host/", "file:///a/vac/dist/index.js"],
  modules: ["file:///a/kvm/dist/index.js?v=1"],
  programs: ["file:///a/vmm/dist/index.js"],
};
const wasm = "wasm://wasm/0badcafe";
const hardware = sources.hardware;
const module = "file:///a/kvm/dist/index.js?v=1";
const frame = (functionName: string, url = "") => ({ functionName, url, scriptId: "0", lineNumber: 0, columnNumber: 0 });
const run = [frame("wasm-function[7]", wasm), frame("run", hardware), frame("vmlaunch", hardware), frame("enter", module)];

describe("the part of a stack", () => {
  it.each<[TimePart, ReturnType<typeof frame>[]]>([
    ["idle", [frame("(idle)"), frame("(root)")]],
    ["garbage", [frame("(garbage collector)"), ...run]],
    ["interpreter", run],
    ["translated", [frame("region", wasm), ...run]],
    ["memory", [frame("walk", hardware), frame("readSlow", hardware), frame("wasm-to-js"), ...run]],
    ["blocks", [frame("decode", hardware), frame("findBlock", hardware), ...run]],
    ["translating", [frame("Module"), frame("hot", hardware), ...run]],
    ["helpers", [frame("cpuid", hardware), frame("helpers.<computed>", hardware), ...run]],
    ["events", [frame("readGate", hardware), frame("deliverEvent", hardware), frame("run", hardware)]],
    ["vmx", [frame("#leave", hardware), frame("vmlaunch", hardware), frame("enter", module)]],
    ["module", [frame("enter", module), frame("ioctl", "file:///a/host/dist/cpu-worker.js")]],
    // Names count inside of the hardware only
    ["module", [frame("hot", module), frame("ioctl", "file:///a/host/dist/cpu-worker.js")]],
    ["program", [frame("main", "file:///a/vmm/dist/index.js"), frame("runTask", "file:///a/host/dist/cpu-worker.js")]],
    ["kernel", [frame("dispatch", "file:///a/host/dist/cpu-worker.js"), frame("processImmediate", "node:internal/timers")]],
    ["kernel", [frame("allocate", "file:///a/vac/dist/index.js"), ...run.slice(3)]],
    ["other", [frame("processImmediate", "node:internal/timers"), frame("(root)")]],
    ["other", []],
  ])("is %s", (part, stack) => expect(partOfStack(stack, sources)).toBe(part));
});

describe("a profile", () => {
  it("gives each sample the time up to the next, and adds to what was there", () => {
    const profile: Profiler.Profile = {
      startTime: 0,
      endTime: 10,
      nodes: [
        { id: 1, callFrame: frame("(root)"), children: [2, 4] },
        { id: 2, callFrame: frame("run", hardware), children: [3] },
        { id: 3, callFrame: frame("region", wasm) },
        { id: 4, callFrame: frame("(idle)") },
      ],
      samples: [3, 3, 4, 2],
      timeDeltas: [100, 1000, 2000, 500],
    };
    const times = new Map<TimePart, number>([["idle", 7]]);
    addTimes(profile, sources, times);
    expect([...times]).toEqual([
      ["idle", 507],
      ["translated", 3000],
      ["vmx", 0],
    ]);
    addTimes({ startTime: 0, endTime: 0, nodes: [] }, sources, times);
    expect(times.get("idle")).toBe(507);
  });
});
