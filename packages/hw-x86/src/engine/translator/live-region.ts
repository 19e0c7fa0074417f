/** A region that is in use, or whose code is to come. */
import { block } from "../operation.ts";
import type { Region } from "./region.ts";
import type { PlacedBlock } from "./region-finder.ts";

export interface LiveBlock extends PlacedBlock {
  readonly successors: readonly LiveBlock[];
}

export interface LiveRegion {
  /** Table index of its function; 0 as long as it waits for its code. */
  index: number;
  readonly head: LiveBlock;
  readonly blocks: readonly LiveBlock[];
  /** Headers of the blocks that lead to it. */
  entries: readonly number[];
  /** Numbers of the pages that its code lies in. */
  readonly pages: ReadonlySet<number>;
  /** Regions before it, each with fewer entries. */
  readonly generation: number;
  /** The next, which is to replace it when its code is there. */
  successor: LiveRegion | undefined;
  /** Runs of the engine when it came into use. */
  since: number;
  /** Instructions that the interpreter has run inside of it, as its questions tell. */
  inside: number;
}

export function createLiveRegion({ head, blocks }: Region, u32: Uint32Array, generation: number): LiveRegion {
  const made = new Map(blocks.map((own) => [own, { header: own.header, offset: own.offset, successors: [] as LiveBlock[] }]));
  for (const [own, { successors }] of made) for (const to of own.successors) successors.push(made.get(to) as LiveBlock);
  return {
    index: 0,
    head: made.get(head) as LiveBlock,
    blocks: [...made.values()],
    entries: [],
    pages: new Set(blocks.map(({ header }) => u32[(header + block.physical) >>> 2] >>> 12)),
    generation,
    successor: undefined,
    since: 0,
    inside: 0,
  };
}
