/** The module: what the kernel loads, and what its VMs share. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { Errno, type FileOperations, type Kernel, type KernelModule, type ModuleInstance } from "@mkvm/kvm-abi";
import { MAX_VCPU_ID, probeVmx, type SystemContext } from "@mkvm/kvm-core";
import type { OwnerId, Vac } from "@mkvm/vac";
import { systemFileOperations } from "./files/system-file.ts";
import { VmTransfer } from "./transfer.ts";
import { USER_RETURN_MSRS } from "./vcpu.ts";
import type { VendorOperations } from "./vendor-operations.ts";
import { VmxOperations } from "./vmx/vmx-operations.ts";

export interface Parameters {
  readonly eptAd: boolean;
  readonly kvmclock: boolean;
  readonly maxVcpus: number;
}

/** One loaded instance of the module on one logical CPU. */
export class Module {
  readonly kernel: Kernel<Vac, LogicalCpu>;
  readonly owner: OwnerId;
  readonly parameters: Parameters;
  readonly vendor: VendorOperations;
  readonly physicalBits: number;
  readonly #slots: readonly number[];

  constructor(
    kernel: Kernel<Vac, LogicalCpu>,
    owner: OwnerId,
    parameters: Parameters,
    slots: readonly number[],
    vendor: (module: Module) => VendorOperations,
  ) {
    this.kernel = kernel;
    this.owner = owner;
    this.parameters = parameters;
    this.#slots = slots;
    const sizes = kernel.cpu.cpuid(0x8000_0008, 0).eax & 0xff;
    this.physicalBits = sizes === 0 ? 36 : sizes;
    this.vendor = vendor(this);
  }

  get system(): SystemContext {
    return { cpu: this.kernel.cpu, maxVcpus: this.parameters.maxVcpus, kvmclock: this.parameters.kvmclock };
  }
  setUserReturnMsr(index: number, value: bigint): boolean {
    return this.kernel.vac.setUserReturnMsr(this.owner, this.#slots[index]!, value);
  }
}

function init(kernel: Kernel<Vac, LogicalCpu>): ModuleInstance | number {
  const { cpu, vac, parameters } = kernel;
  if (cpu.vendor !== "intel") {
    kernel.log("err", `${kernel.moduleName}: no support for ${cpu.vendor} processors`);
    return -Errno.EOPNOTSUPP;
  }
  const capabilities = probeVmx(cpu);
  if (typeof capabilities === "string") {
    kernel.log("err", `${kernel.moduleName}: ${capabilities}`);
    return -Errno.EOPNOTSUPP;
  }
  const owner = vac.registerOwner(kernel.moduleName);
  if (owner < 0) return owner;
  const slots: number[] = [];
  for (const msr of USER_RETURN_MSRS) {
    const slot = vac.registerUserReturnMsr(owner as OwnerId, msr);
    if (slot < 0) {
      vac.unregisterOwner(owner as OwnerId);
      return slot;
    }
    slots.push(slot);
  }
  const module = new Module(
    kernel,
    owner as OwnerId,
    {
      eptAd: parameters.ept_ad === true && capabilities.ept.accessedDirty,
      kvmclock: parameters.kvmclock === true,
      maxVcpus: Number(parameters.max_vcpus),
    },
    slots,
    (self) => new VmxOperations(self, capabilities),
  );
  const operations: FileOperations = systemFileOperations(module);
  return {
    devices: [{ name: "kvm", operations }],
    transfer: new VmTransfer(module, operations),
    exit: () => vac.unregisterOwner(owner as OwnerId),
  };
}

export const kernelModule: KernelModule<Vac, LogicalCpu> = {
  description: "KVM version 1 for Intel VMX: guest memory in 4 KiB pages by faults, with reverse maps",
  parameters: {
    ept_ad: { type: "bool", default: true, description: "let the processor set accessed and dirty bits in the EPT" },
    kvmclock: { type: "bool", default: true, description: "offer the paravirtual clock to guests" },
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
