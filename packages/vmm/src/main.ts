import type { Main } from "@mkvm/kvm-abi";
import { parseArguments } from "./arguments.ts";
import { report } from "./console.ts";
import { KvmCallError } from "./kvm-calls.ts";
import { VirtualMachine } from "./virtual-machine.ts";
import { ExitStatus, VmmError } from "./vmm-error.ts";

/**
 * The program: makes one VM as the arguments say, or takes up one that was saved, runs it to its end, and returns the exit status (see ExitStatus). Arguments:
 * --kernel IMAGE | --pflash CODE [--pflash VARIABLES] [--initrd FILE] [--append TEXT] [--memory SIZE] [--cpus N] [--cpu MODEL]
 * [--format flat16|flat32|flat64|firmware] [--device PATH] [--digest]
 */
export const main: Main = async (sys, args) => {
  try {
    const options = parseArguments(args);
    const saved = sys.restored();
    const vm = saved
      ? await VirtualMachine.restore(sys, saved, options.flash?.variables)
      : await VirtualMachine.create(sys, options);
    const end = await vm.run();
    if (options.digest) report(sys, await vm.digest());
    if (end.message) report(sys, end.message);
    return end.status;
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    report(sys, error.message);
    return error instanceof KvmCallError ? error.exitStatus : ExitStatus.usage;
  }
};
