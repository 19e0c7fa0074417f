/**
 * Translation contexts that are not in use: of other virtual CPUs of the bank, which take turns, and of other process-context
 * identifiers of the same one, between which the guest turns by MOV to CR3. All of it can be forgotten at any time.
 */

/** What belongs to one translation tag and process-context identifier. */
export interface Context {
  translationTag: number;
  /** CR3 bits 11:0 with CR4.PCIDE, else 0. */
  identifier: number;
  generation: number;
  globalGeneration: number;
  supervisorTag: number;
  userTag: number;
  systemDataIsPrivate: boolean;
  /** 0: code was dropped since, so that another epoch has to begin. */
  userEpoch: number;
  systemEpoch: number;
  systemIsPrivate: boolean;
  cr0: number;
  cr3Low: number;
  cr3High: number;
  cr4: number;
  efer: number;
  pkru: number;
  breakpoints: number;
}

interface Kept {
  context: Context;
  /** It was in use when its translation tag was: what happened to the tag's other contexts since then happened to this one too. */
  wasLast: boolean;
}

/** As many as a VM of a few vCPUs has: Linux turns between six identifiers on each, or twelve. */
const MOST = 64;

export class KeptContexts {
  #kept: Kept[] = [];
  #next = 0;

  keep(context: Context, wasLast: boolean): void {
    const kept = { context, wasLast };
    const { translationTag, identifier } = context;
    const known = this.#kept.findIndex((other) => isOf(other.context, translationTag, identifier));
    if (known >= 0) this.#kept[known] = kept;
    else {
      this.#kept[this.#next % MOST] = kept;
      this.#next = (this.#next + 1) % MOST;
    }
  }

  /** The context that was in use when the tag was last; undefined when that was of another identifier. Tags are never used twice. */
  lastOf(translationTag: number, identifier: number): Context | undefined {
    return this.#kept.find(({ context, wasLast }) => wasLast && isOf(context, translationTag, identifier))?.context;
  }

  /** The context of an identifier of the tag that is in use. */
  of(translationTag: number, identifier: number): Context | undefined {
    return this.#kept.find(({ context }) => isOf(context, translationTag, identifier))?.context;
  }

  /** Code that user code of these epochs and earlier ones may have run is there no more. */
  dropUserCode(translationTag: number, epoch: number): void {
    for (const { context } of this.#kept)
      if (context.translationTag === translationTag && context.userEpoch <= epoch) context.userEpoch = 0;
  }

  forget(translationTag: number, identifier?: number): void {
    const isMeant = ({ context }: Kept): boolean =>
      context.translationTag === translationTag && (identifier === undefined || context.identifier === identifier);
    if (!this.#kept.some(isMeant)) return;
    this.#kept = this.#kept.filter((kept) => !isMeant(kept));
    this.#next = this.#kept.length % MOST;
  }

  forgetAll(): void {
    this.#kept.length = 0;
    this.#next = 0;
  }
}

const isOf = (context: Context, translationTag: number, identifier: number): boolean =>
  context.translationTag === translationTag && context.identifier === identifier;
