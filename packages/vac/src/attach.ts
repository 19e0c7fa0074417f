/** VAC on one logical CPU. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { createAsids } from "./asids.ts";
import { CpuBlock, cpuBlock, Header, openVacMemory } from "./layout.ts";
import { createLoadedVmcss } from "./loaded-vmcs.ts";
import { createOwners } from "./owners.ts";
import { createRunningVcpu } from "./running-vcpu.ts";
import { createSvmExtension } from "./svm-extension.ts";
import { createTscRatio } from "./tsc-ratio.ts";
import { createUserReturnMsrs } from "./user-return-msrs.ts";
import type { OwnerId, Vac } from "./vac.ts";
import { createVirtualization } from "./virtualization.ts";
import { createVmxExtension } from "./vmx-extension.ts";
import { createVpids } from "./vpids.ts";

/**
 * Attaches the calling thread's CPU. `vmxonRegion` and `saveArea` (the host save area, for SVM) are pages that only VAC uses from
 * then on. A CPU that is attached already
 * keeps the regions it has: the ones given are not looked at. Throws when the memory's layout is not one this code understands.
 */
export function attachVac(shared: SharedArrayBuffer, cpu: LogicalCpu, vmxonRegion: Hpa, saveArea?: Hpa): Vac {
  const memory = openVacMemory(shared);
  if (cpu.id >= memory.cpus) throw new RangeError(`VAC memory is for ${memory.cpus} CPUs, this is CPU ${cpu.id}`);
  const block = cpuBlock(cpu.id);
  if (Atomics.exchange(memory.words, (block + CpuBlock.attached) >> 2, 1) === 0) {
    memory.quads[(block + CpuBlock.vmxonRegion) >> 3] = BigInt(vmxonRegion);
    memory.quads[(block + CpuBlock.saveArea) >> 3] = BigInt(saveArea ?? 0);
  }
  const owners = createOwners(memory, cpu.id);
  const loaded = createLoadedVmcss(memory, cpu);
  const asids = createAsids(memory, cpu);
  const tscRatio = createTscRatio(memory, cpu);
  const page = (field: number) => Number(memory.quads[(block + field) >> 3]) as Hpa;
  const isIntel = cpu.vendor === "intel";
  const extension = isIntel
    ? createVmxExtension(cpu, () => page(CpuBlock.vmxonRegion))
    : createSvmExtension(cpu, () => page(CpuBlock.saveArea), {
        wentOn: () => asids.start(),
        goesOff: () => tscRatio.reset(undefined),
      });
  const virtualization = createVirtualization(memory, cpu.id, extension, loaded);
  const emergencyCallbacks = new Map<OwnerId, () => void>();
  const vpids = createVpids(memory, cpu);
  const userReturn = createUserReturnMsrs(memory, cpu);
  const running = createRunningVcpu(memory, cpu.id);

  return {
    version: { major: memory.words[Header.major], minor: memory.words[Header.minor] },
    cpu,
    registerOwner: (moduleName) => owners.register(moduleName),
    unregisterOwner(owner) {
      owners.check(owner);
      running.clear(owner);
      userReturn.restoreOwner(owner);
      loaded.clearAll(owner);
      tscRatio.reset(owner);
      emergencyCallbacks.delete(owner);
      virtualization.disableAll(owner);
      owners.unregister(owner, () => {
        vpids.freeAll(owner);
        userReturn.releaseAll(owner);
      });
    },
    enableVirtualization(owner) {
      owners.check(owner);
      return virtualization.enable(owner);
    },
    disableVirtualization(owner) {
      owners.check(owner);
      virtualization.disable(owner);
    },
    virtualizationUsers: () => virtualization.users(),
    emergencyDisable: () => virtualization.emergencyDisable([...emergencyCallbacks.values()]),
    suspend() {
      userReturn.returnToUser();
      virtualization.suspend([...emergencyCallbacks.values()]);
    },
    resume: () => virtualization.resume(),
    allocateVpid(owner) {
      owners.check(owner);
      return vpids.allocate(owner);
    },
    freeVpid(owner, vpid) {
      owners.check(owner);
      vpids.free(owner, vpid);
    },
    registerUserReturnMsr(owner, msr) {
      owners.check(owner);
      return userReturn.register(owner, msr);
    },
    setUserReturnMsr: (owner, slot, value) => userReturn.set(owner, slot, value),
    returnToUser: () => userReturn.returnToUser(),
    loadVmcs(owner, vmcs) {
      owners.check(owner);
      return loaded.load(owner, vmcs);
    },
    clearVmcs(owner, vmcs) {
      owners.check(owner);
      return loaded.clear(owner, vmcs);
    },
    loadedVmcss: () => loaded.list(),
    setRunningVcpu(owner, token) {
      running.set(owner, token);
      if (isIntel && virtualization.isOn) vpids.flushIfStale();
    },
    clearRunningVcpu: (owner) => running.clear(owner),
    runningVcpu: (id) => running.get(id),
    assignAsid: (_owner, tag) => asids.assign(tag),
    asidsFlushed: () => asids.flushed(),
    setTscRatio(owner, ratio) {
      owners.check(owner);
      return tscRatio.set(owner, ratio);
    },
    onEmergency(owner, callback) {
      owners.check(owner);
      emergencyCallbacks.set(owner, callback);
    },
  };
}
