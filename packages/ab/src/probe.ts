/** The program that runs in a VM's process under `mkvm ab`: the VMM, watched. Loaded by the host on a CPU's thread. */
export { main } from "./probe/main.ts";
