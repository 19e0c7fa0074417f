/** Commands of a document: what stands in its blocks marked `sh`, in order. */
import { readFileSync } from "node:fs";

export interface DocumentCommand {
  readonly line: number;
  readonly command: string;
}

/** The folder of this repository in whose copy a document's commands are run: `<!-- in: FOLDER -->`; else an empty one. */
export function documentFolder(path: string): string | undefined {
  return /^<!-- in: (\S+) -->$/m.exec(readFileSync(path, "utf8"))?.[1];
}

export function documentCommands(path: string): DocumentCommand[] {
  const found: DocumentCommand[] = [];
  let within = false;
  let pending = "";
  readFileSync(path, "utf8")
    .split("\n")
    .forEach((text, index) => {
      if (text.startsWith("```")) within = !within && text === "```sh";
      else if (within && text.trim() !== "" && !text.startsWith("#")) {
        pending += text;
        if (pending.endsWith("\\")) pending = pending.slice(0, -1);
        else {
          found.push({ line: index + 1, command: pending });
          pending = "";
        }
      }
    });
  return found;
}
