/** What a saved VM needs of the processor, by the CPUID that its vCPUs were given. */
import { CPU_MODELS, type CpuModelName, featuresBeyond } from "@mkvm/hw-x86";
import { type Section, VcpuCpuid } from "@mkvm/kvm-abi";

/** Why a machine of the model cannot run the VM; undefined when it can. A guest may use whatever its CPUID says that there is. */
export function missingFeatures(sections: readonly Section[], model: CpuModelName): string | undefined {
  const entries = sections
    .filter(({ name }) => name === VcpuCpuid.name)
    .flatMap((section) => {
      const cpuid = VcpuCpuid.decode(section);
      // What cannot be read the module refuses
      return typeof cpuid === "string" ? [] : cpuid.entries;
    });
  const beyond = (of: CpuModelName): string[] =>
    featuresBeyond(of)
      .filter(({ leaf, register, bit }) =>
        entries.some((entry) => entry.function === leaf && entry.index === 0 && ((entry[register] >>> bit) & 1) !== 0),
      )
      .map(({ name }) => name);
  const missing = beyond(model);
  if (missing.length === 0) return undefined;
  const enough = CPU_MODELS.find((each) => beyond(each).length === 0)!;
  return `its guest has ${missing.join(", ")}, which this machine of CPU model ${model} lacks: it needs model ${enough}${enough === "max" ? "" : " or higher"}`;
}
