export { Assembler, type Label, type Mem, mem, type Operand, type Reg } from "./assembler/assembler.ts";
export { findBochs, runBochs } from "./bochs.ts";
export { type Firmware, findFirmware, findUefiFirmware, type UefiFirmware } from "./find-firmware.ts";
export { checkGuest } from "./guests/check-guest.ts";
export { type SmpGuest, smpGuest } from "./guests/smp/smp-guest.ts";
export type { SystemCase } from "./guests/system/case-writer.ts";
export { systemCases } from "./guests/system/system-cases.ts";
export { systemGuest } from "./guests/system/system-guest.ts";
export {
  compareOutcomes,
  type Difference,
  describeDifference,
  missingDifferences,
  type Outcome,
  readTranscript,
} from "./guests/system/transcript.ts";
export { buildTimingGuest, type TimingProgram } from "./guests/timing-guest.ts";
export { type CheckReport, CheckWorkload } from "./linux-guest/check-workload.ts";
export { findLinuxGuest, guestCache, type LinuxGuest } from "./linux-guest/find-linux-guest.ts";
export { buildInitramfs } from "./linux-guest/initramfs.ts";
