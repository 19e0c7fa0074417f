/**
 * Sections of statistics but for their values: which are not zero, and the bytes with their names. What counts once goes on counting, and
 * a VM's vCPUs are much alike, so a section often has a shape that was there before; a VM that stands still waits for no name then.
 */
import { VmStatistics } from "@mkvm/kvm-abi";

const { sizeBytes: ENTRY_BYTES, offsets } = VmStatistics.entry;
const VALUE = offsets.value;
/** The head of the section and its fixed part. */
const FIRST = VmStatistics.encode(0, {}).bytes.length;
/** Shapes kept; the oldest goes first. */
const MOST = 32;

export interface EntryShape {
  /** Word of each entry. */
  readonly words: readonly number[];
  /** The section with all values 0. Shared: nobody writes to it. */
  readonly bytes: Uint8Array;
}

/** Where the value of an entry is in the section's bytes. */
export const valueAt = (entry: number): number => FIRST + entry * ENTRY_BYTES + VALUE;

export class EntryShapes {
  readonly #shapes: EntryShape[] = [];

  /** The shape with entries for exactly these words. */
  ofWords(words: readonly number[]): EntryShape | undefined {
    return this.#shapes.find(
      (shape) => shape.words.length === words.length && shape.words.every((word, entry) => word === words[entry]),
    );
  }

  /** The shape that a section has. */
  ofBytes(bytes: Uint8Array): EntryShape | undefined {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return this.#shapes.find((shape) => shape.bytes.length === bytes.length && hasShape(view, shape));
  }

  /** `bytes`: a section with these entries; copied. */
  add(words: readonly number[], bytes: Uint8Array): void {
    const without = bytes.slice();
    for (let entry = 0; entry < words.length; entry++) without.fill(0, valueAt(entry), valueAt(entry) + 8);
    if (this.#shapes.unshift({ words: [...words], bytes: without }) > MOST) this.#shapes.pop();
  }
}

function hasShape(view: DataView, { words, bytes }: EntryShape): boolean {
  const shape = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < FIRST; at += 4) if (view.getUint32(at) !== shape.getUint32(at)) return false;
  for (let entry = 0; entry < words.length; entry++) {
    const end = valueAt(entry);
    for (let at = end - VALUE; at < end; at += 4) if (view.getUint32(at) !== shape.getUint32(at)) return false;
  }
  return true;
}
