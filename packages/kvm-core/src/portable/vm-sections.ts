/** What a VM is besides its vCPUs, in the sections of the portable state. */
import {
  ABI_FEATURE_LEVEL,
  type Section,
  type SectionSupport,
  ShapeFlag,
  type StructValue,
  supportOf,
  VmClock,
  VmDirtyLog,
  VmIoeventfds,
  VmIrqchip,
  VmIrqfds,
  VmIrqRouting,
  VmMemorySlots,
  VmMsrFilter,
  VmMsrFilterBitmap,
  VmPit,
  VmShape,
  VmStatistics,
} from "@mkvm/kvm-abi";
import type { MemoryRegion } from "../api/memory-region.ts";
import type { VmUnderControl } from "../api/vm-state-ioctls.ts";
import { restoreEventfds, saveEventfds } from "./eventfd-sections.ts";
import { decodeMsrFilter, saveMsrFilter } from "./msr-filter-sections.ts";
import { unknownState } from "./unused-fields.ts";
import { VCPU_SECTIONS } from "./vcpu-sections.ts";

export const VM_SECTIONS = [
  VmShape,
  VmMemorySlots,
  VmDirtyLog,
  VmClock,
  VmIrqchip,
  VmIrqRouting,
  VmPit,
  VmIoeventfds,
  VmIrqfds,
  VmMsrFilter,
  VmMsrFilterBitmap,
  VmStatistics,
] as const;

/** Support of every section that this code writes. */
export const RECEIVED_SECTIONS: SectionSupport[] = supportOf([...VM_SECTIONS, ...VCPU_SECTIONS]);

export type ShapeValue = StructValue<(typeof VmShape)["fixed"]["fields"]>;

/** A slot as it travels: what user space said, and its dirty bitmap while that is kept. */
export interface PortableSlot extends MemoryRegion {
  /** Whole 64-bit words. */
  readonly dirty: Uint8Array | undefined;
}

/** "vm.shape" and "vm.memory-slots": enough to allocate everything and to build second-level tables. */
export function saveEarly(vm: VmUnderControl, slots: readonly PortableSlot[], featureLevel: number): Section[] {
  const { settings } = vm;
  return [
    VmShape.encode(0, {
      abi_feature_level: featureLevel,
      flags:
        (vm.irqchip === undefined ? 0 : ShapeFlag.kernelIrqchip) |
        (vm.pit === undefined ? 0 : ShapeFlag.pit) |
        (settings.splitIrqchip ? ShapeFlag.splitIrqchip : 0) |
        (settings.exceptionPayload ? ShapeFlag.exceptionPayload : 0) |
        (settings.tripleFaultEvent ? ShapeFlag.tripleFaultEvent : 0),
      vcpu_count: vm.vcpus().length,
      boot_cpu_id: settings.bootCpuId,
      tss_address: BigInt(settings.tssAddress),
      identity_map_address: BigInt(settings.identityMapAddress),
      tsc_khz: vm.tscKhz,
      pit_config_flags: settings.pitConfigFlags,
      msr_exit_reasons: settings.msrExitReasons,
      mmu_pages: settings.mmuPages,
    }),
    VmMemorySlots.encode(
      0,
      {},
      [...slots]
        .sort((a, b) => a.id - b.id)
        .map((slot) => ({
          slot: slot.id,
          flags: slot.flags,
          guest_phys_addr: BigInt(slot.baseGfn) * 4096n,
          memory_size: BigInt(slot.pages) * 4096n,
          userspace_addr: BigInt(slot.userspaceAddress),
        })),
    ),
  ];
}

export function saveVm(vm: VmUnderControl, slots: readonly PortableSlot[], featureLevel: number): Section[] {
  const sections = saveEarly(vm, slots, featureLevel);
  for (const slot of [...slots].sort((a, b) => a.id - b.id)) {
    if (slot.dirty === undefined) continue;
    const words = new BigUint64Array(slot.dirty.slice().buffer);
    sections.push(
      VmDirtyLog.encode(
        slot.id,
        { page_count: BigInt(slot.pages) },
        Array.from(words, (bits) => ({ bits })),
      ),
    );
  }
  sections.push(
    VmClock.encode(0, {
      kvmclock_offset: vm.clockState.offsetNs,
      master_monotonic_ns: vm.clockState.masterMonotonicNs,
      master_tsc: vm.clockState.masterTsc,
      use_master_clock: 1,
    }),
  );
  if (vm.irqchip !== undefined) sections.push(...vm.irqchip.save());
  if (vm.pit !== undefined) sections.push(VmPit.encode(0, vm.pit.save()));
  sections.push(...saveEventfds(vm), ...saveMsrFilter(vm.settings.msrFilter), vm.statistics.save(VmStatistics, 0));
  return sections;
}

export function decodeShape(sections: readonly Section[]): ShapeValue | string {
  const shape = VmShape.find(sections);
  if (typeof shape === "string") return shape;
  const { fixed } = shape;
  if (fixed.abi_feature_level > ABI_FEATURE_LEVEL) {
    return `the VM has feature level ${fixed.abi_feature_level}, this module knows ${ABI_FEATURE_LEVEL}`;
  }
  const unknown = fixed.flags & ~(ShapeFlag.kernelIrqchip | ShapeFlag.pit);
  if (unknown !== 0) return `the VM uses features (vm.shape flags 0x${unknown.toString(16)}) that this module does not have`;
  return unknownState(sections) ?? fixed;
}

export function decodeSlots(sections: readonly Section[]): MemoryRegion[] | string {
  const slots = VmMemorySlots.find(sections);
  if (typeof slots === "string") return slots;
  return slots.entries.map((entry) => ({
    id: entry.slot,
    flags: entry.flags,
    baseGfn: Number(entry.guest_phys_addr / 4096n),
    pages: Number(entry.memory_size / 4096n),
    userspaceAddress: Number(entry.userspace_addr),
  }));
}

/** The dirty bitmap of a slot; undefined when none was sent. */
export function decodeDirtyLog(sections: readonly Section[], slot: number): Uint8Array | undefined | string {
  if (!sections.some((section) => section.name === VmDirtyLog.name && section.instance === slot)) return undefined;
  const log = VmDirtyLog.find(sections, slot);
  if (typeof log === "string") return log;
  return new Uint8Array(BigUint64Array.from(log.entries, (entry) => entry.bits).buffer);
}

/**
 * Puts the shape into a VM: settings, and interrupt controllers and PIT as empty devices where it has none yet. Once when the VM is described,
 * and once more when it stands still: its VMM may have been at making it.
 */
export function applyShape(vm: VmUnderControl, shape: ShapeValue): void {
  const { settings } = vm;
  settings.bootCpuId = shape.boot_cpu_id;
  settings.tssAddress = Number(shape.tss_address);
  settings.identityMapAddress = Number(shape.identity_map_address);
  settings.pitConfigFlags = shape.pit_config_flags;
  settings.mmuPages = shape.mmu_pages;
  settings.msrExitReasons = shape.msr_exit_reasons;
  if ((shape.flags & ShapeFlag.kernelIrqchip) !== 0 && vm.irqchip === undefined) vm.fabric.createIrqchip();
  if ((shape.flags & ShapeFlag.pit) !== 0 && vm.pit === undefined) vm.fabric.createPit((shape.pit_config_flags & 1) !== 0);
}

/** Clock, interrupt controllers, PIT, eventfds and MSR filter. Undefined: restored. */
export function restoreVmDevices(vm: VmUnderControl, sections: readonly Section[]): string | undefined {
  const clock = VmClock.find(sections);
  if (typeof clock === "string") return clock;
  vm.clockState.offsetNs = clock.fixed.kvmclock_offset;
  vm.clockState.masterMonotonicNs = clock.fixed.master_monotonic_ns;
  vm.clockState.masterTsc = clock.fixed.master_tsc;
  const refused = vm.irqchip?.restore(sections);
  if (refused !== undefined) return refused;
  if (vm.pit !== undefined) {
    const pit = VmPit.find(sections);
    if (typeof pit === "string") return pit;
    vm.pit.restore(pit.fixed);
  }
  const filter = decodeMsrFilter(sections);
  if (typeof filter === "string") return filter;
  vm.settings.msrFilter = filter;
  vm.msrFilterChanged();
  return restoreEventfds(vm, sections);
}
