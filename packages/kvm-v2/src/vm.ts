/** A VM of version 2. */

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
import { Slot } from "./memory-slots.ts";
import { TdpMmu } from "./mmu/tdp-mmu.ts";
import { Vcpu } from "./vcpu.ts";
import type { VendorOperations } from "./vendor-operations.ts";

const RUN_PAGES = VCPU_MMAP_SIZE_BYTES / PAGE_BYTES;

export class Vm implements TransferableVm {
  readonly module: Module;
  readonly kernel: Kernel<Vac, LogicalCpu>;
  readonly process: Process;
  readonly clock: Clock;
  readonly vendor: VendorOperations;
  readonly slots = new SlotTable<Slot>();
  readonly statistics: VmCounters;
  readonly mmu: TdpMmu;
  readonly memory: GuestMemory;
  readonly ioeventfds = new Ioeventfds();
  readonly fabric: InterruptFabric;
  readonly settings: VmSettings = defaultVmSettings();
  readonly clockState: VmClockState;
  openFiles = 0;
  /** Some slot's dirty pages are logged. */
  logsDirtyPages = false;
  readonly #byId = new Map<number, Vcpu>();
  #inOrder: readonly Vcpu[] = [];
  readonly #logged = new Set<string>();
  readonly #unwatchSlots: () => void;

  constructor(module: Module, process: Process) {
    const { kernel } = module;
    this.module = module;
    this.kernel = kernel;
    this.process = process;
    this.clock = kernel.clock;
    this.vendor = module.vendor;
    this.statistics = new VmCounters(process.pid);
    this.mmu = new TdpMmu(kernel, process, this.slots, this.statistics, {
      largePages: module.parameters.hugePages,
      accessedDirty: module.parameters.accessedDirty,
      logsModifications: module.parameters.modificationLog,
      format: this.vendor.format,
      flush: () => this.vendor.flushSecondLevel(this),
    });
    this.#unwatchSlots = watchSlots(process, this.slots, (slot) => this.mmu.zap(slot.baseGfn, slot.endGfn));
    this.memory = slotMemory(process, this.slots, (address, length) => kernel.cpu.memory.bytes(address as Hpa, length));
    this.fabric = new InterruptFabric(kernel.clock, () => this.#inOrder);
    this.clockState = { offsetNs: -BigInt(kernel.clock.monotonicNs()), masterMonotonicNs: 0n, masterTsc: 0n };
    renewMasterClock(this);
  }

  /** A VM, or a negative errno with nothing left behind. */
  static create(module: Module, process: Process): Vm | number {
    const { vac } = module.kernel;
    const enabled = vac.enableVirtualization(module.owner);
    if (enabled < 0) return enabled;
    const vm = new Vm(module, process);
    let failed = vm.mmu.create();
    if (failed === 0) {
      failed = vm.vendor.createVm(vm);
      if (failed === 0) return vm;
      vm.mmu.destroy();
    }
    vm.#unwatchSlots();
    vac.disableVirtualization(module.owner);
    return failed;
  }

  get kvmclock(): boolean {
    return this.module.parameters.kvmclock;
  }
  get physicalBits(): number {
    return this.module.physicalBits;
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
  hostTsc(): number {
    return this.kernel.cpu.rdtsc();
  }
  vcpus(): readonly Vcpu[] {
    return this.#inOrder;
  }
  log(level: "err" | "warn" | "info" | "debug", message: string): void {
    this.kernel.log(level, message);
  }
  firstTime(key: string): boolean {
    const first = !this.#logged.has(key);
    this.#logged.add(key);
    return first;
  }

  createVcpu(id: number, runAddress?: PhysicalAddress): Vcpu | number {
    if (this.#byId.has(id)) return -Errno.EEXIST;
    if (this.#byId.size >= this.module.parameters.maxVcpus) return -Errno.EINVAL;
    const run = runAddress ?? this.kernel.memory.allocatePages(this.process, RUN_PAGES);
    if (run < 0) return run;
    const vcpu = new Vcpu(this, id, run);
    const failed = this.vendor.createVcpu(vcpu);
    if (failed !== 0) {
      vcpu.lapic?.dispose();
      this.vendor.freeVcpu(vcpu);
      if (runAddress === undefined) this.kernel.memory.freePages(run, RUN_PAGES);
      return failed;
    }
    vcpu.reset("power-on");
    // All vCPUs of a VM count from the same moment
    vcpu.tscOffset = this.#inOrder[0]?.tscOffset ?? BigInt.asUintN(64, -BigInt(this.hostTsc()));
    this.#byId.set(id, vcpu);
    this.#sort();
    return vcpu;
  }
  removeVcpu(vcpu: Vcpu): void {
    this.#byId.delete(vcpu.id);
    this.#sort();
    vcpu.detach();
    vcpu.dispose(false);
  }
  #sort(): void {
    this.#inOrder = [...this.#byId.values()].sort((a, b) => a.id - b.id);
  }

  setMemoryRegion(raw: RawMemoryRegion): number {
    const failed = this.#changeSlots(raw);
    this.#noteLogging();
    return failed;
  }
  #noteLogging(): void {
    this.logsDirtyPages = this.slots.all().some(({ dirty }) => dirty !== undefined);
  }
  #changeSlots(raw: RawMemoryRegion): number {
    const change = checkMemoryRegion(this.slots, raw, this.physicalBits);
    if (typeof change === "number") return change;
    if (change.kind === "none") return 0;
    if (change.kind === "delete" || change.kind === "move") {
      this.mmu.zap(change.old.baseGfn, change.old.endGfn);
      this.slots.delete(change.old.id);
    }
    if (change.kind === "delete") return 0;
    const slot = new Slot(change.region, change.kind === "flags" ? change.old.dirty : undefined);
    this.slots.set(slot);
    // Memory goes before a page of the module's own
    if (change.kind !== "flags") this.mmu.zapOwn(slot.baseGfn, slot.endGfn);
    if (change.kind === "flags") this.#logChanged(change.old, slot);
    return 0;
  }

  #logChanged(old: Slot, slot: Slot): void {
    if (old.dirty === undefined && slot.dirty !== undefined) this.mmu.trackWrites(slot.baseGfn, slot.endGfn);
    // Large pages come back by faults
    if (old.dirty !== undefined && slot.dirty === undefined) this.mmu.zap(slot.baseGfn, slot.endGfn);
  }

  dirtyLogBytes(id: number): number {
    return this.slots.byId(id)?.dirty?.length ?? -Errno.ENOENT;
  }
  takeDirtyLog(id: number): Uint8Array {
    const slot = this.slots.byId(id)!;
    this.mmu.trackWrites(slot.baseGfn, slot.endGfn, (gfn) => slot.isDirty(gfn));
    const bitmap = slot.dirty!.slice();
    slot.dirty!.fill(0);
    return bitmap;
  }

  msrFilterChanged(): void {
    this.vendor.msrFilterChanged(this);
  }

  portableSlots(): readonly Slot[] {
    return this.slots.all();
  }
  adoptSlots(regions: readonly MemoryRegion[]): void {
    for (const slot of [...this.slots.all()]) {
      if (regions.some((region) => sameRegion(region, slot))) continue;
      this.mmu.zap(slot.baseGfn, slot.endGfn);
      this.slots.delete(slot.id);
    }
    for (const region of regions) if (this.slots.byId(region.id) === undefined) this.slots.set(new Slot(region));
    this.#noteLogging();
  }
  setDirtyLog(id: number, bitmap: Uint8Array): void {
    this.slots.byId(id)?.dirty?.set(bitmap);
  }

  destroy(moved: boolean): void {
    this.detach();
    this.free(moved);
  }
  detach(): void {
    for (const vcpu of this.#inOrder) vcpu.detach();
    this.ioeventfds.clear();
    this.fabric.dispose();
    this.#unwatchSlots();
  }
  free(moved: boolean): void {
    for (const vcpu of this.#inOrder) vcpu.dispose(moved);
    this.#byId.clear();
    this.#inOrder = [];
    this.mmu.destroy();
    this.vendor.destroyVm(this);
    this.kernel.vac.disableVirtualization(this.module.owner);
  }
}
