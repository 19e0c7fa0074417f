/**
 * Version 2 with a fault: it throws in the middle of running a VM, with its vCPU on the CPU, when it has asked so often whether its slice
 * is over; or it takes the CPU's thread with it when it lets go of a VM that has moved to another CPU.
 */
import type { LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel, KernelModule } from "@mkvm/kvm-abi";
import kvm from "@mkvm/kvm-v2";
import type { Vac } from "@mkvm/vac";

const faulty: KernelModule<Vac, LogicalCpu> = {
  description: "Version 2 with a fault in its run loop.",
  parameters: {
    ...kvm.parameters,
    ends_thread: { type: "bool", default: false, description: "ends the CPU's thread when it lets go of a VM" },
    fault_after: { type: "int", default: 50, minimum: 1, maximum: 1_000_000, description: "looks until it throws" },
  },
  init(kernel: Kernel<Vac, LogicalCpu>) {
    const { fault_after: faultAfter, ends_thread: endsThread, ...parameters } = kernel.parameters;
    let left = Number(faultAfter);
    const needResched = (): boolean => {
      if (!endsThread && --left <= 0 && kernel.vac.runningVcpu(kernel.cpu.id) !== undefined)
        throw new Error("a fault in the run loop");
      return kernel.scheduler.needResched();
    };
    const instance = kvm.init({ ...kernel, parameters, scheduler: { ...kernel.scheduler, needResched } });
    if (endsThread && typeof instance !== "number") instance.transfer.releaseMoved = () => process.exit(3);
    return instance;
  },
};

export default faulty;
