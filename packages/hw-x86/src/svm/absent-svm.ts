/** SVM on a processor without it: every instruction is an undefined opcode. */
import { type SvmInstructions, SvmStatus } from "../logical-cpu.ts";

const undefinedOpcode = (): SvmStatus => SvmStatus.undefinedOpcode;

export const absentSvm: SvmInstructions = {
  vmrun: undefinedOpcode,
  vmload: undefinedOpcode,
  vmsave: undefinedOpcode,
  stgi: undefinedOpcode,
  clgi: undefinedOpcode,
  invlpga: undefinedOpcode,
  gif: true,
};
