/** MSRs of root mode on a processor with VMX. */
import { state } from "../engine/cpu-state.ts";
import { constantMsr } from "../engine/system/msrs.ts";
import { Msr } from "../msr.ts";
import { type MsrSet, Root } from "../root-msrs.ts";
import { vmxCapability } from "./capabilities.ts";

export const intelMsrs: MsrSet = {
  own: new Map<number, number>([
    [Msr.APIC_BASE, Root.apicBase],
    [Msr.TSC_ADJUST, Root.tscAdjust],
    [Msr.SYSENTER_CS, Root.sysenterCs],
    [Msr.SYSENTER_ESP, Root.sysenterEsp],
    [Msr.SYSENTER_EIP, Root.sysenterEip],
    [Msr.MISC_ENABLE, Root.miscEnable],
    [Msr.DEBUGCTL, Root.debugctl],
    [Msr.PAT, Root.pat],
    [Msr.EFER, Root.efer],
    [Msr.FS_BASE, Root.fsBase],
    [Msr.GS_BASE, Root.gsBase],
  ]),
  shared: new Map<number, number>([
    [Msr.STAR, state.star],
    [Msr.LSTAR, state.lstar],
    [Msr.CSTAR, state.cstar],
    [Msr.FMASK, state.fmask],
    [Msr.KERNEL_GS_BASE, state.kernelGsBase],
    [Msr.TSC_AUX, state.tscAux],
  ]),
  constant: (index, model) => vmxCapability(index, model) ?? constantMsr(index, "intel"),
  accepts: () => true,
};
