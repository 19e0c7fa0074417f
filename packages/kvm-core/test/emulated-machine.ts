import type { EmulatedCpu, GuestFault } from "../src/instruction-emulator/emulated-cpu.ts";

export const RAM_BYTES = 0x1_0000;
/** In-kernel device: one page of 32-bit registers. */
export const DEVICE = 0xfee0_0000;
/** Everything else above RAM is user space's. */
export const MMIO = 0xd000_0000;
export const CODE = 0x1000;

export interface Machine {
  readonly cpu: EmulatedCpu & { codeBits: 16 | 32 | 64; stackBits: 16 | 32 | 64; cpl: number };
  readonly gprs: BigUint64Array;
  readonly ram: Uint8Array;
  readonly bases: bigint[];
  /** Accesses of the device. */
  readonly log: string[];
  /** Linear pages that are not present. */
  readonly absent: Set<bigint>;
  readonly device: Map<number, number>;
  put(...bytes: number[]): void;
}

export function emulatedMachine(codeBits: 16 | 32 | 64 = 64): Machine {
  const gprs = new BigUint64Array(16);
  const ram = new Uint8Array(RAM_BYTES);
  const bases = [0n, 0n, 0n, 0n, 0n, 0n];
  const log: string[] = [];
  const absent = new Set<bigint>();
  const device = new Map<number, number>();
  const isDevice = (gpa: number) => gpa >= DEVICE && gpa < DEVICE + 4096;
  const cpu = {
    codeBits,
    stackBits: codeBits,
    cpl: 0,
    rip: BigInt(CODE),
    rflags: 2n,
    gpr: (index: number) => gprs[index],
    setGpr(index: number, value: bigint) {
      gprs[index] = value;
    },
    segmentBase: (segment: number) => bases[segment],
    translate(linear: bigint, access: "read" | "write" | "fetch"): number | GuestFault {
      if (absent.has(linear >> 12n)) return { vector: 14, errorCode: access === "write" ? 2 : 0, cr2: linear };
      return Number(linear & 0xffff_ffffn);
    },
    readRam: (gpa: number, length: number) => (gpa + length <= RAM_BYTES ? ram.subarray(gpa, gpa + length) : undefined),
    writeRam(gpa: number, bytes: Uint8Array) {
      if (gpa + bytes.length > RAM_BYTES) return false;
      ram.set(bytes, gpa);
      return true;
    },
    readDevice(gpa: number, length: number) {
      if (!isDevice(gpa)) return undefined;
      log.push(`read ${(gpa - DEVICE).toString(16)} ${length}`);
      const value = device.get(gpa - DEVICE) ?? 0;
      return Uint8Array.from({ length }, (_, i) => (value >>> (8 * i)) & 0xff);
    },
    writeDevice(gpa: number, bytes: Uint8Array) {
      if (!isDevice(gpa)) return false;
      log.push(`write ${(gpa - DEVICE).toString(16)} ${[...bytes].join(" ")}`);
      device.set(gpa - DEVICE, new DataView(Uint8Array.of(...bytes, 0, 0, 0, 0).buffer).getUint32(0, true));
      return true;
    },
  };
  return {
    cpu,
    gprs,
    ram,
    bases,
    log,
    absent,
    device,
    put(...bytes) {
      ram.set(bytes, CODE);
    },
  };
}
