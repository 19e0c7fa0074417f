/** KVM_IOEVENTFD and KVM_IRQFD, with Linux's checks in their order. */
import { Errno, type Hva, IoeventfdFlag, IrqfdFlag, KvmIoeventfd, KvmIrqfd } from "@mkvm/kvm-abi";
import { busOf } from "../guest/ioeventfds.ts";
import { readUser } from "./user-copy.ts";
import type { VmUnderControl } from "./vm-state-ioctls.ts";

const LENGTHS: ReadonlySet<number> = new Set([0, 1, 2, 4, 8]);
const IRQFD_FLAGS = IrqfdFlag.KVM_IRQFD_FLAG_DEASSIGN | IrqfdFlag.KVM_IRQFD_FLAG_RESAMPLE;

export function ioeventfd(vm: VmUnderControl, argument: Hva): number {
  const request = readUser(vm.process, argument, KvmIoeventfd);
  if (typeof request === "number") return request;
  const { flags, addr, len, datamatch, fd } = request;
  const matches = (flags & IoeventfdFlag.KVM_IOEVENTFD_FLAG_DATAMATCH) !== 0;
  const where = { bus: busOf(flags), address: addr, length: len, datamatch: matches ? datamatch : undefined };
  const isGoing = (flags & IoeventfdFlag.KVM_IOEVENTFD_FLAG_DEASSIGN) !== 0;
  if (!isGoing) {
    if (!LENGTHS.has(len) || addr + BigInt(len) >= 2n ** 64n) return -Errno.EINVAL;
    if ((flags & ~IoeventfdFlag.KVM_IOEVENTFD_VALID_FLAG_MASK) !== 0 || (len === 0 && matches)) return -Errno.EINVAL;
  }
  const eventfd = vm.process.eventfd(fd);
  if (typeof eventfd === "number") return eventfd;
  if (isGoing) {
    const result = vm.ioeventfds.deassign(where, eventfd.id);
    eventfd.release();
    return result;
  }
  const result = vm.ioeventfds.assign({ ...where, eventfd });
  if (result !== 0) eventfd.release();
  return result;
}

export function irqfd(vm: VmUnderControl, argument: Hva): number {
  const request = readUser(vm.process, argument, KvmIrqfd);
  if (typeof request === "number") return request;
  const { flags, fd, gsi, resamplefd } = request;
  if ((flags & ~IRQFD_FLAGS) !== 0) return -Errno.EINVAL;
  const { irqfds } = vm.fabric;
  if ((flags & IrqfdFlag.KVM_IRQFD_FLAG_DEASSIGN) !== 0) {
    const eventfd = vm.process.eventfd(fd);
    if (typeof eventfd === "number") return eventfd;
    irqfds.deassign(eventfd.id, gsi);
    eventfd.release();
    return 0;
  }
  if (vm.irqchip === undefined) return -Errno.EINVAL;
  const eventfd = vm.process.eventfd(fd);
  if (typeof eventfd === "number") return eventfd;
  const isResampled = (flags & IrqfdFlag.KVM_IRQFD_FLAG_RESAMPLE) !== 0;
  const resample = isResampled ? vm.process.eventfd(resamplefd) : undefined;
  if (typeof resample === "number") {
    eventfd.release();
    return resample;
  }
  const result = irqfds.assign({ gsi, eventfd, resamplefd: resample });
  if (result !== 0) {
    eventfd.release();
    resample?.release();
  }
  return result;
}
