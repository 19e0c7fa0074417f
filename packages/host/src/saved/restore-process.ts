/** `mkvm restore`: a process from a file. What fails, at any place, leaves the host as it was. */
import type { ProcessRestore } from "../control/protocol.ts";
import { HostError, messageOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { pageBytes } from "../memory/page-allocator.ts";
import { BankUserMemory } from "../memory/user-memory.ts";
import { ConsoleInput } from "../processes/console.ts";
import { KernelProcess } from "../processes/process.ts";
import type { CpuKernel } from "../worker/cpu-kernel.ts";
import { SavedFile } from "./file-reader.ts";
import type { ProcessImage } from "./process-image.ts";
import { blockerOfResume, resumeVms } from "./resume-process.ts";

/** The process, with its VMs on a module, before its program runs. @throws HostError that names what is wrong with the file or the host */
export async function restoreProcess(
  kernel: CpuKernel,
  restore: ProcessRestore,
): Promise<{ process: KernelProcess; module: string }> {
  const file = await SavedFile.open(restore.path);
  try {
    const image = await file.image(await file.manifest());
    const module = moduleFor(kernel, restore, image);
    const machine = { ...kernel.machine, tscKhz: kernel.cpu.tscKhz };
    const blocker = blockerOfResume(image, machine, module);
    if (blocker) throw new HostError("EINVAL", `${restore.path}: ${blocker}; nothing was restored`);
    const memory = mapMemory(kernel, restore, image);
    try {
      await file.readMemory(image, memory.bank.u8);
      return { process: await build(kernel, restore, image, memory, module), module: module.name };
    } catch (thrown) {
      kernel.memory.forget(restore.bank);
      kernel.cpu.memory.releaseBank(restore.bank);
      throw thrown;
    }
  } finally {
    await file.close();
  }
}

function moduleFor(kernel: CpuKernel, restore: ProcessRestore, image: ProcessImage): LoadedInstance {
  const path = image.systemFiles[0]?.path ?? "/dev/kvm";
  let name = restore.module;
  if (name === undefined) {
    const node = kernel.tree.createNamespace().lookup(path);
    if (typeof node === "number")
      throw new HostError(
        "ENOENT",
        `there is no ${path}, which the saved VM had open: link it with 'mkvm ln', or name a module with --module`,
      );
    name = node.module;
  }
  const module = kernel.modules.get(name);
  if (!module || module.seized || module.draining)
    throw new HostError("ENOENT", `no module ${name} is loaded that takes VMs: see 'mkvm lsmod'`);
  return module;
}

/** Memory at the addresses that it had, zeroed. */
function mapMemory(kernel: CpuKernel, restore: ProcessRestore, image: ProcessImage): BankUserMemory {
  let memory: BankUserMemory;
  try {
    memory = new BankUserMemory(kernel.cpu.memory.createBank(restore.bank, image.bankBytes));
  } catch (thrown) {
    throw new HostError("ENOMEM", `no room for ${image.bankBytes} bytes of memory: ${messageOf(thrown)}`);
  }
  kernel.memory.adopt(restore.bank, memory.pages);
  const taken = image.memory.every(({ address, lengthBytes }) => memory.pages.allocateUserAt(address, lengthBytes / pageBytes));
  if (taken) return memory;
  kernel.memory.forget(restore.bank);
  kernel.cpu.memory.releaseBank(restore.bank);
  throw new HostError(
    "EINVAL",
    `${restore.path}: section manifest[0]: its memory cannot lie where it lay; nothing was restored`,
  );
}

async function build(
  kernel: CpuKernel,
  restore: ProcessRestore,
  image: ProcessImage,
  memory: BankUserMemory,
  module: LoadedInstance,
): Promise<KernelProcess> {
  // So that a run under icount is the same as without: there its clock is a function of what has run
  if (!kernel.hasProcesses) kernel.scheduler.windTo(image.clock.tsc);
  const { program: sections, undelivered, turns, retired } = image;
  const process = new KernelProcess({
    pid: restore.pid,
    name: image.name,
    args: image.args,
    memory,
    mounts: kernel.tree.createNamespace(),
    input: new ConsoleInput(),
    output: kernel.outputOf(restore.pid),
    kernel,
    saved: { sections, undelivered, turns, retired },
  });
  await resumeVms(process, image, module);
  process.input.push(image.input.bytes);
  if (image.input.ended) process.input.end();
  return process;
}
