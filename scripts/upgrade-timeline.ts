/**
 * Draws docs/upgrade.md's timeline from a real run: moves a VM there and back, and draws the first move and the median of later ones.
 * Without arguments prints it; with --update writes it into the document.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost, type MoveReport } from "@mkvm/host";
import { checkGuest } from "@mkvm/testkit";

const document = join(import.meta.dirname, "..", "docs", "upgrade.md");
const begin = "<!-- timeline: written by scripts/upgrade-timeline.ts -->";
const end = "<!-- end of timeline -->";
const warmMoves = 30;

async function measure(): Promise<{ first: MoveReport; warm: MoveReport }> {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-timeline-"));
  const image = join(folder, "guest.bin");
  writeFileSync(image, checkGuest());
  const host = await createHost({ directory: process.cwd() });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const run = await host.run({ args: ["--kernel", image, "--format", "flat64", "--memory", "256M"] });
    const { pid } = run;
    // The guest runs once it has said something
    for await (const _ of run.output) break;
    const move = async (to: string): Promise<MoveReport> => {
      const [report] = await host.upgrade({ pid, to });
      if (!report?.moved) throw new Error(`the move failed: ${report?.failed?.reason}`);
      return report;
    };
    const first = await move("kvm2");
    const warm: MoveReport[] = [];
    for (let round = 0; round < warmMoves; round++) {
      await move("kvm1");
      warm.push(await move("kvm2"));
    }
    warm.sort((a, b) => a.blackoutUs - b.blackoutUs);
    return { first, warm: warm[warmMoves >> 1]! };
  } finally {
    await host.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Mermaid's time axis has a grain of a millisecond: a microsecond is drawn as one. */
function gantt(title: string, { steps, blackoutUs }: MoveReport): string {
  const lines = [
    "```mermaid",
    "gantt",
    `  title ${title}: blackout ${Math.round(blackoutUs)} us`,
    "  dateFormat x",
    "  axisFormat %s,%L",
  ];
  let at = 0;
  let section = "";
  for (const { step, durationUs } of steps) {
    const next = step === "check" || step === "prepare" || step === "thaw" ? "VM runs" : "VM stands still";
    if (next !== section) lines.push(`  section ${next}`);
    section = next;
    const until = at + Math.max(1, Math.round(durationUs));
    lines.push(`  ${step} (${Math.round(durationUs)} us) :${at}, ${until}`);
    at = until;
  }
  return [...lines, "```"].join("\n");
}

const { first, warm } = await measure();
const text = `${gantt("First move of a new daemon", first)}\n\n${gantt(`Median of ${warmMoves} later moves`, warm)}`;
if (process.argv.includes("--update")) {
  const page = readFileSync(document, "utf8");
  const [before, rest = ""] = page.split(begin);
  const [, after = ""] = rest.split(end);
  writeFileSync(document, `${before}${begin}\n\n${text}\n\n${end}${after}`);
} else console.log(text);
