/** The thread of one logical CPU, on the real hardware. */
import { createLogicalCpu, type Hpa } from "@mkvm/hw-x86";
import { attachVac } from "@mkvm/vac";
import { startCpuThread } from "./worker/start.ts";

startCpuThread({
  createCpu: (boot, log) => createLogicalCpu(boot.machine, boot.cpu, log),
  createVac: (boot, cpu, allocateCpuPages) =>
    attachVac(boot.vacShared, cpu, allocateCpuPages(1) as Hpa, allocateCpuPages(1) as Hpa),
});
