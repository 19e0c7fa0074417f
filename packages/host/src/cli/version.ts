import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { hostDirectory } from "../loader/package-files.ts";

/** The version of this package. */
export function hostVersion(): string {
  for (let directory = hostDirectory; ; directory = dirname(directory)) {
    try {
      const json: { name?: string; version: string } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));
      if (json.name === "@mkvm/host") return json.version;
    } catch {
      // not here: look above
    }
    if (dirname(directory) === directory) return "unknown";
  }
}
