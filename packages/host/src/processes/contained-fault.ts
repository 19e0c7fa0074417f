/** What user space sees of a VM whose module threw while running it. */
import { Errno, ExitReason, Ioctl, KvmRun } from "@mkvm/kvm-abi";
import type { ModuleFile } from "../devices/open-file.ts";

/**
 * `internal.suberror` of such an exit: none of Linux's, since they each say more about the guest than is known here. The text of
 * what was thrown is in the kernel log.
 */
export const moduleFaultSuberror = 0x4d4b_564d;

const { exit_reason: exitReason } = KvmRun.offsets;
const internal = KvmRun.fields.exit.members.internal.offset;

/** True when what was thrown can be told through kvm_run. */
export function canContain(file: ModuleFile, request: number): boolean {
  return request === Ioctl.KVM_RUN && file.firstPage !== undefined;
}

/** The result of an ioctl on a file of a VM that failed: KVM_EXIT_INTERNAL_ERROR once for each vCPU, then and else -EIO. */
export function resultOnFailedVm(file: ModuleFile, request: number, view: DataView): number {
  if (!canContain(file, request) || file.faultTold) return -Errno.EIO;
  const run = file.firstPage!;
  file.faultTold = true;
  view.setUint32(run + exitReason, ExitReason.KVM_EXIT_INTERNAL_ERROR, true);
  view.setUint32(run + internal, moduleFaultSuberror, true);
  view.setUint32(run + internal + 4, 0, true);
  return 0;
}
