/** Writes docs/statistics.md from the rows that the modules count by. A test compares the two. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Row, type StatisticsTable, VCPU_TABLE, VM_TABLE } from "../packages/kvm-core/src/index.ts";

const page = join(import.meta.dirname, "..", "docs", "statistics.md");

const WORD_BYTES = 8;

function unitOf({ unit, exponent }: Row): string {
  if (unit === "seconds") return exponent === -9 ? "ns" : `s * 10^${exponent}`;
  return unit === "none" ? "" : unit;
}

function remark(row: Row): string {
  if (row.never !== undefined) return `Always 0: ${row.never}.`;
  if (row.neverInV1 !== undefined) return `Always 0 in version 1: ${row.neverInV1}.`;
  if (row.neverInV2 !== undefined) return `Always 0 in version 2: ${row.neverInV2}.`;
  return "";
}

function tableOf(table: StatisticsTable, rows: readonly Row[]): string {
  const lines = rows.map((row) => {
    const offset = table.word[row.name]! * WORD_BYTES;
    // A name at the beginning stays as it is written
    const named = /^\w*_/.test(row.counts);
    const text = named ? `\`${row.counts.replace(" ", "` ")}` : `${row.counts[0]!.toUpperCase()}${row.counts.slice(1)}`;
    const counts = [`${text}.`, remark(row)].filter((text) => text !== "").join(" ");
    return `| \`${row.name}\` | ${row.kind} | ${unitOf(row)} | ${offset} | ${counts} |`;
  });
  return ["| name | kind | unit | offset | counts |", "|---|---|---|---|---|", ...lines].join("\n");
}

/** The page as the rows have it. */
export function statisticsReference(): string {
  const of = (table: StatisticsTable, source: Row["source"]) =>
    tableOf(
      table,
      table.rows.filter((row) => row.source === source),
    );
  return `# Statistics

<!-- Written by scripts/statistics-reference.ts from packages/kvm-core/src/statistics: change it there, then run \`pnpm statistics-reference\`. -->

Each VM and each vCPU counts what it does. A VMM reads the figures through \`KVM_GET_STATS_FD\`, in the binary format of
\`<linux/kvm.h>\`; an operator sees them with \`mkvm stat\`, a program with \`host.statistics()\`, neither with any help of the VMM.
Names, kinds and units are Linux's where Linux has them.

- **cumulative** values only grow, **peak** values too; **instant** values say how things are now. A **log-histogram** has 32
  buckets: the first counts zeros, bucket n sizes from 2^(n-1) up to 2^n, the last one all above.
- Offsets are bytes from the start of the data block, which lies where the header says. It begins at the same place in every version, and rows are only
  ever added at the end: a reader that keeps descriptors over a move of its VM goes on reading right values.
- Statistics move with their VM, but for instant ones, which the new module finds out by itself. A module keeps what it does not
  know of a newer one, does not show it, and sends it on: values never step back, on the way there or back.
- Counters are always on. Latencies cost two looks at the clock for each exit, so they are taken only by modules that were loaded
  with \`exit_latency=1\`. They are in the time of the host's clock: under icount that stands still outside of guest code, but for halts. A
  request for an interrupt that was pending when its VM moved is not timed.

## VM

${of(VM_TABLE, "Linux")}

Beside Linux's:

${of(VM_TABLE, "mkvm")}

## vCPU

${of(VCPU_TABLE, "Linux")}

Beside Linux's:

${of(VCPU_TABLE, "mkvm")}
`;
}

/** The page as it is. */
export function writtenStatisticsReference(): string {
  return readFileSync(page, "utf8");
}

if (process.argv[1] === import.meta.filename) writeFileSync(page, statisticsReference());
