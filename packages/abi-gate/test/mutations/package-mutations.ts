/** Changes of package.json, with the class and the rule that they must get. */
import type { ChangeClass, Manifest } from "../../src/index.ts";
import type { RuleId } from "../../src/rules/rule-table.ts";

export interface PackageMutation {
  readonly name: string;
  readonly package: string;
  /** What both sides have, where the package has none of it. */
  readonly given?: (manifest: Manifest) => void;
  readonly change: (manifest: Manifest) => void;
  readonly class: ChangeClass | undefined;
  readonly rule: RuleId | undefined;
}

const host = "@mkvm/host";
const v2 = "@mkvm/kvm-v2";
const peer = (range: string) => (manifest: Manifest) => {
  manifest.peerDependencies = { "@mkvm/peer": range };
};
const requires = (range: string) => (manifest: Manifest) => {
  manifest.mkvm = { id: "2", requires: { "@mkvm/kvm-abi": range } };
};

export const packageMutations: readonly PackageMutation[] = [
  {
    name: "fewer versions of Node.js",
    package: host,
    change: (m) => {
      m.engines = { node: ">=24" };
    },
    class: "major",
    rule: "engines-narrowed",
  },
  {
    name: "more versions of Node.js",
    package: host,
    change: (m) => {
      m.engines = { node: ">=20" };
    },
    class: "minor",
    rule: "engines-widened",
  },
  {
    name: "versions of Node.js for the first time",
    package: v2,
    given: (m) => {
      delete m.engines;
    },
    change: (m) => {
      m.engines = { node: ">=22" };
    },
    class: "major",
    rule: "engines-narrowed",
  },
  {
    name: "a path of exports is gone",
    package: host,
    change: (m) => {
      delete (m.exports as Record<string, unknown>)["./package.json"];
    },
    class: "major",
    rule: "entry-removed",
  },
  {
    name: "a path of exports is new",
    package: host,
    change: (m) => {
      (m.exports as Record<string, unknown>)["./testing"] = "./dist/testing.js";
    },
    class: "minor",
    rule: "entry-added",
  },
  {
    name: "a condition of exports is gone",
    package: host,
    change: (m) => {
      delete (m.exports as Record<string, Record<string, unknown>>)["."]!.types;
    },
    class: "major",
    rule: "entry-removed",
  },
  {
    name: "exports lead to another file",
    package: host,
    change: (m) => {
      (m.exports as Record<string, Record<string, unknown>>)["."]!.import = "./dist/main.js";
    },
    class: undefined,
    rule: undefined,
  },
  {
    name: "a command is gone",
    package: host,
    change: (m) => {
      delete m.bin;
    },
    class: "major",
    rule: "command-removed",
  },
  {
    name: "a command is new",
    package: v2,
    change: (m) => {
      m.bin = { kvm: "./dist/kvm.js" };
    },
    class: "minor",
    rule: "command-added",
  },
  {
    name: "another kind of module",
    package: host,
    change: (m) => {
      delete m.type;
    },
    class: "major",
    rule: "module-format-changed",
  },
  {
    name: "a peer takes fewer versions",
    package: host,
    given: peer("^1.0.0"),
    change: peer("^1.4.0"),
    class: "major",
    rule: "peer-narrowed",
  },
  {
    name: "a peer takes more versions",
    package: host,
    given: peer("^1.0.0"),
    change: peer("^1.0.0 || ^2.0.0"),
    class: "minor",
    rule: "peer-widened",
  },
  { name: "a peer is new", package: v2, change: peer("^1.0.0"), class: "major", rule: "peer-narrowed" },
  {
    name: "an optional peer is new",
    package: v2,
    change: (m) => {
      peer("^1.0.0")(m);
      m.peerDependenciesMeta = { "@mkvm/peer": { optional: true } };
    },
    class: "minor",
    rule: "peer-widened",
  },
  {
    name: "a module requires a later ABI",
    package: v2,
    given: requires("^1.0.0"),
    change: requires("^1.2.0"),
    class: "major",
    rule: "requirement-narrowed",
  },
  {
    name: "a module takes another major ABI too",
    package: v2,
    given: requires("^1.0.0"),
    change: requires("^1.0.0 || ^2.0.0"),
    class: "minor",
    rule: "requirement-widened",
  },
  {
    name: "a module has another id",
    package: v2,
    change: (m) => {
      m.mkvm = { ...m.mkvm, id: "two" };
    },
    class: "major",
    rule: "module-id-changed",
  },
  {
    name: "a dependency has another range",
    package: host,
    change: (m) => {
      m.dependencies = { ...m.dependencies, semver: "^7.9.0" };
    },
    class: "patch",
    rule: "dependency-changed",
  },
  {
    name: "the description changes",
    package: host,
    change: (m) => {
      (m as Record<string, unknown>).description = "another";
    },
    class: undefined,
    rule: undefined,
  },
];
