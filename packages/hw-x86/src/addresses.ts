declare const unit: unique symbol;
type Address<Base, Name extends string> = Base & { readonly [unit]: Name };

/** Host physical address in bytes: bank number times 2^32 plus the offset in that bank; below 2^52, so exact as a number. */
export type Hpa = Address<number, "Hpa">;
/** Guest physical address in bytes, below 2^52. */
export type Gpa = Address<number, "Gpa">;
/** Guest linear (virtual) address in bytes, 64 bits, as a non-negative bigint. */
export type Gva = Address<bigint, "Gva">;

const BANK_SPAN = 0x1_0000_0000;

/** The host physical address of `offset` (bytes, below 4 GiB) in bank `bank`. */
export function hpa(bank: number, offset: number): Hpa {
  return (bank * BANK_SPAN + offset) as Hpa;
}

export function bankOf(address: Hpa): number {
  return Math.floor(address / BANK_SPAN);
}

/** Offset in the bank, in bytes. */
export function offsetOf(address: Hpa): number {
  return address % BANK_SPAN;
}
