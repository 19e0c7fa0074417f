/** How far a change reaches: `major` breaks somebody who did nothing wrong, `minor` adds, `patch` can be felt by nobody's code. */
export type ChangeClass = "major" | "minor" | "patch";

/** One documented rule. The table of all of them is docs/abi-rules.md. */
export interface Rule {
  readonly id: string;
  readonly class: ChangeClass;
  /** The change, in a sentence. */
  readonly title: string;
  /** Who is hurt, or why nobody is. */
  readonly why: string;
  /** A change that the rule is for, before and after. */
  readonly example: readonly [before: string, after: string];
  /** What the author does instead, or next. */
  readonly remedy: string;
}

/** One difference, as a rule classified it. */
export interface Finding {
  readonly package: string;
  readonly rule: string;
  readonly class: ChangeClass;
  /** What it is about: "Kernel.memory", "struct kvm_run.flags", "engines.node". */
  readonly subject: string;
  /** Before and after, on one line. */
  readonly detail: string;
}

const reach: Record<ChangeClass, number> = { patch: 1, minor: 2, major: 3 };

/** The farther-reaching of two classes; undefined stands for no change. */
export function farther(a: ChangeClass | undefined, b: ChangeClass | undefined): ChangeClass | undefined {
  if (!a || !b) return a ?? b;
  return reach[a] >= reach[b] ? a : b;
}

/** The class of several findings together; undefined where there is none. */
export function classOf(findings: readonly Pick<Finding, "class">[]): ChangeClass | undefined {
  return findings.reduce<ChangeClass | undefined>((far, finding) => farther(far, finding.class), undefined);
}
