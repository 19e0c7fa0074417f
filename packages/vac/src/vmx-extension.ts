/** VMX operation on and off. Source: Intel SDM Vol. 3C, Enabling and Entering VMX Operation. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { EBUSY, EIO, EOPNOTSUPP, VMX_SUCCEED } from "./errno.ts";
import type { Extension } from "./virtualization.ts";

const CR4_VMXE = 1n << 13n;
const IA32_FEATURE_CONTROL = 0x3a;
const FEATURE_CONTROL_LOCKED = 1n;
const FEATURE_CONTROL_VMX_OUTSIDE_SMX = 4n;
const IA32_VMX_BASIC = 0x480;

/** `region`: the CPU's VMXON region. */
export function createVmxExtension(cpu: LogicalCpu, region: () => Hpa): Extension {
  return {
    name: "VMX",
    on() {
      const control = cpu.rdmsr(IA32_FEATURE_CONTROL);
      if (control === undefined) return -EOPNOTSUPP;
      if (control & FEATURE_CONTROL_LOCKED) {
        if (!(control & FEATURE_CONTROL_VMX_OUTSIDE_SMX)) return -EOPNOTSUPP; // firmware turned VMX off for good
      } else if (!cpu.wrmsr(IA32_FEATURE_CONTROL, control | FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX_OUTSIDE_SMX))
        return -EIO;
      const basic = cpu.rdmsr(IA32_VMX_BASIC);
      if (basic === undefined) return -EOPNOTSUPP;
      if (cpu.cr4 & CR4_VMXE) return -EBUSY; // somebody outside VAC is in VMX operation
      cpu.cr4 |= CR4_VMXE;
      const revision = Number(basic & 0x7fff_ffffn);
      const bytes = cpu.memory.bytes(region(), 4);
      new DataView(bytes.buffer, bytes.byteOffset, 4).setUint32(0, revision, true);
      if (cpu.vmx.vmxon(region()) === VMX_SUCCEED) return 0;
      cpu.cr4 &= ~CR4_VMXE;
      return -EIO;
    },
    off() {
      const status = cpu.vmx.vmxoff();
      cpu.cr4 &= ~CR4_VMXE;
      if (status !== VMX_SUCCEED) throw new Error(`VAC: VMXOFF on CPU ${cpu.id} failed with status ${status}`);
    },
  };
}
