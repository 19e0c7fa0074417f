/** The long form of system-agreement.test.ts: every case, on both KVM versions and machines of both vendors. Part of `pnpm verify:hw`. */
import { describeDifference, findBochs } from "@mkvm/testkit";
import { bochsRuns, differencesOf } from "../tests/scenarios/system-agreement.ts";

const SHOWN = 40;
const bochs = await findBochs(console.log);
if (bochs === undefined) {
  console.log("system level: not compared, for want of Bochs");
  process.exit(0);
}
const runs = await bochsRuns(bochs, "long");
console.log(`system level: ${runs.reduce((sum, { cases }) => sum + cases.length, 0)} cases under Bochs`);
for (const vendor of ["intel", "amd"] as const)
  for (const module of ["@mkvm/kvm-v1", "@mkvm/kvm-v2"] as const) {
    const differences = await differencesOf(runs, { vendor, module });
    const unknown = differences.filter(({ known }) => known === undefined);
    console.log(`${module} on ${vendor}: ${unknown.length} differences, ${differences.length - unknown.length} known ones`);
    for (const difference of unknown.slice(0, SHOWN)) console.log(`  ${describeDifference(difference)}`);
    if (unknown.length > 0) process.exitCode = 1;
  }
