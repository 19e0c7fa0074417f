import type { Main } from "@mkvm/kvm-abi";
import { Calls } from "./bench-vm.ts";
import { contract } from "./suite.ts";

/** Runs the check whose name is its first argument. Status 0: passed. What failed goes to standard error. */
export const main: Main = async (sys, [name]) => {
  const check = contract.find((candidate) => candidate.name === name);
  try {
    if (!check) throw new Error(`no check is called "${name}"`);
    await check.run(new Calls(sys));
    return 0;
  } catch (error) {
    const text = new TextEncoder().encode(`${(error as Error).stack}\n`).subarray(0, 4096);
    const buffer = sys.mmap(4096, -1, 0);
    sys.memory.u8.set(text, buffer);
    sys.write(2, buffer, text.length);
    return 1;
  }
};
