/** A package registry on loopback: our packages live in it alone, everything else comes from the registry that npm is set to. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runServer } from "verdaccio";
import { succeed } from "./commands.ts";

export interface LoopbackRegistry {
  readonly url: string;
  /** Folder of what it has. */
  readonly storage: string;
  /** Environment for npm, pnpm and mkvm: they use this registry and may publish to it. */
  readonly env: NodeJS.ProcessEnv;
  /** Flips a byte in the middle of a stored tarball. */
  tamper(name: string, version: string): void;
  close(): Promise<void>;
}

/** `from`: the storage of another, of which it has a copy. */
export async function startLoopbackRegistry(from?: string): Promise<LoopbackRegistry> {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-registry-"));
  const storage = join(folder, "storage");
  if (from !== undefined) cpSync(from, storage, { recursive: true });
  const upstream = (await succeed("npm", ["config", "get", "registry"], { cwd: folder })).trim().split("\n").at(-1) as string;
  const everyone = { access: "$all", publish: "$all", unpublish: "$all" };
  const server = (await runServer({
    self_path: join(folder, "config.yaml"),
    storage,
    uplinks: { upstream: { url: upstream, timeout: "60s", max_fails: 100, cache: true } },
    packages: { "@mkvm/*": everyone, "**": { ...everyone, proxy: "upstream" } },
    log: { type: "stdout", format: "pretty", level: "fatal" },
    max_body_size: "100mb",
    web: { enable: false },
  } as unknown as Parameters<typeof runServer>[0])) as Server;
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const url = `http://${host}/`;
  // Everyone may publish, but npm asks for a token before it tries
  const settings = join(folder, "npmrc");
  writeFileSync(settings, `registry=${url}\n//${host}/:_authToken=anyone\n`);
  return {
    url,
    storage,
    env: { ...process.env, npm_config_registry: url, npm_config_userconfig: settings, NPM_CONFIG_USERCONFIG: settings },
    tamper: (name, version) => {
      const path = join(storage, name, `${name.split("/").at(-1)}-${version}.tgz`);
      const bytes = readFileSync(path);
      const middle = bytes.length >> 1;
      bytes.writeUInt8(bytes.readUInt8(middle) ^ 0xff, middle);
      writeFileSync(path, bytes);
    },
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
