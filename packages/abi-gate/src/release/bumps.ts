/** How far a version must go for what changed, and how far it goes. */
import semver from "semver";
import type { ChangeClass } from "../rules/rule.ts";

export type Bump = "none" | "patch" | "minor" | "major";
const size: Record<Bump, number> = { none: 0, patch: 1, minor: 2, major: 3 };

/**
 * The bump that a class of change needs after `version`. Below 1.0.0 the places move down by one, as carets take them: ^0.4.0 ends at
 * 0.5.0, so a minor bump announces a break; below 0.1.0 every version does.
 */
export function neededBump(change: ChangeClass | undefined, version: string): Bump {
  if (change === undefined) return "none";
  const { major, minor } = new semver.SemVer(version);
  if (major > 0) return change;
  if (minor > 0) return change === "major" ? "minor" : "patch";
  return "patch";
}

/** The bump from one version to another; "none" when it does not go up. */
export function bumpBetween(from: string, to: string): Bump {
  if (!semver.gt(to, from)) return "none";
  const difference = semver.diff(from, to);
  if (difference === "major" || difference === "premajor") return "major";
  if (difference === "minor" || difference === "preminor") return "minor";
  return difference === null ? "none" : "patch";
}

export function isEnough(has: Bump, needs: Bump): boolean {
  return size[has] >= size[needs];
}
