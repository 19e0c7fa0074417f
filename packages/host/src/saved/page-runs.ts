/** Memory in pieces of 2 MiB, without the pages that are zero: a bitmap of those that are not, then their contents. */
import { pageBytes } from "../memory/page-allocator.ts";

export const pieceBytes = 0x20_0000;
const bitmapBytes = pieceBytes / pageBytes / 8;

/** Undefined: all zero. `memory`: at most `pieceBytes`, whole pages. */
export function packPiece(memory: Uint8Array): Uint8Array | undefined {
  const pages = memory.length / pageBytes;
  const bitmap = new Uint8Array(bitmapBytes);
  const kept: Uint8Array[] = [];
  // Words of eight bytes: most pages that are not zero say so in their first ones
  const words = new BigUint64Array(memory.buffer, memory.byteOffset, memory.length / 8);
  const wordsOfPage = pageBytes / 8;
  for (let page = 0; page < pages; page++) {
    let word = page * wordsOfPage;
    const end = word + wordsOfPage;
    while (word < end && words[word] === 0n) word++;
    if (word === end) continue;
    bitmap[page >> 3]! |= 1 << (page & 7);
    kept.push(memory.subarray(page * pageBytes, (page + 1) * pageBytes));
  }
  if (kept.length === 0) return undefined;
  const packed = new Uint8Array(bitmapBytes + kept.length * pageBytes);
  packed.set(bitmap);
  kept.forEach((page, index) => {
    packed.set(page, bitmapBytes + index * pageBytes);
  });
  return packed;
}

/** Writes the pages into zeroed memory. False when the piece says more than fits. */
export function unpackPiece(packed: Uint8Array, memory: Uint8Array): boolean {
  if (packed.length < bitmapBytes) return false;
  let from = bitmapBytes;
  for (let page = 0; page < bitmapBytes * 8; page++) {
    if ((packed[page >> 3]! & (1 << (page & 7))) === 0) continue;
    const to = page * pageBytes;
    if (to + pageBytes > memory.length || from + pageBytes > packed.length) return false;
    memory.set(packed.subarray(from, from + pageBytes), to);
    from += pageBytes;
  }
  return from === packed.length;
}
