import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const packages = join(import.meta.dirname, "..", "packages");

/** Which of our packages each may import; "type" where only types, which leave nothing behind at run time. */
const rules: Record<string, Record<string, "value" | "type">> = {
  "kvm-abi": {},
  "hw-x86": {},
  vac: { "hw-x86": "type", "kvm-abi": "value" },
  "kvm-core": { "kvm-abi": "value", "hw-x86": "type", vac: "type" },
  "kvm-v1": { "kvm-core": "value", "kvm-abi": "value", vac: "type", "hw-x86": "type" },
  "kvm-v2": { "kvm-core": "value", "kvm-abi": "value", vac: "type", "hw-x86": "type" },
  host: { "kvm-abi": "value", vac: "value", "hw-x86": "value" },
  vmm: { "kvm-abi": "value" },
  "abi-gate": { "kvm-abi": "value", host: "value" },
  ab: { "kvm-abi": "value", host: "value", vmm: "value" },
};
const browserPackages = ["kvm-abi", "hw-x86", "vac", "kvm-core", "kvm-v1", "kvm-v2"];

function sources(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? sources(path) : path.endsWith(".ts") ? [path] : [];
  });
}

/** Import and re-export statements: what they name, and whether all of it is types. */
function imports(path: string): { from: string; isType: boolean }[] {
  const text = readFileSync(path, "utf8");
  const found: { from: string; isType: boolean }[] = [];
  for (const match of text.matchAll(/^(?:import|export)\s+(type\s+)?(?:([^;'"]*?)\sfrom\s+)?["']([^"']+)["']/gm)) {
    const names = /\{([^}]*)\}/.exec(match[2] ?? "")?.[1];
    const allTypes = names
      ?.split(",")
      .filter((name) => name.trim())
      .every((name) => name.trim().startsWith("type "));
    found.push({ from: match[3], isType: Boolean(match[1]) || allTypes === true });
  }
  for (const match of text.matchAll(/\bimport\(\s*["']([^"']+)["']\s*\)/g)) found.push({ from: match[1], isType: false });
  return found;
}

test.each(Object.keys(rules))("%s imports only what the design allows", (name) => {
  const broken: string[] = [];
  for (const path of sources(join(packages, name, "src"))) {
    for (const { from, isType } of imports(path)) {
      const where = `${path.slice(packages.length + 1)} imports ${from}`;
      const ours = /^@mkvm\/([^/]+)(\/.*)?$/.exec(from);
      if (ours?.[2]) broken.push(`${where}: deeper than its exports`);
      else if (ours && !rules[name][ours[1]]) broken.push(where);
      else if (ours && rules[name][ours[1]] === "type" && !isType) broken.push(`${where}: types only`);
      if (from.startsWith("node:") && browserPackages.includes(name)) broken.push(`${where}: runs in a browser`);
      if (from.startsWith("../") && !join(path, "..", from).startsWith(join(packages, name)))
        broken.push(`${where}: leaves its package`);
    }
  }
  expect(broken).toEqual([]);
});

test("the rules name every published package", () => {
  const published = readdirSync(packages).filter((name) => name !== "testkit");
  expect(Object.keys(rules).sort()).toEqual(published.sort());
});
