/**
 * Builds all packages, and sees that a move forgets nothing (scripts/state-check.ts): from turbo's cache where nothing changed. Says
 * something only when it takes long or fails.
 */
import { spawn } from "node:child_process";
import { join } from "node:path";

const PATIENCE_MS = 3000;
const turbo = join(import.meta.dirname, "..", "node_modules", "turbo", "bin", "turbo");
const child = spawn(process.execPath, [turbo, "run", "build", "state", "--output-logs=errors-only"], {
  stdio: ["ignore", "pipe", "pipe"],
});
let said = "";
for (const stream of [child.stdout, child.stderr]) {
  stream.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
}
const notice = setTimeout(() => console.error("building the packages, once"), PATIENCE_MS);
child.on("close", (code) => {
  clearTimeout(notice);
  if (code !== 0) console.error(said);
  process.exitCode = code ?? 1;
});
