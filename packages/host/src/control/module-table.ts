/** The modules that are loaded, on every CPU alike. */
import { DeviceTree } from "../devices/device-tree.ts";
import { HostError, messageOf } from "../errors.ts";
import { fittingRelease } from "../loader/fitting-release.ts";
import {
  checkId,
  checkRequirements,
  findModulePackage,
  type ModulePackage,
  providedVersions,
} from "../loader/module-package.ts";
import { checkParameters } from "../loader/parameters.ts";
import type { KernelLog } from "../log/kernel-log.ts";
import type { Cpu, CpuSet } from "./cpu-set.ts";
import type { InsmodOptions, LoadedModule, ModuleInfo, ModuleUser } from "./types.ts";

export type Loaded = Omit<LoadedModule, "users">;

export interface ModuleSurroundings {
  readonly cpus: CpuSet;
  readonly tree: DeviceTree;
  readonly log: KernelLog;
  /** Where packages are looked for. */
  readonly directory: string;
  /** Runs a change of modules and /dev behind those before it. */
  change<Result>(change: () => Promise<Result>): Promise<Result>;
  publishDevices(): Promise<void>;
}

export class ModuleTable {
  readonly #around: ModuleSurroundings;
  readonly #loaded = new Map<string, Loaded>();

  constructor(around: ModuleSurroundings) {
    this.#around = around;
  }

  all(): Loaded[] {
    return [...this.#loaded.values()];
  }

  /** Loads a module: a package by name or by path. */
  async insmod(spec: string, options: InsmodOptions = {}): Promise<LoadedModule> {
    const found = await this.#findModule(spec, options.directory);
    return this.#around.change(async () => {
      const id = options.id ?? found.id;
      checkId(id, `${found.name} ${found.version}`);
      const name = `kvm${id}`;
      const there = this.#loaded.get(name);
      if (there) {
        throw new HostError(
          "EEXIST",
          `${name} is loaded already (${there.package} ${there.version}): choose another id with --id`,
        );
      }
      await this.#around.cpus.allAnswer();
      const { parameters: specs } = await this.#describe(found);
      const parameters = checkParameters(found.name, specs, options.parameters ?? {});
      const nodes = new DeviceTree();
      nodes.assign(this.#around.tree.list());
      nodes.addNode(`/dev/${name}`, name, "kvm");

      let devices: string[] = [];
      const loadedOn: Cpu[] = [];
      const unload = (cpu: Cpu) => cpu.client.request("module.unload", { name }, { sure: true });
      try {
        for (const cpu of this.#around.cpus.alive()) {
          const late = (answer: Promise<unknown>) => answer.then(() => unload(cpu));
          devices = await cpu.client.request("module.load", { name, url: found.entryUrl, parameters }, { late });
          loadedOn.push(cpu);
        }
        this.#around.tree.addNode(`/dev/${name}`, name, "kvm");
        for (const device of devices) if (device !== "kvm") this.#around.tree.addNode(`/dev/${device}${id}`, name, device);
      } catch (thrown) {
        this.#around.tree.removeNodes(name);
        await this.#around.cpus.onAll(unload, loadedOn);
        throw thrown;
      }
      const { name: packageName, version, directory } = found;
      const loaded: Loaded = {
        name,
        id,
        package: packageName,
        version,
        directory,
        parameters,
        devices: devices.map((device) => `/dev/${device}${id}`),
      };
      this.#loaded.set(name, loaded);
      await this.#around.publishDevices();
      this.#around.log.write("info", `loaded ${name} from ${packageName} ${version}`);
      return { ...loaded, users: [] };
    });
  }

  /**
   * Unloads a module that nobody uses; EBUSY, and who uses it, otherwise. With `whenIdle` a module in use takes no new users from
   * now on, and is unloaded when the last one is gone; VMs that came from it can still roll back to it. True: it is unloaded.
   */
  async rmmod(name: string, options: { whenIdle?: boolean } = {}): Promise<boolean> {
    try {
      await this.#unload(name);
      return true;
    } catch (thrown) {
      if (!options.whenIdle || !(thrown instanceof HostError && thrown.code === "EBUSY")) throw thrown;
    }
    await this.#drain(name, true);
    // The last user may have gone before the CPUs knew that somebody waits for that
    await this.unloadIdle(name);
    return !this.#loaded.has(name);
  }

  /** Takes `rmmod` with `whenIdle` back. */
  async keep(name: string): Promise<void> {
    if (!this.get(name).draining) throw new HostError("EINVAL", `${name} stays anyway: nobody asked to unload it`);
    await this.#drain(name, false);
  }

  async #drain(name: string, draining: boolean): Promise<void> {
    const { draining: _, ...loaded } = this.get(name);
    await this.#around.cpus.allAnswer();
    await this.#around.cpus.onAll((cpu) => cpu.client.request("module.drain", { name, draining }, { sure: true }));
    this.#loaded.set(name, draining ? { ...loaded, draining } : loaded);
    this.#around.log.write("info", draining ? `${name} is unloaded when its last user is gone` : `${name} stays loaded`);
  }

  /** Unloads a module that drains, if it is without users on every CPU. */
  async unloadIdle(name: string): Promise<void> {
    if (!this.#loaded.get(name)?.draining) return;
    await this.#unload(name).catch((thrown) => {
      if (!(thrown instanceof HostError && (thrown.code === "EBUSY" || thrown.code === "ENOENT")))
        this.#around.log.write("warn", `${name} could not be unloaded: ${messageOf(thrown)}`);
    });
  }

  #unload(name: string): Promise<void> {
    return this.#around.change(async () => {
      this.get(name);
      const { cpus } = this.#around;
      try {
        const users = (await cpus.onEach((cpu) => cpu.client.request("module.seize", { name }))).flat();
        if (users.length > 0) throw new HostError("EBUSY", describeUsers(name, users));
      } catch (thrown) {
        await cpus.onAll((cpu) => cpu.client.request("module.unseize", { name }, { sure: true }));
        throw thrown;
      }
      await cpus.onAll((cpu) => cpu.client.request("module.unload", { name }, { sure: true }));
      this.#loaded.delete(name);
      this.#around.tree.removeNodes(name);
      await this.#around.publishDevices();
      this.#around.log.write("info", `unloaded ${name}`);
    });
  }

  async lsmod(): Promise<LoadedModule[]> {
    const modules = [...this.#loaded.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
    return Promise.all(
      modules.map(async (module) => {
        const users = await this.#around.cpus.onAll((cpu) => cpu.client.request("module.users", { name: module.name }));
        return { ...module, users: users.flat() };
      }),
    );
  }

  /** About a package, or the package of a loaded module. */
  async modinfo(spec: string, options: { directory?: string } = {}): Promise<ModuleInfo> {
    const loaded = this.#loaded.get(spec);
    const found = await this.#findModule(loaded?.directory ?? spec, options.directory);
    const { description, parameters } = await this.#describe(found);
    const loadedAs = [...this.#loaded.values()]
      .filter((module) => module.directory === found.directory)
      .map((module) => module.name);
    const { name, version, directory, id, requires } = found;
    return { package: name, version, directory, description, id, requires, parameters, loadedAs };
  }

  async #findModule(spec: string, directory = this.#around.directory): Promise<ModulePackage> {
    const found = findModulePackage(spec, directory);
    const provided = providedVersions();
    try {
      checkRequirements(found, provided);
    } catch (thrown) {
      if (!(thrown instanceof HostError)) throw thrown;
      throw new HostError(thrown.code, `${thrown.message}${await fittingRelease(found, provided)}`);
    }
    return found;
  }

  async #describe(found: ModulePackage) {
    try {
      return await this.#around.cpus.answering()[0]!.client.request("module.describe", { url: found.entryUrl });
    } catch (thrown) {
      const code = thrown instanceof HostError ? thrown.code : "EIO";
      throw new HostError(code, `${found.name} ${found.version} is no usable module: ${messageOf(thrown)}`);
    }
  }

  /** @throws HostError when none of that name is loaded */
  get(name: string): Loaded {
    const module = this.#loaded.get(name);
    if (module) return module;
    const names = [...this.#loaded.keys()].sort().join(", ");
    throw new HostError(
      "ENOENT",
      `no module ${name} is loaded: ${names ? `there is ${names}` : "load one with 'mkvm insmod'"}`,
    );
  }
}

function describeUsers(name: string, users: readonly ModuleUser[]): string {
  const byProcess = new Map<number, ModuleUser[]>();
  for (const user of users) byProcess.set(user.pid, [...(byProcess.get(user.pid) ?? []), user]);
  const parts = [...byProcess].map(([pid, held]) => {
    const what = held.map((user) => (user.fd < 0 ? user.what : `fd ${user.fd} ${user.what}`)).join(", ");
    return `process ${pid} (${held[0]!.process}: ${what})`;
  });
  const [pid] = byProcess.keys();
  const onlyHeld = users.every((user) => user.fd < 0);
  const remedy = onlyHeld
    ? `'mkvm finalize ${pid}' lets go of it`
    : `move it with 'mkvm upgrade', or end it with 'mkvm kill ${pid}'`;
  return `${name} is in use by ${parts.join(" and ")}: ${remedy}`;
}
