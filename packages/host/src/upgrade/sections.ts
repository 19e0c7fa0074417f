/** Comparing what a VM sends with what a receiver takes, and with what it sends itself. */
import type { Section, SectionSupport, VmDescription } from "@mkvm/kvm-abi";

/** What all of `modules` take: sections that each knows, in the versions that each knows. */
export function featureLevel(modules: readonly (readonly SectionSupport[])[]): SectionSupport[] {
  const [first = [], ...others] = modules;
  return others.reduce<SectionSupport[]>(
    (level, receives) =>
      level.flatMap((known) => {
        const other = receives.find((candidate) => candidate.name === known.name);
        if (!other) return [];
        const minVersion = Math.max(known.minVersion, other.minVersion);
        const maxVersion = Math.min(known.maxVersion, other.maxVersion);
        return minVersion <= maxVersion ? [{ name: known.name, minVersion, maxVersion }] : [];
      }),
    [...first],
  );
}

/** Undefined when `receives` takes every required section; else the first that it does not. */
export function firstUnknownSection(
  vm: VmDescription,
  receives: readonly SectionSupport[],
  receiver: string,
): string | undefined {
  for (const section of vm.sections) {
    if (!section.required) continue;
    const support = receives.find((candidate) => candidate.name === section.name);
    if (!support) return `${receiver} does not know the required section ${section.name}`;
    if (section.version < support.minVersion || section.version > support.maxVersion) {
      return `${receiver} takes section ${section.name} in versions ${support.minVersion} to ${support.maxVersion}, and it comes in version ${section.version}`;
    }
  }
  return undefined;
}

/** Undefined when both are equal to the byte; else where they differ first. */
export function firstDifference(sent: readonly Section[], restored: readonly Section[]): string | undefined {
  for (let index = 0; index < Math.max(sent.length, restored.length); index++) {
    const a = sent[index];
    const b = restored[index];
    if (!a || !b) return `section ${nameOf(a ?? b!)} is on one side only`;
    if (a.name !== b.name || a.instance !== b.instance) return `section ${nameOf(a)} came back as ${nameOf(b)}`;
    if (a.version !== b.version) return `section ${nameOf(a)} came back in version ${b.version}, was ${a.version}`;
    if (a.required !== b.required) return `section ${nameOf(a)} is required on one side only`;
    if (a.bytes.length !== b.bytes.length) return `section ${nameOf(a)} has ${b.bytes.length} bytes, was ${a.bytes.length}`;
    if (Buffer.compare(a.bytes, b.bytes) === 0) continue;
    const at = a.bytes.findIndex((byte, index) => byte !== b.bytes[index]);
    return `section ${nameOf(a)} differs at byte ${at}: ${hex(b.bytes[at]!)}, was ${hex(a.bytes[at]!)}`;
  }
  return undefined;
}

export function totalBytes(sections: readonly Section[]): number {
  return sections.reduce((sum, section) => sum + section.bytes.length, 0);
}

function nameOf(section: Section): string {
  return `${section.name}[${section.instance}]`;
}

function hex(byte: number): string {
  return `0x${byte.toString(16).padStart(2, "0")}`;
}
