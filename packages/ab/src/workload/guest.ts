/** What the VMM is to run for an arm, and by what its measured part is known. */
import { closeSync, openSync, readSync } from "node:fs";
import { existingFile } from "../plan/read-plan.ts";
import type { Arm, Workload } from "../plan/schema.ts";
import type { ProbeOptions } from "../probe/protocol.ts";
import { initrdWithScript, scriptCommandLine, scriptMarkers } from "./linux-script.ts";

export interface Guest {
  probe: ProbeOptions;
  /** Arguments of the VMM. */
  args: string[];
  /** The script's exit status must be looked for on the console. */
  isScript: boolean;
}

/** So that Linux is seen, and ends the VM instead of hanging when it panics. */
const linuxCommandLine = "console=ttyS0 panic=-1";

/** @throws AbError when a file that it names is none */
export function guestOf(workload: Workload, arm: Arm, directory: string): Guest {
  const kernel = existingFile("kernel", arm.kernel ?? workload.kernel, directory);
  const args = ["--kernel", kernel, "--memory", arm.memory ?? workload.memory ?? "256M"];
  args.push("--cpus", String(arm.cpus ?? workload.cpus ?? 1));
  const { initrd } = workload;
  const given = initrd === undefined ? undefined : existingFile("initrd", initrd, directory);
  let append = arm.append ?? workload.append ?? (isBzImage(kernel) ? linuxCommandLine : undefined);
  if (workload.kind === "script") {
    args.push("--initrd", initrdWithScript(given!, existingFile("script", workload.script, directory)));
    append = `${append ?? linuxCommandLine} ${scriptCommandLine}`;
  } else if (given !== undefined) args.push("--initrd", given);
  if (append !== undefined) args.push("--append", append);
  if (workload.kind === "image" && workload.format !== undefined) args.push("--format", workload.format);
  const probe: ProbeOptions =
    workload.kind === "script"
      ? scriptMarkers
      : workload.kind === "image"
        ? { start: workload.start, end: workload.end }
        : { end: workload.end };
  return { probe, args, isScript: workload.kind === "script" };
}

/** Linux/x86 boot protocol: "HdrS" in the real-mode kernel header. */
function isBzImage(path: string): boolean {
  const header = Buffer.alloc(0x206);
  const fd = openSync(path, "r");
  readSync(fd, header, 0, header.length, 0);
  closeSync(fd);
  return header.toString("latin1", 0x202) === "HdrS";
}
