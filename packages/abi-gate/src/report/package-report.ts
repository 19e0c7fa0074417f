/** The report of one built package. */
import { statSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { GateError, messageOf } from "../errors.ts";
import { builtFile, readBuilt, type WorkspacePackage } from "../workspace.ts";
import { binarySurfaceOf } from "./binary-surface.ts";
import { typeApiOf } from "./declarations.ts";
import { type PackageReport, SCHEMA_NAME, SCHEMA_VERSION } from "./schema.ts";

/** Packages whose bytes and numbers are compiled into programs that are built apart from them. */
const binaryPackages = ["@mkvm/kvm-abi", "@mkvm/vac"];

/** Reads the built declarations; of packages with a binary surface it also imports the built code. */
export async function packageReport(item: WorkspacePackage): Promise<PackageReport> {
  const api = typeApiOf(item.name, readBuilt(item, "types"));
  const head = { schema: SCHEMA_NAME, schemaVersion: SCHEMA_VERSION, package: item.name, api } as const;
  if (!binaryPackages.includes(item.name)) return head;
  const url = pathToFileURL(builtFile(item, "import"));
  url.searchParams.set("changed", String(Math.trunc(statSync(url).mtimeMs)));
  let exports: Record<string, unknown>;
  try {
    exports = await import(url.href);
  } catch (thrown) {
    throw new GateError(`${item.name} cannot be imported, so its layouts cannot be read: ${messageOf(thrown)}`);
  }
  return { ...head, binary: binarySurfaceOf(exports) };
}
