import type { KvmPicState, StructValue } from "@mkvm/kvm-abi";

export interface PicHost {
  /** The INTR output towards the vCPU with ExtINT changed. */
  outputChanged(level: boolean): void;
  /** The guest ended (or auto-ended) the interrupt of this line, 0 to 15. */
  acknowledged(irq: number): void;
}

/** Two 8259A in cascade with their ELCR. */
export interface Pic {
  /** Sets line `irq` (0 to 15) for one source (IrqSource bit). 1: delivered; 0: it was pending already; -1: masked. */
  setLine(irq: number, source: number, level: boolean): number;
  /** True for 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. */
  ownsPort(port: number): boolean;
  read(port: number): number;
  write(port: number, value: number): void;
  /** INTR output. */
  readonly output: boolean;
  /** INTA: the vector, 0 to 255; spurious IRQ 7 when nothing is there any more. */
  readInterrupt(): number;
  /** chip 0 master, 1 slave. */
  getState(chip: number): StructValue<(typeof KvmPicState)["fields"]>;
  setState(chip: number, state: StructValue<(typeof KvmPicState)["fields"]>): void;
  /** Which sources drive each line, 16 numbers. */
  readonly lines: Uint32Array;
  reset(): void;
}

export type CreatePic = (host: PicHost) => Pic;
