/** Measures what the README promises, beside the engines that a user could pick instead. Prints a table, writes docs/benchmarks.md and .json. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { becomeHostProcess } from "@mkvm/host";
import { machineFacts } from "./bench/machine.ts";
import type { Part, PartContext } from "./bench/part.ts";
import { chooseParts, isSubpart, parts } from "./bench/parts.ts";
import { json, type MeasuredRow, markdown, type Report, renewed, terminalTable } from "./bench/report.ts";

const HELP = `Usage: pnpm bench [--only NAME[,NAME]] [--rounds 5] [--json] [--write | --no-write]

Measures mkvm and its peers in turns. A run of everything writes docs/benchmarks.md and docs/benchmarks.json.

  --only NAMES   a part of it, and nothing is written; may be given more than once
  --write        with --only: renew the rows of these parts in the files of docs/
  --rounds N     measurements of each engine, at least 1 (default: 5)
  --json         print JSON instead of the table
  --no-write     leave the files of docs/ alone

Parts:
${parts
  .filter((part) => !isSubpart(part))
  .map((part) => `  ${part.name.padEnd(14)} ${part.about}`)
  .join("\n")}
and one workload alone: ${parts
  .filter(isSubpart)
  .map((part) => part.name)
  .join(", ")}`;

function usage(message: string): never {
  console.error(`bench: ${message}`);
  process.exit(2);
}

function options() {
  try {
    const { values } = parseArgs({
      allowNegative: true,
      options: {
        only: { type: "string", multiple: true, default: [] },
        rounds: { type: "string", default: "5" },
        json: { type: "boolean", default: false },
        write: { type: "boolean" },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      console.log(HELP);
      process.exit(0);
    }
    const rounds = Number(values.rounds);
    if (!Number.isInteger(rounds) || rounds < 1) usage(`--rounds ${values.rounds}: give a whole number from 1`);
    const names = values.only.flatMap((list) => list.split(",")).filter(Boolean);
    return { rounds, chosen: chooseParts(names), isWhole: names.length === 0, json: values.json, write: values.write };
  } catch (error) {
    return usage((error as Error).message);
  }
}

async function measure(chosen: readonly Part[], rounds: number): Promise<Report> {
  const machine = machineFacts();
  const began = performance.now();
  const notes = new Set<string>();
  const folder = mkdtempSync(join(tmpdir(), "mkvm-bench-"));
  const context: PartContext = {
    rounds,
    folder,
    progress: (text) => void process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : `${text}\n`),
    note: (text) => void notes.add(text),
  };
  const rows: MeasuredRow[] = [];
  try {
    for (const part of chosen) {
      const measured = await part.measure(context);
      rows.push(...measured.map((row) => ({ part: part.name, ...row })));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  }
  return { machine, rounds, seconds: Math.round((performance.now() - began) / 1000), rows, notes: [...notes] };
}

const { rounds, chosen, isWhole, json: asJson, write } = options();
// As the command does for its hosts
becomeHostProcess();
const report = await measure(chosen, rounds);
console.log(asJson ? json(report) : terminalTable(report));
if (write ?? isWhole) {
  const names = parts.map((part) => part.name);
  const written = isWhole ? report : renewed(JSON.parse(readFileSync("docs/benchmarks.json", "utf8")), report, names);
  writeFileSync("docs/benchmarks.md", markdown(written));
  writeFileSync("docs/benchmarks.json", json(written));
}
process.exit(0);
