/** Measures moves against the figures to reach. Prints a table, writes docs/benchmarks-upgrade.md and .json. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { becomeHostProcess } from "@mkvm/host";
import { machineFacts } from "./bench/machine.ts";
import { upgradeParts } from "./bench/upgrade-parts.ts";
import {
  type MeasuredUpgradeRow,
  renewedUpgrade,
  type UpgradeReport,
  upgradeJson,
  upgradeMarkdown,
  upgradeTable,
} from "./bench/upgrade-report.ts";

const HELP = `Usage: pnpm bench:upgrade [--only NAME[,NAME]] [--moves 1000] [--vms 100] [--json] [--write | --no-write]

Measures what moving VMs costs. A run of everything writes docs/benchmarks-upgrade.md and docs/benchmarks-upgrade.json.

  --only NAMES   a part of it, and nothing is written
  --write        with --only: renew the rows of these parts in the files of docs/
  --moves N      moves whose blackout is looked at (default: 1000)
  --vms N        VMs moved by one command (default: 100)
  --json         print JSON instead of the table
  --no-write     leave the files of docs/ alone

Parts:
${upgradeParts.map(({ name, about }) => `  ${name.padEnd(14)} ${about}`).join("\n")}`;

const page = "docs/benchmarks-upgrade";

function usage(message: string): never {
  console.error(`bench:upgrade: ${message}`);
  process.exit(2);
}

function options() {
  try {
    return parseArgs({
      allowNegative: true,
      options: {
        only: { type: "string" },
        moves: { type: "string", default: "1000" },
        vms: { type: "string", default: "100" },
        json: { type: "boolean", default: false },
        write: { type: "boolean" },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    return usage((error as Error).message);
  }
}

const values = options();
// As the command does for its hosts
becomeHostProcess();
if (values.help) {
  console.log(HELP);
  process.exit(0);
}
const names = upgradeParts.map(({ name }) => name);
const wanted = values.only?.split(",") ?? names;
const unknown = wanted.find((name) => !names.includes(name));
if (unknown !== undefined) usage(`there is no part ${unknown}: choose of ${names.join(", ")}`);
const whole = (option: string, text: string): number => {
  const value = Number(text);
  return Number.isInteger(value) && value >= 1 ? value : usage(`${option} ${text}: give a whole number from 1`);
};
const moves = whole("--moves", values.moves);
const vms = whole("--vms", values.vms);

const machine = machineFacts();
const began = performance.now();
const progress = (text: string) => void process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : `${text}\n`);
const rows: MeasuredUpgradeRow[] = [];
for (const part of upgradeParts.filter(({ name }) => wanted.includes(name))) {
  progress(part.name);
  rows.push(...(await part.measure({ moves, vms, progress })).map((row) => ({ part: part.name, ...row })));
}
if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
const report: UpgradeReport = { machine, moves, seconds: Math.round((performance.now() - began) / 1000), rows };
console.log(values.json ? upgradeJson(report) : upgradeTable(report));
const isWhole = values.only === undefined;
if (values.write ?? isWhole) {
  const earlier = isWhole || !existsSync(`${page}.json`) ? undefined : JSON.parse(readFileSync(`${page}.json`, "utf8"));
  const written = earlier === undefined ? report : renewedUpgrade(earlier, report, names);
  writeFileSync(`${page}.md`, upgradeMarkdown(written));
  writeFileSync(`${page}.json`, upgradeJson(written));
}
process.exit(0);
