/** Version 2 with a fault: it throws in the middle of running a VM, when it has asked so often whether its slice is over. */
import type { Kernel, KernelModule } from "@mkvm/kvm-abi";
import kvm from "@mkvm/kvm-v2";

const faulty: KernelModule = {
  description: "Version 2 with a fault in its run loop.",
  parameters: {
    ...kvm.parameters,
    fault_after: { type: "int", default: 50, minimum: 1, maximum: 1_000_000, description: "looks until it throws" },
  },
  init(kernel: Kernel) {
    const { fault_after: faultAfter, ...parameters } = kernel.parameters;
    let left = Number(faultAfter);
    const needResched = (): boolean => {
      if (--left === 0) throw new Error("a fault in the run loop");
      return kernel.scheduler.needResched();
    };
    return kvm.init({ ...kernel, parameters, scheduler: { ...kernel.scheduler, needResched } });
  },
};

export default faulty;
