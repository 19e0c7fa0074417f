import { defineConfig } from "vitest/config";

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

export default defineConfig({
  test: {
    testTimeout: 400_000,
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
