/** What `ps` and `lsmod` tell of a CPU's processes. */
import type { ModuleUser, ProcessInfo } from "../control/types.ts";
import type { KernelProcess } from "./process.ts";

export function processInfo(process: KernelProcess): ProcessInfo {
  const { kernel } = process;
  const owners = new Set<string>();
  let vms = 0;
  for (const [, file] of process.moduleFiles()) {
    const { owner } = file.operations;
    owners.add(owner);
    if (kernel.modules.get(owner)?.instance.transfer.roleOf(file).kind === "vm") vms++;
  }
  const waiting = [...process.tasks].every((task) => task.interruptWait !== undefined);
  const fault = [...process.moduleFiles()].find(([, file]) => file.fault !== undefined)?.[1].fault;
  return {
    pid: process.pid,
    name: process.name,
    cpu: kernel.id,
    ...(fault !== undefined && { fault }),
    state: process.ending ? "ending" : process.frozen ? "frozen" : waiting ? "waiting" : "running",
    threads: process.tasks.size,
    modules: [...owners],
    vms,
    previous: [...process.previous].reverse(),
    memoryBytes: process.memory.bank.sizeBytes,
    retiredInstructions: kernel.cpu.retiredInstructions() - process.startRetired,
    uptimeS: Math.round((Date.now() - process.startedMs) / 100) / 10,
    moves: process.moves,
  };
}

/** What a process has of a module. */
export function* usesOf(name: string, process: KernelProcess): Generator<ModuleUser> {
  const use = (fd: number, what: string): ModuleUser => ({ pid: process.pid, process: process.name, fd, what });
  for (const [fd, file] of process.moduleFiles()) if (file.operations.owner === name) yield use(fd, file.name);
  if (process.previous.includes(name)) yield use(-1, "can roll back to it until finalised");
  if (process.standstill?.module === name) yield use(-1, "is moving to it");
}

/** The same of one that is on its way to the CPU: nothing of it is open yet. */
export function* usesOfComing(name: string, process: KernelProcess): Generator<ModuleUser> {
  const owners = [...process.moduleFiles()].map(([, file]) => file.operations.owner);
  if (owners.includes(name) || process.previous.includes(name) || process.arrivesOn === name)
    yield { pid: process.pid, process: process.name, fd: -1, what: `is moving to cpu${process.kernel.id}` };
}
