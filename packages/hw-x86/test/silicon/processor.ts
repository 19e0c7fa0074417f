/** Whose processor the tests run on. */
import { existsSync, readFileSync } from "node:fs";
import type { CpuModel } from "../../src/engine/cpu.ts";

/** By the vendor string of CPUID, as Linux shows it; Hygon's processors are AMD's design. Undefined for others and elsewhere. */
export function processorVendor(): CpuModel["vendor"] | undefined {
  if (!existsSync("/proc/cpuinfo")) return undefined;
  const name = /^vendor_id\s*: (\w+)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1];
  if (name === "GenuineIntel") return "intel";
  return name === "AuthenticAMD" || name === "HygonGenuine" ? "amd" : undefined;
}

/** What Linux says that the processor has. */
export function processorFlags(): ReadonlySet<string> {
  if (!existsSync("/proc/cpuinfo")) return new Set();
  const flags = /^flags\s*: (.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1];
  return new Set(flags?.split(" "));
}
