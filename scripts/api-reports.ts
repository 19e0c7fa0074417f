/**
 * The reports of each published package, in its `etc/`: what it exports, to review, and what it promises, to compare. Without arguments
 * compares with what is committed and fails when they differ; with --update writes them. The same as `mkvm abi report`.
 */
import { runCommandLine } from "@mkvm/abi-gate";

const update = process.argv.includes("--update");
process.exitCode = await runCommandLine(update ? ["report"] : ["report", "--check"]);
