/** Measures what the README promises, beside QEMU TCG where it is installed. Prints a table, writes docs/benchmarks.md and .json. */
import { writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { blackout, engineRate, type Figure, linuxBoot, moduleChurn } from "./bench/measurements.ts";
import { qemuVersion } from "./bench/peers.ts";

const parts = {
  interpreter: () => engineRate(64, "off", rounds),
  translator: () => engineRate(64, "hot", rounds),
  boot: () => linuxBoot(rounds),
  blackout: () => blackout(200),
  modules: () => moduleChurn(1000),
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "3" },
    write: { type: "boolean", default: true },
    help: { type: "boolean", default: false },
  },
  allowNegative: true,
});
const rounds = Number(values.rounds);
if (values.help || !(rounds >= 1) || positionals.some((name) => !(name in parts))) {
  console.log(`Usage: pnpm bench [${Object.keys(parts).join("] [")}] [--rounds 3] [--no-write]`);
  process.exit(values.help ? 0 : 2);
}

const chosen = positionals.length ? (positionals as (keyof typeof parts)[]) : (Object.keys(parts) as (keyof typeof parts)[]);
const figures: Figure[] = [];
for (const name of chosen) {
  console.error(`measuring ${name}`);
  figures.push(...(await parts[name]()));
}

const machine = `${cpus().length} x ${cpus()[0].model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}; peer: ${qemuVersion() ?? "none installed"}`;
const head = ["what", "mkvm", "QEMU TCG", "to reach"];
const row = (figure: Figure) => [figure.what, figure.mkvm, figure.peer, figure.goal];
const table = new Table({ head, style: { head: [], border: [] } });
table.push(...figures.map(row));
console.log(`${table}\n${machine}`);

if (values.write && !positionals.length) {
  const line = (cells: string[]) => `| ${cells.join(" | ")} |`;
  const markdown = [line(head), line(head.map(() => "---")), ...figures.map((figure) => line(row(figure)))].join("\n");
  writeFileSync(
    "docs/benchmarks.md",
    `# Benchmarks\n\nWritten by \`pnpm bench\`, medians of ${rounds} rounds, peers in the same run. Machines are shared and noisy: compare within a run.\n\n${machine}\n\n${markdown}\n`,
  );
  writeFileSync("docs/benchmarks.json", `${JSON.stringify({ machine, rounds, figures }, undefined, 2)}\n`);
}
