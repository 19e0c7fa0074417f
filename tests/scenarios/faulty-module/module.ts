/**
 * Version 2 with a fault: it throws in the middle of running a VM, with its vCPU on the CPU, when it has asked so often whether its slice
 * is over; or it takes the CPU's thread with it when it lets go of a VM that has moved to another CPU, or hangs there until somebody
 * posts to the broadcast channel of its name.
 */
import { BroadcastChannel, type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import type { LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel, KernelModule } from "@mkvm/kvm-abi";
import kvm from "@mkvm/kvm-v2";
import type { Vac } from "@mkvm/vac";

const faulty: KernelModule<Vac, LogicalCpu> = {
  description: "Version 2 with a fault in its run loop.",
  parameters: {
    ...kvm.parameters,
    ends_thread: { type: "bool", default: false, description: "ends the CPU's thread when it lets go of a VM" },
    hangs: { type: "bool", default: false, description: "hangs when it lets go of a VM" },
    fault_after: { type: "int", default: 50, minimum: 1, maximum: 1_000_000, description: "looks until it throws" },
  },
  init(kernel: Kernel<Vac, LogicalCpu>) {
    const { fault_after: faultAfter, ends_thread: endsThread, hangs, ...parameters } = kernel.parameters;
    let left = Number(faultAfter);
    const needResched = (): boolean => {
      if (!endsThread && !hangs && --left <= 0 && kernel.vac.runningVcpu(kernel.cpu.id) !== undefined)
        throw new Error("a fault in the run loop");
      return kernel.scheduler.needResched();
    };
    const instance = kvm.init({ ...kernel, parameters, scheduler: { ...kernel.scheduler, needResched } });
    if (typeof instance === "number") return instance;
    const { transfer } = instance;
    if (endsThread) transfer.releaseMoved = () => process.exit(3);
    if (hangs) {
      const releaseMoved = transfer.releaseMoved.bind(transfer);
      transfer.releaseMoved = (file) => {
        hang();
        return releaseMoved(file);
      };
    }
    return instance;
  },
};

function hang(): void {
  const channel = new BroadcastChannel("faulty-module");
  const never = new Int32Array(new SharedArrayBuffer(4));
  while (!receiveMessageOnPort(channel as unknown as MessagePort)) Atomics.wait(never, 0, 0, 1);
  channel.close();
}

export default faulty;
