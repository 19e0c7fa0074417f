/** Statistics on their way between modules: optional, so a VM may come without. */
import { type Section, VcpuStatistics, VmStatistics } from "@mkvm/kvm-abi";
import type { VmUnderControl } from "../api/vm-state-ioctls.ts";

/** Undefined: restored, or none were sent. */
export function restoreStatistics(vm: VmUnderControl, sections: readonly Section[]): string | undefined {
  for (const section of sections) {
    if (section.name === VmStatistics.name) {
      const refused = vm.statistics.restore(VmStatistics, section);
      if (refused !== undefined) return refused;
    } else if (section.name === VcpuStatistics.name) {
      const vcpu = vm.vcpus().find(({ id }) => id === section.instance);
      if (vcpu === undefined) return `section ${section.name}[${section.instance}] is of a vCPU that was not sent`;
      const refused = vcpu.statistics.restore(VcpuStatistics, section);
      if (refused !== undefined) return refused;
    }
  }
  return undefined;
}
