/** SVM on and off: EFER.SVME and the host save area. Source: AMD64 APM Vol. 2, Enabling SVM; VM_HSAVE_PA MSR. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { EBUSY, EIO, EOPNOTSUPP } from "./errno.ts";
import type { Extension } from "./virtualization.ts";

const EXTENDED_FEATURES = 0x8000_0001;
const ECX_SVM = 1 << 2;
const EFER = 0xc000_0080;
const EFER_SVME = 1n << 12n;
const VM_CR = 0xc001_0114;
const VM_CR_SVMDIS = 1n << 4n;
const VM_HSAVE_PA = 0xc001_0117;

export interface SvmHooks {
  /** SVM has just gone on, or is about to go off. */
  wentOn(): void;
  goesOff(): void;
}

/** `saveArea`: the page that VMRUN keeps the CPU's host state in. */
export function createSvmExtension(cpu: LogicalCpu, saveArea: () => Hpa, hooks: SvmHooks): Extension {
  return {
    name: "SVM",
    on() {
      if ((cpu.cpuid(EXTENDED_FEATURES, 0).ecx & ECX_SVM) === 0) return -EOPNOTSUPP;
      // Processors without the MSR cannot have SVM locked off
      if (((cpu.rdmsr(VM_CR) ?? 0n) & VM_CR_SVMDIS) !== 0n) return -EOPNOTSUPP;
      if (saveArea() === 0) throw new Error(`VAC: CPU ${cpu.id} was attached without a host save area`);
      const efer = cpu.rdmsr(EFER);
      if (efer === undefined) return -EOPNOTSUPP;
      if (efer & EFER_SVME) return -EBUSY; // somebody outside VAC uses SVM
      if (!cpu.wrmsr(EFER, efer | EFER_SVME)) return -EIO;
      if (!cpu.wrmsr(VM_HSAVE_PA, BigInt(saveArea()))) {
        cpu.wrmsr(EFER, efer);
        return -EIO;
      }
      hooks.wentOn();
      return 0;
    },
    off() {
      hooks.goesOff();
      // With GIF clear, and no STGI once SVME is clear, the CPU would never take an interrupt again
      cpu.svm.stgi();
      cpu.wrmsr(VM_HSAVE_PA, 0n);
      const efer = cpu.rdmsr(EFER) ?? 0n;
      if (!cpu.wrmsr(EFER, efer & ~EFER_SVME)) throw new Error(`VAC: CPU ${cpu.id} does not let EFER.SVME go off`);
    },
  };
}
