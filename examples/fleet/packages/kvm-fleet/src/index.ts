import type { KernelModule } from "@mkvm/kvm-abi";
import kvm from "@mkvm/kvm-v2";

/** Our guests wake up often and soon: polling longer before a vCPU blocks pays here. */
const haltPoll = { ...kvm.parameters.halt_poll_ns, default: 80_000 };

const module: KernelModule = {
  ...kvm,
  description: `${kvm.description}; with the defaults of our fleet`,
  parameters: { ...kvm.parameters, halt_poll_ns: haltPoll } as KernelModule["parameters"],
};
export default module;
