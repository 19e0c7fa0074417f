/** Compares layouts of structures, field by field. */
import type { Field, Structure } from "../report/schema.ts";
import type { Findings } from "../rules/rule-table.ts";

/** Reserved by contract: zero until somebody gives it a meaning. */
const isReserved = (name: string): boolean => /^(reserved|pad|padding)\d*$/.test(name);
/** The compiler's own padding: no contract about its content. */
const isUnnamedPadding = (name: string): boolean => name.startsWith("_");
const isFiller = (name: string): boolean => isReserved(name) || isUnnamedPadding(name);
const endOf = (field: Field): number => field.offset + field.sizeBytes;
const overlap = (a: Field, b: Field): boolean => a.offset < endOf(b) && b.offset < endOf(a);
const shape = (field: Field): string => `${field.type} at ${field.offset}, ${field.sizeBytes} bytes`;

/** True when anything differs. */
export function structsDiffer(was: Structure, is: Structure): boolean {
  const plain = ({ exportedAs: _, ...rest }: Structure) => JSON.stringify(rest);
  return plain(was) !== plain(is);
}

export function compareStructs(was: Structure, is: Structure, findings: Findings): void {
  const subject = `struct ${was.name}`;
  if (was.sizeNegotiatedBy && !is.sizeNegotiatedBy)
    findings.add("size-negotiation-dropped", subject, `${was.sizeNegotiatedBy} -> -`);
  const negotiated = Boolean(was.sizeNegotiatedBy && is.sizeNegotiatedBy);
  const grewAtEnd = negotiated && is.sizeBytes > was.sizeBytes;
  if (was.sizeBytes !== is.sizeBytes)
    findings.add(grewAtEnd ? "struct-appended" : "struct-resized", subject, `${was.sizeBytes} bytes -> ${is.sizeBytes} bytes`);
  if (JSON.stringify(was.tail) !== JSON.stringify(is.tail))
    findings.add("struct-tail-changed", subject, `${tailText(was)} -> ${tailText(is)}`);
  compareFields(was.fields, is.fields, subject, findings, grewAtEnd ? was.sizeBytes : undefined);
}

/** `appendFrom`: fields from that offset on are behind the old end of a structure whose size is negotiated. */
function compareFields(
  before: readonly Field[],
  after: readonly Field[],
  subject: string,
  findings: Findings,
  appendFrom?: number,
): void {
  const added = after.filter(({ name }) => !before.some((was) => was.name === name) && !isFiller(name));
  const gone: Field[] = [];
  for (const was of before) {
    const is = after.find(({ name }) => name === was.name);
    if (isFiller(was.name)) continue;
    if (is) compareField(was, is, `${subject}.${was.name}`, findings);
    else gone.push(was);
  }
  for (const was of gone) {
    const twin = added.findIndex((is) => is.offset === was.offset && is.sizeBytes === was.sizeBytes && is.type === was.type);
    if (twin >= 0) {
      findings.add("field-renamed", `${subject}.${was.name}`, `${was.name} -> ${added[twin]!.name}`);
      added.splice(twin, 1);
    } else findings.add("field-removed", `${subject}.${was.name}`, `${shape(was)} -> -`);
  }
  for (const is of added) {
    const path = `${subject}.${is.name}`;
    const under = before.filter((was) => overlap(was, is));
    const detail = `${under.map(({ name }) => name).join(", ") || "-"} -> ${shape(is)}`;
    if (appendFrom !== undefined && is.offset >= appendFrom) continue; // struct-appended says it
    const within = under.length > 0 && under[0]!.offset <= is.offset && endOf(under.at(-1)!) >= endOf(is);
    if (within && under.every(({ name }) => isReserved(name))) findings.add("reserved-field-used", path, detail);
    else if (within && under.every(({ name }) => isFiller(name))) findings.add("unnamed-padding-used", path, detail);
    else findings.add("field-inserted", path, detail);
  }
}

function compareField(was: Field, is: Field, path: string, findings: Findings): void {
  if (was.offset !== is.offset) findings.add("field-moved", path, `at ${was.offset} -> at ${is.offset}`);
  if (was.sizeBytes !== is.sizeBytes)
    findings.add("field-resized", path, `${was.type}, ${was.sizeBytes} bytes -> ${is.type}, ${is.sizeBytes} bytes`);
  else if (was.type !== is.type || was.count !== is.count) findings.add("field-retyped", path, `${was.type} -> ${is.type}`);
  if (!was.members || !is.members) return;
  for (const member of was.members) {
    const now = is.members.find(({ name }) => name === member.name);
    if (isFiller(member.name)) continue;
    if (!now) findings.add("union-member-removed", `${path}.${member.name}`, `${member.type} -> -`);
    else if (member.sizeBytes !== now.sizeBytes)
      findings.add(
        "field-resized",
        `${path}.${member.name}`,
        `${member.type}, ${member.sizeBytes} bytes -> ${now.type}, ${now.sizeBytes} bytes`,
      );
    else if (member.type !== now.type) findings.add("field-retyped", `${path}.${member.name}`, `${member.type} -> ${now.type}`);
  }
  for (const member of is.members)
    if (!was.members.some(({ name }) => name === member.name))
      findings.add("union-member-added", `${path}.${member.name}`, `- -> ${member.type}`);
}

function tailText(structure: Structure): string {
  return structure.tail ? `${structure.tail.name}, ${structure.tail.strideBytes} bytes each` : "no array behind it";
}
