/**
 * The reference under docs/reference, generated from the code. Without arguments compares with what is committed and fails when it
 * differs; with --update writes it.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { abiReference } from "./reference/abi.ts";
import { commandsReference } from "./reference/commands.ts";
import { parametersReference } from "./reference/parameters.ts";
import { stateReference } from "./reference/state.ts";

const folder = resolve(import.meta.dirname, "..", "docs", "reference");
const note = "Generated from the code by `pnpm reference`; the tests compare it.";

const pages: Readonly<Record<string, [title: string, text: string]>> = {
  "commands.md": ["Commands", commandsReference()],
  "parameters.md": ["Module parameters", await parametersReference()],
  "abi.md": ["ABI", abiReference()],
  "state.md": ["State that moves", stateReference()],
};

const update = process.argv.includes("--update");
mkdirSync(folder, { recursive: true });
for (const [name, [title, text]] of Object.entries(pages)) {
  const path = join(folder, name);
  const page = `# ${title}\n\n${note}\n\n${text}`;
  if (update) writeFileSync(path, page);
  else {
    let committed = "";
    try {
      committed = readFileSync(path, "utf8");
    } catch {
      // Reported as a difference
    }
    if (committed !== page) {
      console.log(`docs/reference/${name} is not what the code says: run 'pnpm reference' and look at the difference`);
      process.exitCode = 1;
    }
  }
}
