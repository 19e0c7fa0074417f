/** The `mkvm` command from the clone: the built one, in the folder that the user stands in rather than the workspace's. */
import { join } from "node:path";

const cli = join(import.meta.dirname, "..", "packages", "host", "dist", "cli.js");
if (process.env.INIT_CWD) process.chdir(process.env.INIT_CWD);
process.argv[1] = cli;
await import(cli);
