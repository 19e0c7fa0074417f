/** Eventfds that a VM's guest or its VMM signals, in the sections of the portable state: by their numbers in the process. */
import { type Eventfd, IoeventfdFlag, NO_EVENTFD, type Process, type Section, VmIoeventfds, VmIrqfds } from "@mkvm/kvm-abi";
import type { VmUnderControl } from "../api/vm-state-ioctls.ts";
import { busOf, type IoBus, type Ioeventfd } from "../guest/ioeventfds.ts";
import type { Irqfd } from "../guest/irqfds.ts";

const { KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_PIO, KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY } = IoeventfdFlag;
const BUS_FLAGS: Readonly<Record<IoBus, number>> = {
  mmio: 0,
  pio: KVM_IOEVENTFD_FLAG_PIO,
  ccw: KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY,
};

/** Sections only where there are such eventfds. */
export function saveEventfds(vm: VmUnderControl): Section[] {
  const sections: Section[] = [];
  const ioeventfds = vm.ioeventfds.all;
  if (ioeventfds.length > 0) {
    const entries = ioeventfds.map(({ bus, address, length, datamatch, eventfd }) => ({
      address,
      datamatch: datamatch ?? 0n,
      length,
      flags: BUS_FLAGS[bus] | (datamatch === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH),
      eventfd: eventfd.id,
    }));
    sections.push(VmIoeventfds.encode(0, {}, entries));
  }
  const irqfds = vm.fabric.irqfds.all;
  if (irqfds.length > 0) {
    const entries = irqfds.map(({ gsi, eventfd, resamplefd }) => ({
      gsi,
      eventfd: eventfd.id,
      resample_eventfd: resamplefd?.id ?? NO_EVENTFD,
    }));
    sections.push(VmIrqfds.encode(0, {}, entries));
  }
  return sections;
}

/** Undefined: restored; nobody listens to irqfds yet. A sentence: why not; nothing is held then. */
export function restoreEventfds(vm: VmUnderControl, sections: readonly Section[]): string | undefined {
  const held: Eventfd[] = [];
  const result = decode(vm.process, sections, held);
  if (typeof result === "string") {
    for (const eventfd of held) eventfd.release();
    return result;
  }
  vm.ioeventfds.replace(result.ioeventfds);
  vm.fabric.irqfds.replace(result.irqfds);
  return undefined;
}

function decode(
  process: Process,
  sections: readonly Section[],
  held: Eventfd[],
): { ioeventfds: Ioeventfd[]; irqfds: Irqfd[] } | string {
  const has = (name: string): boolean => sections.some((section) => section.name === name);
  const hold = (id: number): Eventfd | undefined => {
    const eventfd = process.eventfdById(id);
    if (eventfd !== undefined) held.push(eventfd);
    return eventfd;
  };
  const missing = (name: string, id: number): string => `section ${name}[0] names eventfd ${id}, which the process has not`;
  const ioeventfds: Ioeventfd[] = [];
  const irqfds: Irqfd[] = [];
  if (has(VmIoeventfds.name)) {
    const decoded = VmIoeventfds.find(sections);
    if (typeof decoded === "string") return decoded;
    for (const { address, datamatch, length, flags, eventfd: id } of decoded.entries) {
      const eventfd = hold(id);
      if (eventfd === undefined) return missing(VmIoeventfds.name, id);
      const matches = (flags & KVM_IOEVENTFD_FLAG_DATAMATCH) !== 0;
      ioeventfds.push({ bus: busOf(flags), address, length, datamatch: matches ? datamatch : undefined, eventfd });
    }
  }
  if (has(VmIrqfds.name)) {
    const decoded = VmIrqfds.find(sections);
    if (typeof decoded === "string") return decoded;
    for (const { gsi, eventfd: id, resample_eventfd: resampleId } of decoded.entries) {
      const eventfd = hold(id);
      if (eventfd === undefined) return missing(VmIrqfds.name, id);
      const resamplefd = resampleId === NO_EVENTFD ? undefined : hold(resampleId);
      if (resampleId !== NO_EVENTFD && resamplefd === undefined) return missing(VmIrqfds.name, resampleId);
      irqfds.push({ gsi, eventfd, resamplefd });
    }
  }
  return { ioeventfds, irqfds };
}
