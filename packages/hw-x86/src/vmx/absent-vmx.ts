/** VMX on a processor without it: every instruction is an undefined opcode. */
import { type VmxInstructions, VmxStatus } from "../logical-cpu.ts";

const undefinedOpcode = (): VmxStatus => VmxStatus.undefinedOpcode;

export const absentVmx: VmxInstructions = {
  vmxon: undefinedOpcode,
  vmxoff: undefinedOpcode,
  vmclear: undefinedOpcode,
  vmptrld: undefinedOpcode,
  vmptrst: () => undefined,
  vmread: () => 0n,
  vmread32: () => 0,
  vmreadNumber: () => 0,
  vmwrite: undefinedOpcode,
  vmlaunch: undefinedOpcode,
  vmresume: undefinedOpcode,
  invept: undefinedOpcode,
  invvpid: undefinedOpcode,
  status: VmxStatus.undefinedOpcode,
};
