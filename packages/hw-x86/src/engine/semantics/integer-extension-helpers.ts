/** CRC32C and random numbers. */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";

/** The Castagnoli polynomial, bits reversed. */
const POLYNOMIAL = 0x82f6_3b78;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  return crc;
});

const MASK64 = (1n << 64n) - 1n;
/** The finalizer of SplitMix64: every bit of the result depends on every bit of `value`. */
function mixed(value: bigint): bigint {
  let z = value;
  z = ((z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n) & MASK64;
  z = ((z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn) & MASK64;
  return z ^ (z >> 31n);
}

/**
 * A number from what the guest's CPU is at this instruction, and from the machine's entropy where it has any. Without it the number
 * depends on nothing but what moves with a virtual machine, so that a run goes on with the same numbers wherever it is.
 */
function randomNumber(cpu: Cpu): bigint {
  let hash = mixed(((cpu.guest.entropy?.() ?? 0n) ^ 0x9e37_79b9_7f4a_7c15n) & MASK64);
  const absorb = (value: bigint): void => {
    hash = mixed((hash ^ value) + 0x9e37_79b9_7f4a_7c15n);
  };
  absorb(cpu.guest.guestTsc().big);
  absorb(cpu.get64(state.rip));
  absorb(cpu.get64(state.cr3));
  absorb(cpu.get64(state.tscAux));
  for (let register = 0; register < 16; register++) absorb(cpu.reg(register));
  return hash;
}

export const integerExtensionHelpers: HelperTable = {
  /** a the sum so far, b and c the data's halves, d its bytes. */
  crc32c(_cpu, start, low, high, bytes) {
    let crc = start;
    for (let i = 0; i < bytes; i++) {
      const byte = ((i < 4 ? low : high) >>> ((i & 3) * 8)) & 0xff;
      crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
    }
    return crc | 0;
  },
  /** RDPID: that the guest has it. */
  requireProcessorId(cpu) {
    cpu.guest.requireEnabled("RDPID");
  },
  /** RDRAND (0), RDSEED (1). Result 0: 64 random bits. */
  randomNumber(cpu, isSeed) {
    cpu.guest.rdrand(isSeed !== 0);
    cpu.set64(state.helper, randomNumber(cpu));
  },
};
