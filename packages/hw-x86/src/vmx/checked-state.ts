/** What of the checks of a VM entry, and of the guest state that a CPU has loaded, a VMWRITE makes stale. */
import { Primary } from "./controls.ts";
import { FieldKind, slot } from "./fields.ts";
import { CHECKED_CONTROLS, CHECKED_GUEST, CHECKED_HOST, DIRTY_GUEST, type Vmcs } from "./vmcs.ts";

const RFLAGS_VM = 1 << 17;
/** Primary controls that come and go with every interrupt and on which no check of guest state depends. */
const WINDOWS = Primary.interruptWindowExiting | Primary.nmiWindowExiting;

/**
 * Bits of the low half of a field that changed. True: the field is one that entries look at every time, but not for this, so that the next
 * one has to look at everything.
 */
export function makesStale(vmcs: Vmcs, kind: number, where: number, changed: number): boolean {
  switch (kind) {
    case FieldKind.control: {
      vmcs.checked &= ~CHECKED_CONTROLS;
      const keepsGuest =
        where === slot.PRIMARY_CONTROLS
          ? (changed & ~WINDOWS) === 0
          : where !== slot.SECONDARY_CONTROLS && where !== slot.ENTRY_CONTROLS;
      if (!keepsGuest) vmcs.checked &= ~CHECKED_GUEST;
      if (where === slot.ENTRY_CONTROLS) vmcs.dirty |= DIRTY_GUEST;
      if (where === slot.ENTRY_CONTROLS || where === slot.EXIT_CONTROLS) vmcs.checked &= ~CHECKED_HOST;
      return false;
    }
    case FieldKind.host:
      vmcs.checked &= ~CHECKED_HOST;
      return false;
    case FieldKind.guest:
      vmcs.checked &= ~CHECKED_GUEST;
      vmcs.dirty |= DIRTY_GUEST;
      return false;
    case FieldKind.guestEveryEntry: {
      // Segments are checked by other rules in virtual-8086 mode
      const isOtherMode = where === slot.GUEST_RFLAGS && (changed & RFLAGS_VM) !== 0;
      if (!isOtherMode) return false;
      vmcs.checked &= ~CHECKED_GUEST;
      vmcs.dirty |= DIRTY_GUEST;
      return true;
    }
    default:
      return false;
  }
}
