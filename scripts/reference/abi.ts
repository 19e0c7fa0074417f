/** docs/reference/abi.md: ioctls, structures and the sections of the portable VM state, as @mkvm/kvm-abi exports them. */

import type { Field, Fields, Struct } from "@mkvm/kvm-abi";
import * as abi from "@mkvm/kvm-abi";
import { table } from "./markdown.ts";

type AnyStruct = Struct<Fields>;

function fieldRows(fields: Fields, base = 0): string[][] {
  return Object.entries(fields).map(([name, field]: [string, Field<unknown>]) => [
    String(base + field.offset),
    String(field.sizeBytes),
    `\`${name}\``,
    field.struct ? `${field.struct.name}${field.count === undefined ? "" : `[${field.count}]`}` : field.type,
  ]);
}

function layout(struct: AnyStruct): string {
  const tail = struct.tail ? `, then \`${struct.tail.name}\`, ${struct.tail.strideBytes} bytes each` : "";
  return `${struct.sizeBytes} bytes${tail}.\n\n${table(["offset", "bytes", "field", "type"], fieldRows(struct.fields))}`;
}

const isStruct = (value: unknown): value is AnyStruct =>
  typeof value === "object" && value !== null && "sizeBytes" in value && "offsets" in value;

export function abiReference(): string {
  const hex = (value: number) => `\`0x${value.toString(16).padStart(8, "0")}\``;
  const ioctls = Object.entries(abi.Ioctl).map(([name, value]) => [`\`${name}\``, hex(Number(value))]);
  const structs = (Object.values(abi) as unknown[]).filter(isStruct);
  return [
    `## Portable VM state\n\nFeature level ${abi.ABI_FEATURE_LEVEL}. Each section begins with ${abi.SectionHead.name}: ${layout(abi.SectionHead)}`,
    ...abi.SECTIONS.map((section) => {
      const what = `version ${section.version}, ${section.required ? "required" : "optional"}`;
      const entries = section.entry.sizeBytes > 0 ? `\nEntries (${section.entry.name}): ${layout(section.entry)}` : "";
      return `### \`${section.name}\`\n\n${what}. Fixed part: ${layout(section.fixed)}${entries}`;
    }),
    `## ioctls\n\n${table(["name", "number"], ioctls)}`,
    "## Structures\n",
    ...structs.map((struct) => `### \`${struct.name}\`\n\n${layout(struct)}`),
  ].join("\n");
}
