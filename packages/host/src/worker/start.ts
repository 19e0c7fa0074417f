/** Entry of a CPU's thread. */
import { parentPort, workerData } from "node:worker_threads";
import type { CpuBoot, CpuEvent } from "../control/protocol.ts";
import { serveRequests } from "../control/requests.ts";
import { CpuKernel, type Hardware } from "./cpu-kernel.ts";

export function startCpuThread(hardware: Hardware): void {
  const port = parentPort;
  if (!port) throw new Error("this file is the entry of a CPU's thread, not of a program");
  const boot = workerData as CpuBoot;
  const kernel = new CpuKernel(boot, hardware, (event) => port.postMessage(event satisfies CpuEvent));
  process.on("uncaughtException", (thrown) => kernel.uncaught(thrown));
  process.on("unhandledRejection", (thrown) => kernel.uncaught(thrown));
  serveRequests(port, kernel.handlers, boot.progress);
  port.postMessage({ event: "ready" } satisfies CpuEvent);
}
