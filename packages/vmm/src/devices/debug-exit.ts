import type { PortDevice } from "./port-bus.ts";

export const DEBUG_EXIT_PORT = 0xf4;

/** A write of v ends the VM with exit status (v << 1) | 1, as QEMU's isa-debug-exit does. */
export class DebugExit implements PortDevice {
  readonly #exit: (status: number) => void;

  constructor(exit: (status: number) => void) {
    this.#exit = exit;
  }

  read(_port: number, size: number): number {
    return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
  }

  write(_port: number, _size: number, value: number): void {
    this.#exit(((value << 1) | 1) & 0xff);
  }
}
