/** The thread that translates what is hot, for all CPUs. */
import { parentPort } from "node:worker_threads";
import { translateRegion } from "@mkvm/hw-x86";
import type { RegionChannel, RegionQuestion, RegionReply } from "./worker/region-port.ts";

parentPort?.on("message", ({ port, sent }: RegionChannel) => {
  const count = new Int32Array(sent);
  port.on("message", ({ id, region }: RegionQuestion) => {
    port.postMessage({ id, code: translateRegion(region) } satisfies RegionReply);
    Atomics.add(count, 0, 1);
  });
});
