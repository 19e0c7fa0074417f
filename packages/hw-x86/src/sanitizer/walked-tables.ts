/** For the hardware sanitizer: tables that the processor walks in guest mode, of whichever kind, and the links in them. */

/** A page that tables lead to though it is free: by an entry, or as their root. Physical addresses. */
export interface FreeLink {
  readonly page: number;
  readonly entry: number | undefined;
}

export interface WalkedTables {
  /** "EPT". */
  readonly title: string;
  /** A page, freed since, that translations which are in use now went through. */
  staleThrough(): number | undefined;
  /** The first page that the tables lead to though it is 1 in `isFree`, which has a byte for each page of their bank. */
  findFree(isFree: Uint8Array): FreeLink | undefined;
}

/** Tables of 64-bit entries in one bank. */
export interface TableTree {
  /** The bank's words, its number and its size. */
  readonly words: Uint32Array;
  readonly bank: number;
  readonly bankBytes: number;
  /** Bank offset of the top table. */
  readonly root: number;
  readonly levels: number;
  /** An entry leads somewhere when one of them is set. */
  readonly presentBits: number;
}

const SPAN = 0x1_0000_0000;
/** PS: the entry maps a large page. */
const LARGE = 0x80;

export function findFreeLink(tree: TableTree, isFree: Uint8Array): FreeLink | undefined {
  const { words, bank, bankBytes, presentBits } = tree;
  const page = (offset: number): number => bank * SPAN + offset;
  if (isFree[tree.root >>> 12] === 1) return { page: page(tree.root), entry: undefined };
  // Tables that lead back to themselves would have no end
  let tables = isFree.length;
  const search = (table: number, level: number): FreeLink | undefined => {
    if (--tables < 0) return undefined;
    for (let entry = table; entry < table + 4096; entry += 8) {
      const low = words[entry >>> 2] as number;
      const high = words[(entry >>> 2) + 1] as number;
      const next = (low & 0xffff_f000) >>> 0;
      if ((low & presentBits) === 0 || (high & 0xf_ffff) !== bank || next >= bankBytes) continue;
      const isLeaf = level === 0 || (low & LARGE) !== 0;
      // Of a large page no part is told apart
      if (isFree[next >>> 12] === 1 && (!isLeaf || level === 0)) return { page: page(next), entry: page(entry) };
      const found = isLeaf ? undefined : search(next, level - 1);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  return search(tree.root, tree.levels - 1);
}
