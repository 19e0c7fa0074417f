export { Assembler, type Label, type Mem, mem, type Operand, type Reg } from "./assembler/assembler.ts";
export { type Firmware, findFirmware, findUefiFirmware, type UefiFirmware } from "./find-firmware.ts";
export { checkGuest } from "./guests/check-guest.ts";
export { type SmpGuest, smpGuest } from "./guests/smp/smp-guest.ts";
export { buildTimingGuest, type TimingProgram } from "./guests/timing-guest.ts";
export { type CheckReport, CheckWorkload } from "./linux-guest/check-workload.ts";
export { findLinuxGuest, guestCache, type LinuxGuest } from "./linux-guest/find-linux-guest.ts";
export { buildInitramfs } from "./linux-guest/initramfs.ts";
