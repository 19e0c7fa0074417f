/** The module: what the kernel loads, and what its VMs share. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel, KernelModule, ModuleInstance } from "@mkvm/kvm-abi";
import { claimVac, MAX_VCPU_ID, ModuleFiles, type VacClaim, VmTransfer } from "@mkvm/kvm-core";
import type { OwnerId, Vac } from "@mkvm/vac";
import { SvmOperations } from "./svm/svm-operations.ts";
import { Vcpu } from "./vcpu.ts";
import type { VendorOperations } from "./vendor-operations.ts";
import { Vm } from "./vm.ts";
import { VmxOperations } from "./vmx/vmx-operations.ts";

export interface Parameters {
  readonly eptAd: boolean;
  readonly kvmclock: boolean;
  readonly maxVcpus: number;
  readonly exitLatency: boolean;
}

/** One loaded instance of the module on one logical CPU. */
export class Module {
  readonly kernel: Kernel<Vac, LogicalCpu>;
  readonly parameters: Parameters;
  readonly vendor: VendorOperations;
  readonly #claim: VacClaim;

  constructor(kernel: Kernel<Vac, LogicalCpu>, claim: VacClaim, parameters: Parameters) {
    this.kernel = kernel;
    this.parameters = parameters;
    this.#claim = claim;
    const { vendor } = claim;
    this.vendor =
      vendor.name === "vmx" ? new VmxOperations(this, vendor.capabilities) : new SvmOperations(this, vendor.capabilities);
  }

  get owner(): OwnerId {
    return this.#claim.owner;
  }
  get physicalBits(): number {
    return this.#claim.physicalBits;
  }
  /** MSRs that VAC exchanges for the module. */
  get userReturnMsrs(): readonly number[] {
    return this.#claim.userReturnMsrs;
  }
  /** `index`: into userReturnMsrs. */
  setUserReturnMsr(index: number, value: bigint): boolean {
    return this.kernel.vac.setUserReturnMsr(this.owner, this.#claim.slots[index]!, value);
  }
}

function init(kernel: Kernel<Vac, LogicalCpu>): ModuleInstance | number {
  const claim = claimVac(kernel);
  if (typeof claim === "number") return claim;
  const { parameters } = kernel;
  const module = new Module(kernel, claim, {
    eptAd: parameters.ept_ad === true && claim.vendor.name === "vmx" && claim.vendor.capabilities.ept.accessedDirty,
    kvmclock: parameters.kvmclock === true,
    maxVcpus: Number(parameters.max_vcpus),
    exitLatency: parameters.exit_latency === true,
  });
  const { maxVcpus, kvmclock } = module.parameters;
  const files = new ModuleFiles(kernel.moduleName, { cpu: kernel.cpu, maxVcpus, kvmclock }, (process) =>
    Vm.create(module, process),
  );
  const transfer = new VmTransfer<Vm>({
    files,
    isVm: (value) => value instanceof Vm,
    isVcpu: (value) => value instanceof Vcpu,
    createVm: (process) => Vm.create(module, process),
    refuse: (shape) =>
      shape.vcpu_count > maxVcpus
        ? `the VM has ${shape.vcpu_count} vCPUs, max_vcpus of ${kernel.moduleName} is ${maxVcpus}`
        : undefined,
    // Guest memory comes in by faults
    buildAhead: () => Promise.resolve(),
  });
  return {
    devices: [{ name: "kvm", operations: files.systemOperations }],
    transfer,
    exit: () => kernel.vac.unregisterOwner(claim.owner),
  };
}

export const kernelModule: KernelModule<Vac, LogicalCpu> = {
  description: "KVM version 1 for Intel VMX and AMD SVM: guest memory in 4 KiB pages by faults, with reverse maps",
  parameters: {
    ept_ad: {
      type: "bool",
      default: true,
      description: "let the processor set accessed and dirty bits in the EPT (VMX; nested page tables always have them)",
    },
    kvmclock: { type: "bool", default: true, description: "offer the paravirtual clock to guests" },
    exit_latency: {
      type: "bool",
      default: false,
      description: "measure how long exits and interrupts take, for the statistics: two looks at the clock for each exit",
    },
    max_vcpus: {
      type: "int",
      default: MAX_VCPU_ID,
      minimum: 1,
      maximum: MAX_VCPU_ID,
      description: "most vCPUs that one VM may have",
    },
  },
  init,
};
