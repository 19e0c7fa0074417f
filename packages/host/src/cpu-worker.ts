/** The thread of one logical CPU, on the real hardware. */
import { createLogicalCpu, type Hpa } from "@mkvm/hw-x86";
import { attachVac } from "@mkvm/vac";
import { startCpuThread } from "./worker/start.ts";

startCpuThread({
  createCpu: (boot, log, regions) => createLogicalCpu(boot.machine, boot.cpu, log, regions),
  createVac: (boot, cpu, allocateCpuPages) =>
    attachVac(boot.vacShared, cpu, allocateCpuPages(1) as Hpa, allocateCpuPages(1) as Hpa),
});
