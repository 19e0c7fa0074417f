/**
 * For the hardware sanitizer: who used each VPID or ASID last on a CPU. Translations that a tag has kept are another's when its user
 * changes without a flush between, and silicon says nothing.
 */
export class TagOwners {
  readonly #owners = new Map<number, number>();
  readonly #reported = new Set<number>();

  /** `owner` (address of a VMCS or VMCB) uses the tag: who did before it, to be told of once; undefined where all is well. */
  use(tag: number, owner: number): number | undefined {
    const before = this.#owners.get(tag);
    if (before === owner) return undefined;
    this.#owners.set(tag, owner);
    if (before === undefined || this.#reported.has(tag)) return undefined;
    this.#reported.add(tag);
    return before;
  }
  /** All translations of the tag are gone. */
  flushed(tag: number): void {
    this.#owners.delete(tag);
  }
  allFlushed(): void {
    this.#owners.clear();
  }
}
