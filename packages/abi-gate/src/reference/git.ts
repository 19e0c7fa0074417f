/** git, as a command. Nothing here changes the repository. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { GateError } from "../errors.ts";

const run = promisify(execFile);
const MAX_OUTPUT_BYTES = 256 << 20;

/** Standard output of a git command in `root`; a GateError when git is missing or this is no repository; otherwise what git says. */
export async function git(root: string, ...words: string[]): Promise<string> {
  return (await gitBytes(root, ...words)).toString("utf8");
}

export async function gitBytes(root: string, ...words: string[]): Promise<Buffer> {
  try {
    const { stdout } = await run("git", words, { cwd: root, encoding: "buffer", maxBuffer: MAX_OUTPUT_BYTES });
    return stdout;
  } catch (thrown) {
    const failed = thrown as NodeJS.ErrnoException & { stderr?: Buffer };
    if (failed.code === "ENOENT") throw new GateError("git is not installed, or the folder is gone: a git ref cannot be read");
    const said = failed.stderr?.toString("utf8").trim() ?? String(thrown);
    if (/not a git repository/i.test(said))
      throw new GateError(`${root} is no git repository: give a published version, or run this in a clone`);
    throw new GateError(`git ${words[0]} failed: ${said.split("\n")[0]}`);
  }
}

/** The commit of `ref`; GateError when there is none. */
export async function commitOf(root: string, ref: string): Promise<string> {
  await git(root, "rev-parse", "--git-dir");
  try {
    return (await git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", `${ref}^{commit}`)).trim();
  } catch {
    throw new GateError(
      `'${ref}' is neither a version nor a git ref of this repository: give one such as 1.2.0, @mkvm/vac@1.2.0, main or HEAD~3`,
    );
  }
}
