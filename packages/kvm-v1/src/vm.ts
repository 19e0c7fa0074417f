/** A VM of version 1: memory slots, the MMU over them, interrupt controllers, vCPUs. */

import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { type Clock, Errno, type Kernel, type PhysicalAddress, type Process, VCPU_MMAP_SIZE_BYTES } from "@mkvm/kvm-abi";
import {
  checkMemoryRegion,
  defaultVmSettings,
  type GuestMemory,
  InterruptFabric,
  Ioeventfds,
  type Irqchip,
  type MemoryRegion,
  PAGE_BYTES,
  type Pit,
  type RawMemoryRegion,
  renewMasterClock,
  SlotTable,
  sameRegion,
  slotMemory,
  type TransferableVm,
  type VmClockState,
  VmCounters,
  type VmSettings,
  watchSlots,
} from "@mkvm/kvm-core";
import type { Vac } from "@mkvm/vac";
import type { Module } from "./main.ts";
import { MemorySlot } from "./memory-slots.ts";
import { FaultMmu } from "./mmu/fault-mmu.ts";
import { Vcpu } from "./vcpu.ts";
import type { VendorOperations } from "./vendor-operations.ts";

export class Vm implements TransferableVm {
  readonly module: Module;
  readonly kernel: Kernel<Vac, LogicalCpu>;
  readonly process: Process;
  readonly clock: Clock;
  readonly vendor: VendorOperations;
  readonly slots = new SlotTable<MemorySlot>();
  readonly statistics: VmCounters;
  readonly mmu: FaultMmu;
  readonly memory: GuestMemory;
  readonly ioeventfds = new Ioeventfds();
  readonly fabric: InterruptFabric;
  readonly settings: VmSettings = defaultVmSettings();
  readonly clockState: VmClockState = { offsetNs: 0n, masterMonotonicNs: 0n, masterTsc: 0n };
  readonly kvmclock: boolean;
  readonly physicalBits: number;
  /** Open files of the VM and its vCPUs. */
  openFiles = 0;
  readonly #vcpus: Vcpu[] = [];
  readonly #logged = new Set<string>();
  readonly #unwatchSlots: () => void;

  constructor(module: Module, process: Process) {
    this.module = module;
    this.kernel = module.kernel;
    this.process = process;
    this.clock = module.kernel.clock;
    this.vendor = module.vendor;
    this.kvmclock = module.parameters.kvmclock;
    this.physicalBits = module.physicalBits;
    this.statistics = new VmCounters(process.pid);
    this.mmu = new FaultMmu(module.kernel, process, this.slots, module.parameters.eptAd, this.statistics, {
      format: this.vendor.format,
      flush: () => this.vendor.flushSecondLevel(this),
    });
    this.#unwatchSlots = watchSlots(process, this.slots, (slot) => this.mmu.unmapSlot(slot));
    this.fabric = new InterruptFabric(module.kernel.clock, () => this.#vcpus);
    this.memory = slotMemory(process, this.slots, (address, length) => module.kernel.cpu.memory.bytes(address as Hpa, length));
    this.clockState.offsetNs = -BigInt(this.clock.monotonicNs());
    renewMasterClock(this);
  }

  /** A VM, or a negative errno with nothing left behind. */
  static create(module: Module, process: Process): Vm | number {
    const enabled = module.kernel.vac.enableVirtualization(module.owner);
    if (enabled < 0) return enabled;
    const vm = new Vm(module, process);
    const failed = vm.mmu.create() || vm.vendor.createVm(vm);
    if (failed < 0) {
      vm.#unwatchSlots();
      vm.mmu.destroy();
      module.kernel.vac.disableVirtualization(module.owner);
      return failed;
    }
    return vm;
  }

  get irqchip(): Irqchip | undefined {
    return this.fabric.irqchip;
  }
  get pit(): Pit | undefined {
    return this.fabric.pit;
  }
  get supportedXcr0(): bigint {
    const { eax, edx } = this.kernel.cpu.cpuid(0xd, 0);
    return (BigInt(edx >>> 0) << 32n) | BigInt(eax >>> 0);
  }
  get tscKhz(): number {
    return this.kernel.cpu.tscKhz;
  }
  vcpus(): readonly Vcpu[] {
    return this.#vcpus;
  }
  hostTsc(): number {
    return this.kernel.cpu.rdtsc();
  }
  log(level: "err" | "warn" | "info" | "debug", message: string): void {
    this.kernel.log(level, message);
  }
  firstTime(key: string): boolean {
    if (this.#logged.has(key)) return false;
    this.#logged.add(key);
    return true;
  }

  /** A vCPU, or a negative errno. `runAddress`: pages that exist already, of a vCPU that moves here. */
  createVcpu(id: number, runAddress?: PhysicalAddress): Vcpu | number {
    if (this.#vcpus.length >= this.module.parameters.maxVcpus) return -Errno.EINVAL;
    if (this.#vcpus.some((vcpu) => vcpu.id === id)) return -Errno.EEXIST;
    const pages = VCPU_MMAP_SIZE_BYTES / PAGE_BYTES;
    const run = runAddress ?? this.kernel.memory.allocatePages(this.process, pages);
    if (run < 0) return run;
    const vcpu = new Vcpu(this, id, run);
    const failed = this.vendor.createVcpu(vcpu);
    if (failed < 0) {
      vcpu.lapic?.dispose();
      if (runAddress === undefined) this.kernel.memory.freePages(run, pages);
      return failed;
    }
    vcpu.reset("power-on");
    // All vCPUs of a VM count from the same moment
    vcpu.tscOffset = this.#vcpus[0]?.tscOffset ?? BigInt.asUintN(64, -BigInt(this.hostTsc()));
    this.#vcpus.push(vcpu);
    this.#vcpus.sort((a, b) => a.id - b.id);
    return vcpu;
  }

  /** Takes back a vCPU that nobody has seen yet. */
  removeVcpu(vcpu: Vcpu): void {
    this.#vcpus.splice(this.#vcpus.indexOf(vcpu), 1);
    vcpu.detach();
    vcpu.dispose(false);
  }

  /** KVM_SET_USER_MEMORY_REGION: 0 or a negative errno. */
  setMemoryRegion(raw: RawMemoryRegion): number {
    const change = checkMemoryRegion(this.slots, raw, this.physicalBits);
    if (typeof change === "number") return change;
    switch (change.kind) {
      case "none":
        return 0;
      case "create":
        this.slots.set(new MemorySlot(change.region));
        return 0;
      case "delete":
        this.mmu.unmapSlot(change.old);
        this.slots.delete(change.old.id);
        return 0;
      case "move":
        this.mmu.unmapSlot(change.old);
        this.slots.set(new MemorySlot(change.region));
        return 0;
      case "flags": {
        const slot = new MemorySlot(change.region, change.old);
        this.slots.set(slot);
        if (slot.dirty !== undefined && change.old.dirty === undefined) this.mmu.writeProtect(slot);
        return 0;
      }
    }
  }

  dirtyLogBytes(id: number): number {
    return this.slots.byId(id)?.dirty?.length ?? -Errno.ENOENT;
  }

  takeDirtyLog(id: number): Uint8Array {
    const slot = this.slots.byId(id)!;
    const bitmap = slot.dirty!.slice();
    slot.dirty!.fill(0);
    this.mmu.writeProtect(slot, bitmap);
    return bitmap;
  }

  msrFilterChanged(): void {
    this.vendor.msrFilterChanged(this);
  }

  portableSlots(): readonly MemorySlot[] {
    return this.slots.all();
  }
  adoptSlots(regions: readonly MemoryRegion[]): void {
    for (const old of [...this.slots.all()]) {
      if (regions.some((region) => sameRegion(region, old))) continue;
      this.mmu.unmapSlot(old);
      this.slots.delete(old.id);
    }
    for (const region of regions) if (this.slots.byId(region.id) === undefined) this.slots.set(new MemorySlot(region));
  }
  setDirtyLog(id: number, bitmap: Uint8Array): void {
    this.slots.byId(id)?.dirty?.set(bitmap);
  }

  destroy(moved: boolean): void {
    this.detach();
    this.free(moved);
  }
  detach(): void {
    for (const vcpu of this.#vcpus) vcpu.detach();
    this.ioeventfds.clear();
    this.fabric.dispose();
    this.#unwatchSlots();
  }
  free(moved: boolean): void {
    for (const vcpu of this.#vcpus) vcpu.dispose(moved);
    this.#vcpus.length = 0;
    this.mmu.destroy();
    this.vendor.destroyVm(this);
    this.kernel.vac.disableVirtualization(this.module.owner);
  }
}
