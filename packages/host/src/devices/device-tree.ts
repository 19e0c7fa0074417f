/**
 * /dev: device nodes of loaded modules, symbolic links, and bind mounts. The control plane owns it; every CPU has a copy,
 * since opening a path must not wait.
 */
import { posix } from "node:path";
import { Errno } from "@mkvm/kvm-abi";
import type { DeviceEntry } from "../control/types.ts";
import { HostError } from "../errors.ts";

type Node = { kind: "node"; module: string; device: string };
type Entry = Node | { kind: "link"; target: string };

const longestChain = 40;

/** Absolute, normalized. Relative paths are under /dev. */
export function devicePath(path: string): string {
  return posix.resolve("/dev", path);
}

export function isDevicePath(path: string): boolean {
  return posix.normalize(path).startsWith("/dev/");
}

export class DeviceTree {
  readonly #entries = new Map<string, Entry>();
  /** The mount namespace that processes start from: target to source. */
  readonly #mounts = new Map<string, string>();

  addNode(path: string, module: string, device: string): void {
    const key = devicePath(path);
    if (this.#entries.get(key)?.kind === "node")
      throw new HostError("EEXIST", `${key} exists already: choose another id with --id`);
    if (this.#entries.has(key))
      throw new HostError("EEXIST", `${key} is a link: remove it with 'mkvm ln --remove ${key}' first`);
    this.#entries.set(key, { kind: "node", module, device });
  }

  removeNodes(module: string): void {
    for (const [path, entry] of this.#entries) if (entry.kind === "node" && entry.module === module) this.#entries.delete(path);
  }

  /** Makes `path` a link to `target`, in one step when it was a link before. */
  link(target: string, path: string): void {
    const key = devicePath(path);
    if (!isDevicePath(key)) throw new HostError("EINVAL", `links live under /dev, and '${path}' does not: use /dev/kvm`);
    const entry = this.#entries.get(key);
    if (entry?.kind === "node") {
      throw new HostError(
        "EEXIST",
        `${key} is the device of module ${entry.module}: unload it, or load it with an id to free the name`,
      );
    }
    this.#entries.set(key, { kind: "link", target: devicePath(target) });
  }

  unlink(path: string): void {
    const key = devicePath(path);
    if (this.#entries.get(key)?.kind !== "link") throw new HostError("ENOENT", `${key} is no link: see 'mkvm ls'`);
    this.#entries.delete(key);
  }

  mount(source: string, target: string): void {
    bind(this.#mounts, this, source, target);
  }

  unmount(target: string): void {
    const key = devicePath(target);
    if (!this.#mounts.delete(key)) throw new HostError("EINVAL", `nothing is mounted at ${key}: see 'mkvm ls'`);
  }

  /** A copy for a process that starts. */
  createNamespace(): MountNamespace {
    return new MountNamespace(this, this.#mounts);
  }

  /** What opening `path` finds; a negative errno when nothing. */
  lookup(path: string, mounts: ReadonlyMap<string, string>): Node | number {
    let key = devicePath(path);
    for (let step = 0; step < longestChain; step++) {
      // A mount shows what its source names on the tree itself: mounts do not stack on mounts.
      const source = mounts.get(key);
      const entry = source === undefined ? this.#entries.get(key) : this.#follow(source);
      if (entry === undefined) return -Errno.ENOENT;
      if (entry.kind === "node") return entry;
      key = entry.target;
    }
    return -Errno.ELOOP;
  }

  /** What a symbolic link finally names, undefined when it dangles. */
  #follow(path: string): Entry | undefined {
    let key = path;
    for (let step = 0; step < longestChain; step++) {
      const entry = this.#entries.get(key);
      if (entry?.kind !== "link") return entry;
      key = entry.target;
    }
    return undefined;
  }

  /** The node's own path behind `path`, or a negative errno: what a bind mount pins. */
  realPath(path: string): string | number {
    let key = devicePath(path);
    for (let step = 0; step < longestChain; step++) {
      const entry = this.#entries.get(key);
      if (entry === undefined) return -Errno.ENOENT;
      if (entry.kind === "node") return key;
      key = entry.target;
    }
    return -Errno.ELOOP;
  }

  list(): DeviceEntry[] {
    const entries: DeviceEntry[] = [...this.#entries].map(([path, entry]) => ({ path, ...entry }));
    for (const [path, source] of this.#mounts) entries.push({ path, kind: "mount", source });
    return entries.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
  }

  /** Replaces everything by another tree's list. */
  assign(entries: readonly DeviceEntry[]): void {
    this.#entries.clear();
    this.#mounts.clear();
    for (const entry of entries) {
      if (entry.kind === "mount") this.#mounts.set(entry.path, entry.source);
      else this.#entries.set(entry.path, entry);
    }
  }
}

function bind(mounts: Map<string, string>, tree: DeviceTree, source: string, target: string): void {
  const real = tree.realPath(source);
  if (typeof real === "number") throw new HostError("ENOENT", `${devicePath(source)} leads to no device: see 'mkvm ls'`);
  if (!isDevicePath(devicePath(target)))
    throw new HostError("EINVAL", `mounts live under /dev, and '${target}' does not: use /dev/kvm`);
  mounts.set(devicePath(target), real);
}

/** Bind mounts as one process sees them: a copy of the host's at its start, then its own. */
export class MountNamespace {
  readonly #tree: DeviceTree;
  readonly #mounts: Map<string, string>;

  constructor(tree: DeviceTree, mounts: ReadonlyMap<string, string>) {
    this.#tree = tree;
    this.#mounts = new Map(mounts);
  }

  mount(source: string, target: string): void {
    bind(this.#mounts, this.#tree, source, target);
  }

  lookup(path: string): { module: string; device: string } | number {
    return this.#tree.lookup(path, this.#mounts);
  }

  /** Its mounts, for the same process on another CPU. */
  list(): [string, string][] {
    return [...this.#mounts];
  }

  assign(mounts: readonly (readonly [string, string])[]): void {
    this.#mounts.clear();
    for (const [target, source] of mounts) this.#mounts.set(target, source);
  }
}
