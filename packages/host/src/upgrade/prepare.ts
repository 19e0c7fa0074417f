/** `prepare` of the new module, with a limit: it runs while the VM runs, and nothing but a limit ends one that hangs. */
import type { IncomingVm, VmDescription } from "@mkvm/kvm-abi";
import { messageOf, stackOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { alarm } from "../patience.ts";
import type { KernelProcess } from "../processes/process.ts";
import { incomingProblem } from "./answers.ts";

/** The incoming VM, or why there is none. What comes after the limit, or after the process's end, is aborted when it comes. */
export async function prepareWithin(
  limitMs: number,
  module: LoadedInstance,
  process: KernelProcess,
  description: VmDescription,
): Promise<IncomingVm | string> {
  const { kernel } = process;
  // Nobody would be told of it any more, and it waits for its module
  if (process.ending) return "the process ended";
  const { transfer } = module.instance;
  let givenUp: string | undefined;
  let giveUp = (_why: string): void => {};
  const patience = new Promise<string>((resolve) => {
    giveUp = (why) => {
      givenUp ??= why;
      resolve(why);
    };
  });
  const inTime = alarm(limitMs, () => giveUp(`${module.name} did not finish preparing within ${limitMs} ms`));
  const processEnds = (): void => giveUp("the process ended");
  process.atEnding.add(processEnds);
  kernel.current = process;
  const answer = Promise.resolve(transfer.prepare(process, description)).then((incoming) => {
    const problem = incomingProblem(incoming);
    if (givenUp !== undefined) {
      if (!problem && typeof incoming !== "string") abortLate(incoming, module, process);
      return givenUp;
    }
    return problem ? `${module.name}: ${problem}` : incoming;
  });
  process.preparing.add(answer);
  // Heard of already when nobody waits for it any more
  answer
    .catch((thrown) => {
      if (givenUp !== undefined) kernel.log("warn", module.name, `prepare failed after it was given up: ${messageOf(thrown)}`);
    })
    .finally(() => process.preparing.delete(answer));
  try {
    return await Promise.race([answer, patience]);
  } finally {
    inTime();
    process.atEnding.delete(processEnds);
  }
}

function abortLate(incoming: IncomingVm, module: LoadedInstance, process: KernelProcess): void {
  const { kernel } = process;
  kernel.log("warn", module.name, `prepared process ${process.pid} after the move was given up: aborted`);
  try {
    incoming.abort();
  } catch (thrown) {
    kernel.log("err", module.name, `exception while aborting a move: ${stackOf(thrown)}`);
  }
}
