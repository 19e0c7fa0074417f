/**
 * Statistics of a process's VMs, read as a kernel shows them in debugfs: without the VMM's help, and through nothing but what a
 * VMM would use, KVM_GET_STATS_FD and read, on an open file of the kernel's own.
 */
import { Errno, type Eventfd, type File, Ioctl, type NewFile, type Process } from "@mkvm/kvm-abi";
import type { VmStatistics } from "../control/types.ts";
import { ModuleFile } from "../devices/open-file.ts";
import { HostError } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import { KernelTask } from "../processes/task.ts";
import { readBinaryStatistics, type StatisticsFileContent } from "./binary-statistics.ts";

/** All VMs of the process, in the order of their descriptors, with the vCPUs whose descriptors are open. */
export function statisticsOfProcess(process: KernelProcess): VmStatistics[] {
  const found: VmStatistics[] = [];
  for (const [fd, file] of process.moduleFiles()) {
    const { owner } = file.operations;
    const transfer = process.kernel.modules.get(owner)?.instance.transfer;
    if (transfer?.roleOf(file).kind !== "vm") continue;
    const vcpus = transfer.filesOf(file).flatMap((each) => {
      const role = transfer.roleOf(each);
      return role.kind === "vcpu" ? [{ id: role.id, statistics: contentOf(process, each).statistics }] : [];
    });
    const { id, statistics } = contentOf(process, file);
    found.push({
      pid: process.pid,
      process: process.name,
      fd,
      id,
      module: owner,
      statistics,
      vcpus: vcpus.sort((a, b) => a.id - b.id),
    });
  }
  return found;
}

function contentOf(process: KernelProcess, file: File): StatisticsFileContent {
  const { kernel } = process;
  const before = kernel.current;
  // Whom to blame should the module throw
  kernel.current = process;
  try {
    return readOnOwnFile(process, file);
  } finally {
    kernel.current = before;
  }
}

function readOnOwnFile(process: KernelProcess, file: File): StatisticsFileContent {
  const kernelOpen = new KernelOpen(process);
  const own = new ModuleFile(file.name, kernelOpen, file.operations, file.privateData);
  const task = new KernelTask(0, kernelOpen, "statistics");
  const fd = own.operations.ioctl?.(own, Ioctl.KVM_GET_STATS_FD, 0, task) ?? -Errno.ENOTTY;
  const opened = typeof fd === "number" && fd >= 0 ? kernelOpen.opened : undefined;
  if (opened?.operations.read === undefined) {
    opened?.operations.release?.(opened);
    throw new HostError("ENOTTY", `${own.operations.owner} gives no statistics of ${file.name} (KVM_GET_STATS_FD)`);
  }
  try {
    return readBinaryStatistics((into, offset) => opened.operations.read!(opened, into, offset));
  } finally {
    opened.operations.release?.(opened);
  }
}

/** The process as the module sees it, but for new descriptors: those are the kernel's, and the program never sees them. */
class KernelOpen implements Process {
  readonly #process: KernelProcess;
  opened: ModuleFile | undefined;

  constructor(process: KernelProcess) {
    this.#process = process;
  }
  get pid(): number {
    return this.#process.pid;
  }
  get name(): string {
    return this.#process.name;
  }
  get bank(): number {
    return this.#process.bank;
  }
  get memory(): Process["memory"] {
    return this.#process.memory;
  }
  installFile(file: NewFile): number {
    this.opened = new ModuleFile(file.name, this, file.operations, file.privateData);
    return 0;
  }
  file(fd: number): File | undefined {
    return this.#process.file(fd);
  }
  eventfd(fd: number): Eventfd | number {
    return this.#process.eventfd(fd);
  }
  eventfdById(id: number): Eventfd | undefined {
    return this.#process.eventfdById(id);
  }
}
