/** docs/reference/commands.md: every command of `mkvm`, as its own help says it. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";

const cli = join(import.meta.dirname, "..", "..", "packages", "host", "dist", "cli.js");

function help(words: readonly string[]): string {
  // Help is as wide as the terminal; here it has always the same width
  const env = { ...process.env, COLUMNS: "110", NO_COLOR: "1" };
  return execFileSync(process.execPath, [cli, ...words, "--help"], { encoding: "utf8", env }).trimEnd();
}

/** Names under "Commands:" in a help text. */
function subcommands(text: string): string[] {
  const [, listing = ""] = text.split(/^Commands:\n/m);
  const lines = listing.split("\n\n", 1)[0]!.split("\n");
  return lines.flatMap((line) => /^ {2}([a-z][a-z-]*)/.exec(line)?.[1] ?? []).filter((name) => name !== "help");
}

function* commands(words: readonly string[]): Generator<string> {
  const text = help(words);
  yield `${"#".repeat(Math.min(words.length + 2, 4))} \`${["mkvm", ...words].join(" ")}\`\n\n\`\`\`text\n${text}\n\`\`\`\n`;
  for (const name of subcommands(text)) yield* commands([...words, name]);
}

export function commandsReference(): string {
  return [...commands([])].join("\n");
}
