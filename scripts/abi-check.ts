/**
 * What CI runs before a release: `mkvm abi check` against the last release's tags, or against what the arguments say. Nothing was
 * released before the first tag; that passes only because it is allowed here by name.
 */
import { runCommandLine } from "@mkvm/abi-gate";

const given = process.argv.slice(2);
const words = given.some((word) => word.startsWith("--against"))
  ? given
  : ["--against", "last-release", "--allow-no-release", ...given];
process.exitCode = await runCommandLine(["check", ...words]);
