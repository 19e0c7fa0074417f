/** The system guest of testkit under mkvm, and what Bochs says beside it. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import {
  compareOutcomes,
  type Difference,
  type Outcome,
  readTranscript,
  runBochs,
  type SystemCase,
  systemCases,
  systemGuest,
} from "@mkvm/testkit";
import { RunningGuest } from "./running-guest.ts";

export interface Place {
  readonly vendor: "intel" | "amd";
  readonly module: "@mkvm/kvm-v1" | "@mkvm/kvm-v2";
  readonly engine?: "off" | "hot" | "always";
}

/** One ROM of cases, and what Bochs printed of it. */
export interface SystemRun {
  readonly bits: 32 | 64;
  readonly cases: readonly SystemCase[];
  readonly rom: Uint8Array;
  readonly theirs: readonly Outcome[];
}

export async function bochsRuns(bochs: string, form: "short" | "long"): Promise<SystemRun[]> {
  const runs: SystemRun[] = [];
  for (const bits of [32, 64] as const)
    for (const cases of systemCases(bits, form)) {
      const rom = systemGuest(bits, cases);
      runs.push({ bits, cases, rom, theirs: readTranscript(await runBochs(bochs, rom), bits, cases) });
    }
  return runs;
}

/** Where a place is not as Bochs. */
export async function differencesOf(runs: readonly SystemRun[], place: Place): Promise<Difference[]> {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-system-"));
  const { vendor, module, engine } = place;
  const host = await createHost({ directory: import.meta.dirname, vendor, ...(engine && { engine }) });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    const differences: Difference[] = [];
    for (const [i, { bits, cases, rom, theirs }] of runs.entries()) {
      const image = join(folder, `${i}.rom`);
      writeFileSync(image, rom);
      const guest = await RunningGuest.start(host, ["--kernel", image, "--format", "firmware", "--memory", "8M"]);
      await guest.until("the end of its console", () => guest.transcript.includes("@end\n"));
      differences.push(...compareOutcomes(cases, theirs, readTranscript(guest.transcript, bits, cases), vendor));
    }
    return differences;
  } finally {
    await host.close();
    rmSync(folder, { recursive: true, force: true });
  }
}
