/** Statistics on their way between modules: optional, so a VM may come without. */
import { type Section, VcpuStatistics, VmStatistics } from "@mkvm/kvm-abi";
import type { VmUnderControl } from "../api/vm-state-ioctls.ts";

/** Undefined: restored, or none were sent. */
export function restoreStatistics(vm: VmUnderControl, sections: readonly Section[]): string | undefined {
  for (const section of sections) {
    if (section.name === VmStatistics.name) {
      const decoded = VmStatistics.decode(section);
      if (typeof decoded === "string") return decoded;
      vm.statistics.restore(decoded.entries);
    } else if (section.name === VcpuStatistics.name) {
      const decoded = VcpuStatistics.decode(section);
      if (typeof decoded === "string") return decoded;
      const vcpu = vm.vcpus().find(({ id }) => id === section.instance);
      if (vcpu === undefined) return `section ${section.name}[${section.instance}] is of a vCPU that was not sent`;
      vcpu.statistics.restore(decoded.entries);
    }
  }
  return undefined;
}
