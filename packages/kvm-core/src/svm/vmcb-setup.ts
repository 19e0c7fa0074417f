/** First contents of a vCPU's VMCB, and the permission maps. Source: AMD64 APM Vol. 2, SVM Intercepts. */
import {
  CrIntercept,
  Intercept1,
  Intercept2,
  VIRTUAL_BRANCH_RECORDS,
  VirtualInterrupt,
  VmcbControl,
  VmcbSave,
} from "../arch/vmcb-layout.ts";
import type { MsrFilter } from "../guest/msr-filter.ts";
import type { Vmcb } from "./vmcb.ts";

export const IO_MAP_PAGES = 3;
export const MSR_MAP_PAGES = 2;
export const EFER_SVME = 1n << 12n;
const RESET_PAT = 0x0007_0406_0007_0406n;

export interface VmcbSetup {
  readonly ioMap: number;
  readonly msrMap: number;
  readonly nestedCr3: bigint;
  readonly branchRecords: boolean;
}

export function setUpVmcb(vmcb: Vmcb, setup: VmcbSetup): void {
  // The guest's CR0 and CR3 are its own; CR4 holds what its CPUID allows, CR8 is the in-kernel APIC's
  vmcb.setWord(VmcbControl.CR_INTERCEPTS, CrIntercept.readCr8 | CrIntercept.writeCr4 | CrIntercept.writeCr8);
  vmcb.setWord(
    VmcbControl.INTERCEPTS_1,
    Intercept1.INTR |
      Intercept1.NMI |
      Intercept1.SMI |
      Intercept1.INIT |
      Intercept1.RDPMC |
      Intercept1.CPUID |
      Intercept1.INVD |
      Intercept1.HLT |
      Intercept1.INVLPGA |
      Intercept1.IOIO_PROT |
      Intercept1.MSR_PROT |
      Intercept1.TASK_SWITCH |
      Intercept1.SHUTDOWN,
  );
  // RDTSCP goes by the guest's CPUID
  vmcb.setWord(
    VmcbControl.INTERCEPTS_2,
    Object.values(Intercept2).reduce((all, bit) => all | bit, 0),
  );
  vmcb.setQuad(VmcbControl.IOPM_BASE_PA, BigInt(setup.ioMap));
  vmcb.setQuad(VmcbControl.MSRPM_BASE_PA, BigInt(setup.msrMap));
  vmcb.setWord(VmcbControl.VIRTUAL_INTERRUPT, VirtualInterrupt.masking);
  vmcb.setQuad(VmcbControl.NP_ENABLE, 1n);
  vmcb.setQuad(VmcbControl.N_CR3, setup.nestedCr3);
  if (setup.branchRecords) vmcb.setWord(VmcbControl.VIRTUAL_EXTENSIONS, VIRTUAL_BRANCH_RECORDS);
  vmcb.setQuad(VmcbSave.EFER, EFER_SVME);
  vmcb.setQuad(VmcbSave.G_PAT, RESET_PAT);
}

/** MSRs that the guest reads and writes without an exit: VMLOAD and VMSAVE move them, and any value that is taken is the guest's. */
const DIRECT_MSRS: readonly number[] = [
  0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0100, 0xc000_0101, 0xc000_0102,
];

/** Fills the MSR permission map: two bits for each MSR, read and write; all exit but the ones above that the filter allows. */
export function fillMsrMap(map: Uint8Array, filter: MsrFilter | undefined): void {
  map.fill(0xff);
  for (const msr of DIRECT_MSRS) {
    const at = (msr >= 0xc000_0000 ? 0x800 : 0) + ((msr & 0x1fff) >> 2);
    const allowed = (filter?.allows(msr, false) === false ? 0 : 1) | (filter?.allows(msr, true) === false ? 0 : 2);
    map[at]! &= ~(allowed << (2 * (msr & 3)));
  }
}
