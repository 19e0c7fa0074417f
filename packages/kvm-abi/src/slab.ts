/**
 * Bytes out of larger pieces of memory. An ArrayBuffer of its own costs JavaScript about as much as writing a section, and a VM with 16
 * vCPUs that stands still waits for two hundred sections, three times.
 */
const slabBytes = 64 << 10;
/** What is longer has memory of its own, so that little of a slab is left unused. */
const longest = slabBytes / 8;

let slab = new ArrayBuffer(0);
let used = 0;

/** Zeroes, at an offset that is a multiple of 8 in memory that is shared with others. */
export function bytesOfSlab(length: number): Uint8Array {
  if (length > longest) return new Uint8Array(length);
  if (used + length > slab.byteLength) {
    slab = new ArrayBuffer(slabBytes);
    used = 0;
  }
  const bytes = new Uint8Array(slab, used, length);
  used += (length + 7) & ~7;
  return bytes;
}
