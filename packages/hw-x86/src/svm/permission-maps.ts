/** The permissions maps of SVM for ports and MSRs. Source: AMD64 APM Vol. 2, IOIO Intercepts; MSR Intercepts. */
import type { MemoryBanks } from "../memory-banks.ts";
import { Control, Intercept3 } from "./vmcb.ts";
import { PermissionMap, type Vmcb } from "./vmcb-access.ts";

const IOPM_BYTES = 0x3000;
const MSRPM_BYTES = 0x2000;

export class PermissionMaps {
  readonly #ports = new PermissionMap();
  readonly #msrs = new PermissionMap();
  #hasPorts = false;
  #hasMsrs = false;

  /** `word3`: of the intercepts. */
  useControls(vmcb: Vmcb, word3: number, memory: MemoryBanks): void {
    this.#hasPorts = (word3 & Intercept3.io) !== 0;
    this.#hasMsrs = (word3 & Intercept3.msr) !== 0;
    if (this.#hasPorts) this.#ports.point(page(vmcb.number(Control.IOPM_BASE)), IOPM_BYTES, memory);
    if (this.#hasMsrs) this.#msrs.point(page(vmcb.number(Control.MSRPM_BASE)), MSRPM_BYTES, memory);
  }

  isPortIntercepted(port: number, bytes: number): boolean {
    if (!this.#hasPorts) return false;
    for (let i = port; i < port + bytes; i++) if (this.#ports.test(i)) return true;
    return false;
  }

  /** Two bits for each MSR of three ranges: reads, writes. The others are always intercepted. */
  isMsrIntercepted(index: number, writes: boolean): boolean {
    if (!this.#hasMsrs) return false;
    const range = index >>> 13;
    let start: number;
    if (range === 0) start = 0;
    else if (range === 0xc000_0000 >>> 13) start = 0x2000;
    else if (range === 0xc001_0000 >>> 13) start = 0x4000;
    else return true;
    return this.#msrs.test((start + (index & 0x1fff)) * 2 + (writes ? 1 : 0));
  }
}

function page(address: number): number {
  return address - (address % 4096);
}
