/** The TSC as a guest reads it, in halves: guests read it all the time, and a bigint for each would be garbage. */
const BIT_32 = 0x1_0000_0000;

export class TscReading {
  /** Bits 31:0. */
  low = 0;
  /** Bits 63:32. */
  high = 0;

  /** `ticks`: whole, below 2^53. */
  set(ticks: number): void {
    this.low = ticks >>> 0;
    this.high = Math.floor(ticks / BIT_32) >>> 0;
  }
  setBig(value: bigint): void {
    this.low = Number(BigInt.asUintN(32, value));
    this.high = Number(BigInt.asUintN(32, value >> 32n));
  }
  /** Wraps at 2^64. Halves of either sign. */
  add(low: number, high: number): void {
    const sum = this.low + (low >>> 0);
    this.low = sum >>> 0;
    this.high = (this.high + high + (sum >= BIT_32 ? 1 : 0)) >>> 0;
  }
  get big(): bigint {
    return (BigInt(this.high) << 32n) | BigInt(this.low);
  }
}
