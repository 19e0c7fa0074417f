/**
 * MSRs of root mode on a processor with SVM. What VMLOAD and VMSAVE move is the guest's and the host's at once. Source: AMD64 APM
 * Vol. 2, SVM Related MSRs.
 */
import { FS, GS, SEG_BASE, segmentOffset, state } from "../engine/cpu-state.ts";
import { constantMsr } from "../engine/system/msrs.ts";
import { Msr } from "../msr.ts";
import { type MsrSet, Root } from "../root-msrs.ts";

const EFER_SVME = 1n << 12n;
/** VM_CR: EFER.SVME cannot be set; this bit and that one cannot change. */
const SVM_DISABLE = 1n << 4n;
const LOCK = 1n << 3n;
const VM_CR_DEFINED = 0x1fn;
const TSC_RATIO_RESERVED = 0xffff_ff00_0000_0000n;
const LBR_AND_BTF = 3n;
const PHYSICAL_ADDRESSES = 1n << 52n;

function acceptsVmCr(value: bigint, values: BigUint64Array): boolean {
  const old = values[Root.vmCr] as bigint;
  if ((value & ~VM_CR_DEFINED) !== 0n) return false;
  const isSvmOn = ((values[Root.efer] as bigint) & EFER_SVME) !== 0n;
  if (isSvmOn && (value & SVM_DISABLE) !== 0n) return false;
  return (old & LOCK) === 0n || ((value ^ old) & (LOCK | SVM_DISABLE)) === 0n;
}

export const amdMsrs: MsrSet = {
  own: new Map<number, number>([
    [Msr.APIC_BASE, Root.apicBase],
    [Msr.DEBUGCTL, Root.debugctl],
    [Msr.PAT, Root.pat],
    [Msr.EFER, Root.efer],
    [Msr.VM_CR, Root.vmCr],
    [Msr.VM_HSAVE_PA, Root.hostSaveArea],
    [Msr.TSC_RATIO, Root.tscRatio],
  ]),
  shared: new Map<number, number>([
    [Msr.STAR, state.star],
    [Msr.LSTAR, state.lstar],
    [Msr.CSTAR, state.cstar],
    [Msr.FMASK, state.fmask],
    [Msr.FS_BASE, segmentOffset(FS) + SEG_BASE],
    [Msr.GS_BASE, segmentOffset(GS) + SEG_BASE],
    [Msr.KERNEL_GS_BASE, state.kernelGsBase],
    [Msr.SYSENTER_CS, state.sysenterCs],
    [Msr.SYSENTER_ESP, state.sysenterEsp],
    [Msr.SYSENTER_EIP, state.sysenterEip],
    [Msr.TSC_AUX, state.tscAux],
    [Msr.LAST_BRANCH_FROM, state.branchFrom],
    [Msr.LAST_BRANCH_TO, state.branchTo],
    [Msr.LAST_EXCEPTION_FROM, state.exceptionFrom],
    [Msr.LAST_EXCEPTION_TO, state.exceptionTo],
  ]),
  constant: (index) => constantMsr(index, "amd"),
  accepts(index, value, values) {
    switch (index) {
      case Msr.EFER:
        return (value & EFER_SVME) === 0n || ((values[Root.vmCr] as bigint) & SVM_DISABLE) === 0n;
      case Msr.VM_CR:
        return acceptsVmCr(value, values);
      case Msr.VM_HSAVE_PA:
        return (value & 0xfffn) === 0n && value < PHYSICAL_ADDRESSES;
      case Msr.DEBUGCTL:
        return (value & ~LBR_AND_BTF) === 0n;
      case Msr.LAST_BRANCH_FROM:
      case Msr.LAST_BRANCH_TO:
      case Msr.LAST_EXCEPTION_FROM:
      case Msr.LAST_EXCEPTION_TO:
        return false;
      case Msr.TSC_RATIO:
        return (value & TSC_RATIO_RESERVED) === 0n;
      default:
        return true;
    }
  },
};
