/** Module instances of one CPU. The code of a package's version is imported once; each load is one `init`. */
import type { LogicalCpu } from "@mkvm/hw-x86";
import {
  errnoName,
  type FileOperations,
  type Kernel,
  type KernelModule,
  type ModuleInstance,
  type ParameterValues,
  type Timer,
} from "@mkvm/kvm-abi";
import type { Vac } from "@mkvm/vac";
import type { ModuleDescription } from "../control/protocol.ts";
import { HostError, messageOf, stackOf } from "../errors.ts";
import type { CpuKernel } from "../worker/cpu-kernel.ts";
import { isRecord } from "./package-files.ts";

export interface LoadedInstance {
  readonly name: string;
  readonly instance: ModuleInstance;
  readonly timers: Set<Timer>;
  /** About to be unloaded: refuses new opens. */
  seized: boolean;
  /** To be unloaded when the last user is gone: refuses new opens, and takes VMs back that came from it. */
  draining: boolean;
}

type Module = KernelModule<Vac, LogicalCpu>;

export class ModuleInstances {
  readonly #kernel: CpuKernel;
  readonly #loaded = new Map<string, LoadedInstance>();
  readonly #urls = new Set<string>();

  constructor(kernel: CpuKernel) {
    this.#kernel = kernel;
  }

  names(): string[] {
    return [...this.#loaded.keys()];
  }

  get(name: string): LoadedInstance | undefined {
    return this.#loaded.get(name);
  }

  /** Entry files of all that were ever loaded. */
  urls(): readonly string[] {
    return [...this.#urls];
  }

  /** Timers that are armed, by module; modules with none are left out. */
  armedTimers(): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const { name, timers } of this.#loaded.values()) {
      const armed = [...timers].filter((timer) => timer.deadlineNs !== undefined).length;
      if (armed > 0) counts[name] = armed;
    }
    return counts;
  }

  operationsOf(name: string, device: string): FileOperations | undefined {
    const loaded = this.#loaded.get(name);
    if (!loaded || loaded.seized || loaded.draining) return undefined;
    return loaded.instance.devices.find((candidate) => candidate.name === device)?.operations;
  }

  /** Imports the code, and says what it takes; nothing of it is initialized. */
  async describe(url: string): Promise<ModuleDescription> {
    const module = await importModule(url);
    return { description: module.description, parameters: structuredClone(module.parameters) };
  }

  /** Names of the devices of the new instance. */
  async load(name: string, url: string, parameters: ParameterValues): Promise<string[]> {
    if (this.#loaded.has(name)) throw new HostError("EEXIST", `${name} is loaded on cpu${this.#kernel.cpu.id} already`);
    const module = await importModule(url);
    const timers = new Set<Timer>();
    let instance: ModuleInstance | number;
    try {
      instance = module.init(this.#kernelFor(name, parameters, timers));
    } catch (thrown) {
      this.#kernel.log("err", name, `exception in init: ${stackOf(thrown)}`);
      throw new HostError("EIO", `${name} failed in init on cpu${this.#kernel.cpu.id}: ${messageOf(thrown)}; see 'mkvm dmesg'`);
    }
    if (typeof instance === "number") {
      const code = errnoName(-instance);
      throw new HostError(code, `${name} refused to start on cpu${this.#kernel.cpu.id} with ${code}; see 'mkvm dmesg'`);
    }
    const problem = faultOf(instance, name);
    if (problem) {
      this.#exit(name, instance, timers);
      throw new HostError("EINVAL", `${name} breaks the module contract: ${problem}`);
    }
    this.#urls.add(url);
    this.#loaded.set(name, { name, instance, timers, seized: false, draining: false });
    return instance.devices.map((device) => device.name);
  }

  /** Once nobody uses it. */
  unload(name: string): void {
    const loaded = this.#loaded.get(name);
    if (!loaded) return;
    this.#loaded.delete(name);
    this.#exit(name, loaded.instance, loaded.timers);
  }

  #exit(name: string, instance: ModuleInstance, timers: Set<Timer>): void {
    try {
      instance.exit();
    } catch (thrown) {
      this.#kernel.log("err", name, `exception in exit: ${stackOf(thrown)}`);
    }
    let left = 0;
    for (const timer of timers) {
      if (timer.deadlineNs === undefined) continue;
      timer.cancel();
      left++;
    }
    if (left > 0) this.#kernel.log("warn", name, `left ${left} armed timers behind, cancelled`);
  }

  #kernelFor(name: string, parameters: ParameterValues, timers: Set<Timer>): Kernel<Vac, LogicalCpu> {
    const kernel = this.#kernel;
    const { scheduler } = kernel;
    return {
      moduleName: name,
      parameters,
      vac: kernel.vac,
      cpu: kernel.cpu,
      memory: kernel.memory.forModule((mistake) => kernel.log("err", name, mistake)),
      clock: {
        monotonicNs: () => scheduler.clock.monotonicNs(),
        realtimeNs: () => scheduler.clock.realtimeNs(),
        createTimer: (expired) => {
          const process = kernel.current;
          const timer = scheduler.createTimer(() => {
            timers.delete(timer);
            try {
              expired();
            } catch (thrown) {
              if (process) process.crash(name, thrown);
              else kernel.log("err", name, `exception in a timer: ${stackOf(thrown)}`);
            }
          });
          return trackArmed(timer, timers);
        },
      },
      scheduler: {
        handleInterrupts: () => scheduler.handleInterrupts(),
        needResched: () => scheduler.needResched(),
        singleTaskRunning: () => scheduler.singleTaskRunning(),
        yield: () => scheduler.yield(),
        createWaitQueue: () => scheduler.createWaitQueue(),
      },
      log: (level, message) => kernel.log(level, name, message),
    };
  }
}

/** Remembers timers only while they are armed, so that those of ended VMs are collected. */
function trackArmed(timer: Timer, armed: Set<Timer>): Timer {
  return {
    arm(deadlineNs) {
      armed.add(timer);
      timer.arm(deadlineNs);
    },
    cancel() {
      armed.delete(timer);
      timer.cancel();
    },
    get deadlineNs() {
      return timer.deadlineNs;
    },
  };
}

async function importModule(url: string): Promise<Module> {
  let namespace: { default?: unknown };
  try {
    namespace = await import(url);
  } catch (thrown) {
    throw new HostError("EIO", `its code cannot be imported: ${messageOf(thrown)}`);
  }
  const module = namespace.default;
  if (
    !isRecord(module) ||
    typeof module.init !== "function" ||
    typeof module.description !== "string" ||
    !isRecord(module.parameters)
  ) {
    throw new HostError("EINVAL", "its default export is no KVM module (description, parameters, init)");
  }
  return module as unknown as Module;
}

/** What is wrong with an instance, if anything. */
function faultOf(instance: ModuleInstance, name: string): string | undefined {
  if (!Array.isArray(instance.devices) || typeof instance.exit !== "function" || !isRecord(instance.transfer)) {
    return "init returned no { devices, transfer, exit }";
  }
  if (!instance.devices.some((device) => device.name === "kvm")) return "it has no device called 'kvm'";
  for (const device of instance.devices) {
    if (device.operations.owner !== name)
      return `the operations of its device '${device.name}' name '${device.operations.owner}' as owner`;
  }
  return undefined;
}
