/**
 * Virtual branch records: DebugCtl and the records are the guest's own while it runs, and the host's are kept meanwhile. Source: AMD64
 * APM Vol. 2, Last Branch Record Virtualization.
 */
import { state } from "../engine/cpu-state.ts";
import { Save } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

/** LBR and BTF; the pins of other bits this machine has not. */
const DEBUGCTL_DEFINED = 3;
const RECORDS: readonly (readonly [number, number])[] = [
  [state.branchFrom, Save.BR_FROM],
  [state.branchTo, Save.BR_TO],
  [state.exceptionFrom, Save.LAST_EXCEPTION_FROM],
  [state.exceptionTo, Save.LAST_EXCEPTION_TO],
];

export class BranchRecords {
  readonly #host = new Uint32Array(2 * RECORDS.length);

  load(s: Uint32Array, vmcb: Vmcb): void {
    s[state.debugctl >>> 2] = vmcb.low(Save.DBGCTL) & DEBUGCTL_DEFINED;
    s[(state.debugctl >>> 2) + 1] = 0;
    RECORDS.forEach(([offset, place], i) => {
      this.#host[2 * i] = s[offset >>> 2] as number;
      this.#host[2 * i + 1] = s[(offset >>> 2) + 1] as number;
      s[offset >>> 2] = vmcb.low(place);
      s[(offset >>> 2) + 1] = vmcb.high(place);
    });
  }

  save(s: Uint32Array, vmcb: Vmcb): void {
    vmcb.setPair(Save.DBGCTL, s[state.debugctl >>> 2] as number, 0);
    RECORDS.forEach(([offset, place], i) => {
      vmcb.setPair(place, s[offset >>> 2] as number, s[(offset >>> 2) + 1] as number);
      s[offset >>> 2] = this.#host[2 * i] as number;
      s[(offset >>> 2) + 1] = this.#host[2 * i + 1] as number;
    });
  }
}
