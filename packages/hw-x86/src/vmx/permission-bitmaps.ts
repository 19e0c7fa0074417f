/** I/O and MSR bitmaps of VMX. Source: Intel SDM Vol. 3C, I/O-Bitmap Addresses; MSR-Bitmap Address. */
import type { MemoryBanks } from "../memory-banks.ts";
import { Primary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

/** A page-sized bitmap in physical memory; reads as all ones where there is no memory. */
class Bitmap {
  #u8: Uint8Array | undefined;
  #offset = 0;

  point(address: number, memory: MemoryBanks): void {
    this.#u8 = memory.holding(address, 4096)?.u8;
    this.#offset = address % 0x1_0000_0000;
  }

  test(bit: number): boolean {
    return this.#u8 === undefined || (((this.#u8[this.#offset + (bit >>> 3)] as number) >>> (bit & 7)) & 1) !== 0;
  }
}

export class PermissionBitmaps {
  readonly #ioA = new Bitmap();
  readonly #ioB = new Bitmap();
  readonly #msrs = new Bitmap();
  #primary = 0;

  useControls(vmcs: Vmcs, primary: number, memory: MemoryBanks): void {
    this.#primary = primary;
    if ((primary & Primary.useIoBitmaps) !== 0) {
      this.#ioA.point(vmcs.number(slot.IO_BITMAP_A), memory);
      this.#ioB.point(vmcs.number(slot.IO_BITMAP_B), memory);
    }
    if ((primary & Primary.useMsrBitmaps) !== 0) this.#msrs.point(vmcs.number(slot.MSR_BITMAP), memory);
  }

  isPortIntercepted(port: number, bytes: number): boolean {
    if ((this.#primary & Primary.useIoBitmaps) === 0) return (this.#primary & Primary.unconditionalIoExiting) !== 0;
    if (port + bytes > 0x1_0000) return true; // wraps around the I/O space
    for (let i = port; i < port + bytes; i++) {
      if ((i < 0x8000 ? this.#ioA : this.#ioB).test(i & 0x7fff)) return true;
    }
    return false;
  }

  isMsrIntercepted(index: number, writes: boolean): boolean {
    if ((this.#primary & Primary.useMsrBitmaps) === 0) return true;
    const isHigh = index >>> 13 === 0xc000_0000 >>> 13;
    if (index >>> 13 !== 0 && !isHigh) return true;
    return this.#msrs.test((writes ? 0x4000 : 0) + (isHigh ? 0x2000 : 0) + (index & 0x1fff));
  }
}
