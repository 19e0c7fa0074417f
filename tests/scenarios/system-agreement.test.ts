/**
 * System level: thousands of cases of paging, segmentation, gates, task switches, debug traps, exceptions and virtual-8086 mode have the
 * same outcome under mkvm as under Bochs. The whole of it: pnpm verify:hw.
 */
import { describeDifference, findBochs, missingDifferences } from "@mkvm/testkit";
import { beforeAll, describe, expect, test } from "vitest";
import { bochsRuns, differencesOf, type Place, type SystemRun } from "./system-agreement.ts";

const bochs = await findBochs(console.log);
const places: Place[] = [
  { vendor: "intel", module: "@mkvm/kvm-v1" },
  { vendor: "amd", module: "@mkvm/kvm-v2" },
];

describe.skipIf(bochs === undefined)(
  `system level, beside Bochs${bochs === undefined ? " (skipped: package bochs is not installed)" : ""}`,
  () => {
    let runs: SystemRun[];
    beforeAll(async () => {
      runs = await bochsRuns(bochs!, "short");
    }, 120_000);

    test.for(places)("$module on $vendor", { timeout: 120_000 }, async (place) => {
      const differences = await differencesOf(runs, place);
      expect(differences.filter(({ known }) => known === undefined).map(describeDifference)).toEqual([]);
      expect(
        missingDifferences(
          runs.flatMap(({ cases }) => cases),
          differences,
        ),
      ).toEqual([]);
    });
  },
);
