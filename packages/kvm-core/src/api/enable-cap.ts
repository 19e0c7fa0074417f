/** KVM_ENABLE_CAP on a VM descriptor. Errors are those of Linux's kvm_vm_ioctl_enable_cap. */
import { Capability, Errno, type Hva, KvmEnableCap, MsrExitReason } from "@mkvm/kvm-abi";
import { readUser } from "./user-copy.ts";
import type { VmUnderControl } from "./vm-state-ioctls.ts";

const MSR_EXIT_REASONS = BigInt(
  MsrExitReason.KVM_MSR_EXIT_REASON_INVAL |
    MsrExitReason.KVM_MSR_EXIT_REASON_UNKNOWN |
    MsrExitReason.KVM_MSR_EXIT_REASON_FILTER,
);

type Handler = (vm: VmUnderControl, args: readonly bigint[]) => number;

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [
    Capability.KVM_CAP_X86_USER_SPACE_MSR,
    (vm, [reasons]) => {
      if ((reasons! & ~MSR_EXIT_REASONS) !== 0n) return -Errno.EINVAL;
      vm.settings.msrExitReasons = Number(reasons);
      return 0;
    },
  ],
]);

export function enableCap(vm: VmUnderControl, argument: Hva): number {
  const request = readUser(vm.process, argument, KvmEnableCap);
  if (typeof request === "number") return request;
  if (request.flags !== 0) return -Errno.EINVAL;
  if (request.cap === Capability.KVM_CAP_SPLIT_IRQCHIP) {
    vm.log("warn", "KVM_CAP_SPLIT_IRQCHIP is not supported; use KVM_CREATE_IRQCHIP");
  }
  return HANDLERS.get(request.cap)?.(vm, request.args) ?? -Errno.EINVAL;
}
