/** Sections that are lists, for when a VM stands still: without an object for each entry, or not encoded again at all. */
import { bytesOfSlab, type Fields, type Section, SectionHead, type SectionLayout, type StructInput } from "@mkvm/kvm-abi";

/** Entries in the bytes of a section. */
export interface RawEntries {
  readonly view: DataView;
  /** Where the first one begins. */
  readonly at: number;
  readonly count: number;
}

/** A section without a fixed part of its own, with `count` entries, each of which `write` writes at its place. */
export function writeList<F extends Fields, E extends Fields>(
  layout: SectionLayout<F, E>,
  instance: number,
  count: number,
  write: (view: DataView, at: number, index: number) => void,
): Section {
  const { name, version, required, fixed, entry } = layout;
  const first = SectionHead.sizeBytes + fixed.sizeBytes;
  const bytes = bytesOfSlab(first + count * entry.sizeBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(SectionHead.offsets.fixed_size, fixed.sizeBytes, true);
  view.setUint32(SectionHead.offsets.count, count, true);
  for (let index = 0; index < count; index++) write(view, first + index * entry.sizeBytes, index);
  return { name, instance, version, required, bytes };
}

/** Where the entries are, or a sentence that says why the section cannot be taken. */
export function readList<F extends Fields, E extends Fields>(
  layout: SectionLayout<F, E>,
  section: Section,
): RawEntries | string {
  const { bytes } = section;
  const at = SectionHead.sizeBytes + layout.fixed.sizeBytes;
  const count = (bytes.length - at) / layout.entry.sizeBytes;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isWhole =
    section.name === layout.name &&
    section.version === layout.version &&
    Number.isInteger(count) &&
    count >= 0 &&
    view.getUint32(SectionHead.offsets.fixed_size, true) === layout.fixed.sizeBytes &&
    view.getUint32(SectionHead.offsets.count, true) === count;
  return isWhole ? { view, at, count } : (layout.decode(section) as string);
}

/** Lists that are replaced as a whole and never changed in place: each is encoded once. */
export class KeptLists<F extends Fields, E extends Fields> {
  readonly #layout: SectionLayout<F, E>;
  readonly #bytes = new WeakMap<readonly StructInput<E>[], Uint8Array>();

  constructor(layout: SectionLayout<F, E>) {
    this.#layout = layout;
  }

  encode(instance: number, entries: readonly StructInput<E>[]): Section {
    const { name, version, required } = this.#layout;
    const kept = this.#bytesOf(entries);
    const bytes = bytesOfSlab(kept.length);
    bytes.set(kept);
    return { name, instance, version, required, bytes };
  }

  /** `entries` are what `section` says: when they are to be encoded, or compared, it is there. */
  keep(section: Section, entries: readonly StructInput<E>[]): void {
    // In memory of its own, since it is kept
    this.#bytes.set(entries, section.bytes.slice());
  }

  /** True when `section` says what `entries` say: there is nothing to restore then. */
  says(section: Section, entries: readonly StructInput<E>[]): boolean {
    return section.version === this.#layout.version && equalBytes(section.bytes, this.#bytesOf(entries));
  }

  #bytesOf(entries: readonly StructInput<E>[]): Uint8Array {
    let bytes = this.#bytes.get(entries);
    if (bytes === undefined) {
      // In memory of its own, since it is kept
      bytes = this.#layout.encode(0, {}, entries).bytes.slice();
      this.#bytes.set(entries, bytes);
    }
    return bytes;
  }
}

const isOfWords = ({ byteOffset, length }: Uint8Array): boolean => ((byteOffset | length) & 3) === 0;

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  if (!isOfWords(a) || !isOfWords(b)) return a.every((byte, at) => byte === b[at]);
  const words = new Uint32Array(a.buffer, a.byteOffset, a.length >>> 2);
  const others = new Uint32Array(b.buffer, b.byteOffset, b.length >>> 2);
  for (let at = 0; at < words.length; at++) if (words[at] !== others[at]) return false;
  return true;
}
