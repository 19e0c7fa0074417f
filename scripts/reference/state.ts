/** docs/reference/state.md: what crosses in a move with the test of each field, and what becomes of each piece of module state. */
import { resolve } from "node:path";
import { declarations, fieldRows } from "../state/check.ts";
import type { Fate } from "../state/declaration.ts";
import { moduleSources } from "../state/scan.ts";
import { layouts, titleOf } from "../state/section-fields.ts";

const root = resolve(import.meta.dirname, "..", "..");

export function stateReference(): string {
  const moved = layouts.flatMap((layout) => {
    const rows = fieldRows().filter(({ field }) => field.layout === layout);
    if (rows.length === 0) return [];
    const name = titleOf(layout);
    const lines = rows.map(({ field, tests, reason }) => {
      const by = tests.length > 0 ? tests.join("; ") : `none: ${reason}`;
      return `| \`${field.name.slice(name.length).replace(/^\./, "")}\` | ${by} |`;
    });
    return [
      `### ${name}, version ${layout.version}${layout.required ? "" : ", optional"}`,
      "",
      "| field | moved by the test |",
      "|---|---|",
      ...lines,
      "",
    ];
  });
  const sources = moduleSources(root);
  const order = (holder: string, of: string): number =>
    sources.findIndex((source) => source.package === of && source.file === holder.split(" ")[0]);
  const held = Object.entries(declarations).flatMap(([name, holders]) => [
    `### ${name}`,
    "",
    "| state | what becomes of it |",
    "|---|---|",
    ...Object.entries(holders)
      // In the order of the sources
      .sort(([a], [b]) => order(a, name) - order(b, name))
      .flatMap(([holder, fates]) =>
        Object.entries(fates).map(([field, fate]) => `| \`${holder.split(" ")[1]}.${field}\` | ${describe(fate)} |`),
      ),
    "",
  ]);
  return [
    "A build fails when a field of a section has no test that moves it, or a class of a module has a field of which nobody has said",
    "what a move makes of it. `scripts/state` has the declarations, `packages/kvm-v1/test/moved-state` the tests. Each test sets values",
    "through the uapi, moves the VM from version 1 to version 2 and back, and reads them back through the uapi, on machines of both",
    "vendors; that each field it names had a value of its own while it crossed is checked too. Of what KVM has no call to read (TSS",
    "and identity-map addresses, the signal mask) the bytes that the new side saves again are compared, as in every move.",
    "",
    "## What crosses",
    "",
    ...moved,
    "## What modules hold",
    "",
    "Carried: the fields of sections that have it. Held: declared where it is. Anew: the new side makes it, for the reason given.",
    "",
    ...held,
  ]
    .join("\n")
    .trimEnd()
    .concat("\n");
}

function describe(fate: Fate): string {
  if (fate.kind === "carried") return `carried: ${fate.by.map((name) => `\`${name}\``).join(", ")}`;
  return fate.kind === "held" ? `held: ${fate.in.map((name) => `\`${name}\``).join(", ")}` : `anew: ${fate.why}`;
}
