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
  readonly haltPollNs: number;
  readonly hugePages: boolean;
  readonly accessedDirty: boolean;
  readonly kvmclock: boolean;
  readonly maxVcpus: number;
  readonly exitLatency: boolean;
  /** The processor has the local APICs in hand. */
  readonly apicVirtualization: boolean;
  /** The processor logs which pages the guest makes dirty. */
  readonly modificationLog: boolean;
}

/** One loaded instance of the module on one logical CPU. */
export class Module {
  readonly kernel: Kernel<Vac, LogicalCpu>;
  readonly parameters: Parameters;
  readonly owner: OwnerId;
  readonly physicalBits: number;
  readonly vendor: VendorOperations;
  /** MSRs that VAC exchanges for the module. */
  readonly userReturnMsrs: readonly number[];
  readonly #userReturnSlots: readonly number[];

  constructor(kernel: Kernel<Vac, LogicalCpu>, claim: VacClaim, parameters: Parameters) {
    this.kernel = kernel;
    this.parameters = parameters;
    this.owner = claim.owner;
    this.physicalBits = claim.physicalBits;
    this.#userReturnSlots = claim.slots;
    this.userReturnMsrs = claim.userReturnMsrs;
    const { vendor } = claim;
    this.vendor =
      vendor.name === "vmx" ? new VmxOperations(this, vendor.capabilities) : new SvmOperations(this, vendor.capabilities);
  }

  /** `index`: into userReturnMsrs. */
  setUserReturnMsr(index: number, value: bigint): boolean {
    return this.kernel.vac.setUserReturnMsr(this.owner, this.#userReturnSlots[index]!, value);
  }
}

function init(kernel: Kernel<Vac, LogicalCpu>): ModuleInstance | number {
  const claim = claimVac(kernel);
  if (typeof claim === "number") return claim;
  const { parameters } = kernel;
  const { vendor } = claim;
  // Nested page tables have both, always
  const ept = vendor.name === "vmx" ? vendor.capabilities.ept : { pages2m: true, accessedDirty: true };
  const module = new Module(kernel, claim, {
    haltPollNs: Number(parameters.halt_poll_ns),
    hugePages: parameters.huge_pages === true && ept.pages2m,
    accessedDirty: ept.accessedDirty,
    kvmclock: parameters.kvmclock === true,
    maxVcpus: Number(parameters.max_vcpus),
    exitLatency: parameters.exit_latency === true,
    apicVirtualization: parameters.enable_apicv === true && vendor.name === "vmx" && vendor.capabilities.apicVirtualization,
    modificationLog: parameters.pml === true && vendor.name === "vmx" && vendor.capabilities.modificationLog,
  });
  const { maxVcpus, kvmclock } = module.parameters;
  const createVm = (process: Vm["process"]): Vm | number => Vm.create(module, process);
  const files = new ModuleFiles(kernel.moduleName, { cpu: kernel.cpu, maxVcpus, kvmclock }, createVm);
  const transfer = new VmTransfer<Vm>({
    files,
    isVm: (value) => value instanceof Vm,
    isVcpu: (value) => value instanceof Vcpu,
    createVm,
    refuse: ({ vcpu_count }) =>
      vcpu_count > maxVcpus ? `the VM has ${vcpu_count} vCPUs, max_vcpus of ${kernel.moduleName} is ${maxVcpus}` : undefined,
    buildAhead: (vm) => vm.mmu.buildAhead(),
  });
  return {
    devices: [{ name: "kvm", operations: files.systemOperations }],
    transfer,
    exit: () => kernel.vac.unregisterOwner(claim.owner),
  };
}

export const kernelModule: KernelModule<Vac, LogicalCpu> = {
  description: "KVM version 2 for Intel VMX and AMD SVM: two-dimensional paging with 2 MiB pages, lazy registers, halt polling",
  parameters: {
    halt_poll_ns: {
      type: "int",
      default: 50_000,
      minimum: 0,
      maximum: 1_000_000,
      description: "longest time that a halted vCPU looks for a wake-up before it blocks, ns; 0: blocks at once",
    },
    enable_apicv: {
      type: "bool",
      default: true,
      description: "Intel: let the processor virtualize local APICs and deliver their interrupts, where it can",
    },
    huge_pages: { type: "bool", default: true, description: "map guest memory with 2 MiB pages where it is aligned for them" },
    kvmclock: { type: "bool", default: true, description: "offer the paravirtual clock to guests" },
    pml: {
      type: "bool",
      default: true,
      description:
        "Intel: let the processor log which pages guests write, for dirty logs, where it can; else pages are write-protected",
    },
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
