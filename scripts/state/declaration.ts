/** What becomes of a piece of module state in a move. */
export type Fate =
  /** It crosses in these fields of sections; `.*` for all below. */
  | { readonly kind: "carried"; readonly by: readonly string[] }
  /** What it holds is declared as a holder of its own. */
  | { readonly kind: "held"; readonly in: readonly string[] }
  /** The new side makes it anew, and the reason why nothing is lost. */
  | { readonly kind: "rebuilt"; readonly why: string };

/** Fates of the fields of each holder: "file.ts Name". */
export type Declarations = Readonly<Record<string, Readonly<Record<string, Fate>>>>;

export const carried = (...by: string[]): Fate => ({ kind: "carried", by });
export const held = (...holders: string[]): Fate => ({ kind: "held", in: holders });
export const rebuilt = (why: string): Fate => ({ kind: "rebuilt", why });

/** Others that the object works with, given when it is made. */
export const wiring = rebuilt("one of the objects that it works with");
/** Decided when the module was loaded. */
export const ofTheModule = rebuilt("given by the module, its parameters or the machine");
/** Lives within one call. */
export const transient = rebuilt("lasts no longer than a call, and moves happen between calls");
