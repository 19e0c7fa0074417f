import type { Field, Fields, Struct } from "../src/index.ts";
import * as abi from "../src/index.ts";

/** "sizeof kvm_regs", "offsetof kvm_run io.port", "KVM_RUN", ...: what C and the tables are to agree on. */
export type Figures = Record<string, number>;

function isStruct(value: unknown): value is Struct<Fields> {
  return typeof value === "object" && value !== null && "sizeBytes" in value && "fields" in value;
}
/** Structures of <linux/kvm.h>, without those that exist only inside another. */
export const structs = Object.values<unknown>(abi)
  .filter(isStruct)
  .filter(({ name }) => /^kvm_\w+$/.test(name));

/** Groups of constants, and single ones. */
export const constants: Figures = Object.fromEntries(
  Object.entries(abi).flatMap(([name, value]): [string, number][] => {
    if (typeof value === "number" && name.startsWith("KVM_")) return [[name, value]];
    if (typeof value !== "object" || isStruct(value)) return [];
    return Object.entries(value).filter(
      (entry): entry is [string, number] => entry[0].startsWith("KVM_") && typeof entry[1] === "number",
    );
  }),
);

/** Visits every field that has a name in C, with its path from the structure and its offset. */
function visit(
  fields: Fields,
  prefix: string,
  base: number,
  found: (path: string, offset: number, size: number) => void,
): void {
  for (const [name, field] of Object.entries(fields)) {
    const path = prefix + name;
    if (!field.anonymous && !name.startsWith("_")) found(path, base + field.offset, field.sizeBytes);
    if (field.members) visit(field.members, field.anonymous ? prefix : `${path}.`, base, found);
    else if (field.struct) visitStruct(field, path, base, found);
  }
}
function visitStruct(
  field: Field<unknown>,
  path: string,
  base: number,
  found: (path: string, offset: number, size: number) => void,
): void {
  const { struct, count } = field;
  if (!struct) return;
  if (count === undefined) {
    visit(struct.fields, `${path}.`, base + field.offset, found);
    return;
  }
  for (const i of [0, count - 1]) visit(struct.fields, `${path}[${i}].`, base + field.offset + i * struct.sizeBytes, found);
}

/** What the tables of this package say. */
export function figuresOfTables(): Figures {
  const figures: Figures = {};
  for (const { name, sizeBytes, fields, tail } of structs) {
    figures[`sizeof ${name}`] = sizeBytes;
    visit(fields, "", 0, (path, offset, size) => {
      figures[`offsetof ${name} ${path}`] = offset;
      figures[`sizeof ${name} ${path}`] = size;
    });
    if (tail) figures[`offsetof ${name} ${tail.name}`] = sizeBytes;
    if (tail) figures[`stride ${name} ${tail.name}`] = tail.strideBytes;
  }
  for (const [name, value] of Object.entries(constants)) figures[name] = value;
  return figures;
}

/** A structure exists in the header when this macro does. */
const GUARDS: Record<string, string> = { kvm_userspace_memory_region2: "KVM_SET_USER_MEMORY_REGION2" };

/** A C program that prints the same figures as "name = value" lines, from <linux/kvm.h>. */
export function cProgram(): string {
  const lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/kvm.h>", "", "int main(void) {"];
  const print = (name: string, expression: string) =>
    lines.push(`  printf("%s = %llu\\n", "${name}", (unsigned long long)(${expression}));`);
  for (const { name, fields, tail } of structs) {
    const guard = GUARDS[name];
    if (guard) lines.push(`#ifdef ${guard}`);
    print(`sizeof ${name}`, `sizeof(struct ${name})`);
    visit(fields, "", 0, (path) => {
      print(`offsetof ${name} ${path}`, `offsetof(struct ${name}, ${path})`);
      print(`sizeof ${name} ${path}`, `sizeof(((struct ${name} *)0)->${path})`);
    });
    if (tail) print(`offsetof ${name} ${tail.name}`, `offsetof(struct ${name}, ${tail.name})`);
    if (tail) print(`stride ${name} ${tail.name}`, `sizeof(((struct ${name} *)0)->${tail.name}[0])`);
    if (guard) lines.push("#endif");
  }
  for (const name of Object.keys(constants)) {
    lines.push(`#ifdef ${name}`);
    print(name, name);
    lines.push("#endif");
  }
  lines.push("  return 0;", "}");
  return `${lines.join("\n")}\n`;
}
