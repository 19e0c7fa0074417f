/** The machine of a host, as its options have it. */
import { createMachine, type MachineDescription } from "@mkvm/hw-x86";
import { HostError, messageOf } from "../errors.ts";
import type { HostOptions } from "./types.ts";

/** @throws HostError when there is no such machine */
export function machineOf(options: HostOptions): MachineDescription {
  if (options.machine) return options.machine;
  try {
    return createMachine({
      vendor: options.vendor ?? "intel",
      cpuModel: options.cpuModel ?? "max",
      cpus: options.cpus ?? 1,
      clock: options.clock ?? "wall",
      engine: options.engine ?? engineOfEnvironment(),
    });
  } catch (thrown) {
    throw new HostError("EINVAL", messageOf(thrown));
  }
}

/** MKVM_ENGINE, so that whatever starts hosts can be run on the interpreter alone, or with everything translated. */
function engineOfEnvironment(): NonNullable<HostOptions["engine"]> {
  const mode = process.env.MKVM_ENGINE || "hot";
  if (mode !== "off" && mode !== "hot" && mode !== "always")
    throw new HostError("EINVAL", `MKVM_ENGINE is '${mode}': it takes off, hot or always`);
  return mode;
}
