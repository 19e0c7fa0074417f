/** KVM_CAP_SYNC_REGS: registers and events that cross with KVM_RUN, in the run page, instead of by calls of their own. */
import { Errno, SyncRegsFlag } from "@mkvm/kvm-abi";
import { getSregs, setSregs } from "./legacy-sregs.ts";
import { getEvents, getRegs, setEvents, setRegs } from "./register-state.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const { KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS } = SyncRegsFlag;
/** KVM_SYNC_X86_VALID_FIELDS: what KVM_CHECK_EXTENSION answers. */
export const SYNC_REGS_FIELDS = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
const UNKNOWN = ~BigInt(SYNC_REGS_FIELDS);

/** KVM_SET_REGS. As Linux: an exception that was queued for the old RIP is gone. */
export function replaceRegs(vcpu: VcpuParts, value: Parameters<typeof setRegs>[1]): void {
  setRegs(vcpu, value);
  vcpu.setEvents({ ...vcpu.events(), exception: undefined });
}

/**
 * At the start of KVM_RUN: takes what user space marked as dirty, each mark gone once it is taken, so that a call which is made
 * again after a move takes nothing twice. 0, or -EINVAL.
 */
export function takeDirtyRegs(vcpu: VcpuParts): number {
  const { run } = vcpu;
  if (!run.syncsRegs) return 0;
  if (((run.validRegs | run.dirtyRegs) & UNKNOWN) !== 0n) return -Errno.EINVAL;
  const isDirty = (field: number): boolean => (run.dirtyRegs & BigInt(field)) !== 0n;
  const taken = (field: number): void => {
    run.dirtyRegs &= ~BigInt(field);
  };
  if (isDirty(KVM_SYNC_X86_REGS)) {
    replaceRegs(vcpu, run.syncRegs());
    taken(KVM_SYNC_X86_REGS);
  }
  if (isDirty(KVM_SYNC_X86_SREGS)) {
    if (!setSregs(vcpu, run.syncSregs())) return -Errno.EINVAL;
    taken(KVM_SYNC_X86_SREGS);
  }
  if (isDirty(KVM_SYNC_X86_EVENTS)) {
    if (!setEvents(vcpu, run.syncEvents())) return -Errno.EINVAL;
    taken(KVM_SYNC_X86_EVENTS);
  }
  return 0;
}

/** At its end: what user space asked for. */
export function storeValidRegs(vcpu: VcpuParts): void {
  const { run } = vcpu;
  if (!run.syncsRegs) return;
  const valid = Number(run.validRegs & BigInt(SYNC_REGS_FIELDS));
  if ((valid & KVM_SYNC_X86_REGS) !== 0) run.setSyncRegs(getRegs(vcpu));
  if ((valid & KVM_SYNC_X86_SREGS) !== 0) run.setSyncSregs(getSregs(vcpu));
  if ((valid & KVM_SYNC_X86_EVENTS) !== 0) run.setSyncEvents(getEvents(vcpu));
}
