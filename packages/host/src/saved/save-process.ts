/** `mkvm save`: a process stands still while its image and its memory go to a file, and runs on. */
import type { ProcessSave } from "../control/protocol.ts";
import type { SavedProcess } from "../control/types.ts";
import { HostError, messageOf } from "../errors.ts";
import { type KernelProcess, killedStatus } from "../processes/process.ts";
import { standingStill } from "../processes/standing-still.ts";
import { writeSavedFile } from "./file-writer.ts";
import { manifestOf } from "./manifest.ts";
import { blockerOfSave, takeImage } from "./take-image.ts";

/** @throws HostError when it cannot be saved: it runs on as if nothing had been */
export async function saveProcess(process: KernelProcess, vendor: "intel" | "amd", save: ProcessSave): Promise<SavedProcess> {
  if (process.standstill)
    throw new HostError("EBUSY", `process ${process.pid} is ${process.standstill.doing}: wait for that to end`);
  const blocker = blockerOfSave(process);
  if (blocker !== null) throw new HostError("EBUSY", `process ${process.pid} (${process.name}) cannot be saved: ${blocker}`);
  const done = writeStill(process, vendor, save);
  process.standstill = { doing: `being saved to ${save.path}`, done };
  return done.finally(() => {
    process.standstill = undefined;
    process.settle();
  });
}

async function writeStill(process: KernelProcess, vendor: "intel" | "amd", save: ProcessSave): Promise<SavedProcess> {
  const { kernel } = process;
  const { program, modules } = save.packages;
  const releaseIdle = kernel.scheduler.holdIdle();
  const startedMs = performance.now();
  try {
    const report = await standingStill(process, async () => {
      const image = takeImage(process, process.args, vendor);
      const written = await writeSavedFile(
        save.path,
        manifestOf(image, { program, savedBy: { module: image.module, ...modules[image.module]! } }),
        image,
        process.memory.bank.u8,
      ).catch((thrown) => {
        throw new HostError("EIO", `${save.path} cannot be written: ${messageOf(thrown)}`);
      });
      if (save.stop) process.end({ status: killedStatus, reason: "killed" });
      return { ...written, retiredInstructions: image.retired };
    });
    kernel.log("info", "host", `process ${process.pid} was saved to ${save.path}, ${report.bytes} bytes`);
    return { pid: process.pid, path: save.path, stillUs: Math.round((performance.now() - startedMs) * 1000), ...report };
  } finally {
    releaseIdle();
  }
}
