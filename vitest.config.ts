import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

const suites = ["packages/*/test/**/*.test.ts", "tests/**/*.test.ts"];

/** Suites that run guest code: once more with everything translated at first sight, and on the interpreter alone. */
const engineSuites = [
  "packages/hw-x86/test/{engine,events,float-faults,paging,region-places,silicon,system-instructions,translation-contexts,vendor-behaviour,xsave,access-prevention,debug-registers,debug-exits,alignment,root-stores,task-switch,protection-keys,virtual-8086,protected-transfers,fast-calls,interrupt-gates,five-level-paging,process-contexts}.test.ts",
  "packages/hw-x86/test/{apic-accesses,virtual-interrupts,vmx-banks,vmx-guests,vmx-wide-addresses,svm-guests,svm-intercepts}.test.ts",
  "packages/hw-x86/test/{performance-counters,pebs,amd-counters,nmi,pci}.test.ts",
  "tests/contract/*.test.ts",
];
/** On the interpreter alone there is nothing new in this: cases that run once are interpreted when hot code is translated too. */
const interpretedAnyway = ["packages/hw-x86/test/silicon.test.ts"];

/** Files that take longest, on a machine of two CPUs: a run that comes to them last has nothing to do beside them. */
const longest = [
  "tests/registry/documents-run.test.ts",
  "tests/registry/abi-check.test.ts",
  "tests/registry/examples.test.ts",
  "tests/scenarios/ab-findings.test.ts",
  "packages/host/test/cli.test.ts",
  "tests/registry/staging.test.ts",
  "packages/ab/test/run.test.ts",
  "tests/scenarios/icount-moves.test.ts",
];

/** As vitest sorts them, but for the longest. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = longest.findIndex((path) => moduleId.endsWith(path));
      return at < 0 ? longest.length : at;
    };
    return (await super.sort(files)).sort((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  test: {
    testTimeout: 400_000,
    // vitest would leave one CPU to itself, which is half of a machine that has two
    maxWorkers: "100%",
    globalSetup: "tests/run-folder.ts",
    sequence: { sequencer: LongestFirst },
    projects: [
      { extends: true, test: { name: "hot", include: suites, env: { MKVM_ENGINE: process.env.MKVM_ENGINE ?? "hot" } } },
      {
        extends: true,
        test: { name: "always", include: engineSuites, env: { MKVM_ENGINE: "always", MKVM_SILICON_CASES: "1000" } },
      },
      { extends: true, test: { name: "off", include: engineSuites, exclude: interpretedAnyway, env: { MKVM_ENGINE: "off" } } },
    ],
  },
});
