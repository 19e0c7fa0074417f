/**
 * Names for sets of cached guest translations in one bank: one tag for each VPID or ASID and
 * second-level table. An invalidation does not search
 * for entries, it retires the tags that it concerns; the next entry gets a tag that nothing is cached under.
 */

interface Context {
  vpid: number;
  eptTag: number;
  tag: number;
}

/** Gives each tag once. One for each CPU: what a CPU caches of second-level walks is told apart by tag alone, whatever the bank. */
export class TagSource {
  #last = 0;

  /** Exact: fewer than 2^53 are ever made. */
  next(): number {
    return ++this.#last;
  }
}

export class TranslationTags {
  readonly #contexts: Context[] = [];
  readonly #source: TagSource;

  constructor(source: TagSource) {
    this.#source = source;
  }

  /** Tag of the translations of `vpid` (SVM: an ASID) under EPT context `eptTag` (SVM: under that nested CR3; 0: no second level). */
  tagFor(vpid: number, eptTag: number): number {
    const contexts = this.#contexts;
    for (let i = 0; i < contexts.length; i++) {
      const context = contexts[i] as Context;
      if (context.vpid === vpid && context.eptTag === eptTag) return context.tag;
    }
    const tag = this.fresh();
    contexts.push({ vpid, eptTag, tag });
    return tag;
  }

  /** A tag under which nothing is cached, for a guest without VPID. */
  fresh(): number {
    return this.#source.next();
  }

  retireVpid(vpid: number): void {
    this.#retire((context) => context.vpid === vpid);
  }
  retireEpt(eptTag: number): void {
    this.#retire((context) => context.eptTag === eptTag);
  }
  retireAll(): void {
    this.#contexts.length = 0;
  }

  #retire(concerned: (context: Context) => boolean): void {
    const contexts = this.#contexts;
    for (let i = contexts.length - 1; i >= 0; i--) if (concerned(contexts[i] as Context)) contexts.splice(i, 1);
  }
}
