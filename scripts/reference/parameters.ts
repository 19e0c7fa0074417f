/** docs/reference/parameters.md: parameters of each module of this workspace, as the module describes them. */
import { createHost } from "@mkvm/host";
import { readWorkspacePackages } from "../workspace-packages.ts";
import { table } from "./markdown.ts";

export async function parametersReference(): Promise<string> {
  const host = await createHost();
  try {
    const parts: string[] = [];
    for (const [name, { manifest }] of readWorkspacePackages()) {
      if (manifest.private || manifest.mkvm === undefined) continue;
      const info = await host.modinfo(name);
      const rows = Object.entries(info.parameters).map(([parameter, spec]) => [
        `\`${parameter}\``,
        spec.type,
        spec.type === "int" ? `${spec.minimum} to ${spec.maximum}` : "",
        `\`${spec.default}\``,
        spec.description,
      ]);
      parts.push(`## ${name}\n\n${info.description}\n\n${table(["parameter", "type", "range", "default", "meaning"], rows)}`);
    }
    return parts.join("\n");
  } finally {
    await host.close();
  }
}
