/** The npm registry, through npm's own client: what is fetched is checked against the integrity that the registry states. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import pacote from "pacote";
import getAuthToken from "registry-auth-token";
import registryUrl from "registry-url";
import { GateError, messageOf } from "../errors.ts";

/** Metadata of one published version. */
export interface PublishedVersion {
  readonly name: string;
  readonly version: string;
  readonly manifest: Record<string, unknown>;
}

export class Registry {
  readonly url: string;
  readonly #cache = mkdtempSync(join(tmpdir(), "mkvm-abi-cache-"));

  /** `url`, or what the user's npm configuration says for `scope`. */
  constructor(url: string | undefined, scope = "@mkvm") {
    this.url = url ?? process.env.npm_config_registry ?? registryUrl(scope);
    try {
      new URL(this.url);
    } catch {
      throw new GateError(`'${this.url}' is no registry: give a URL such as http://localhost:4873/`);
    }
  }

  /** Versions of a package, oldest first; none when the registry does not know it. */
  async versions(name: string): Promise<PublishedVersion[]> {
    try {
      const packument = await pacote.packument(name, { ...this.#options(), fullMetadata: true });
      return Object.entries(packument.versions).map(([version, manifest]) => ({
        name,
        version,
        manifest: manifest as unknown as Record<string, unknown>,
      }));
    } catch (thrown) {
      if ((thrown as { code?: string }).code === "E404") return [];
      throw this.#explained(thrown, name);
    }
  }

  /** Unpacks `name@version` into `directory`, which it makes. */
  async unpack(name: string, version: string, directory: string): Promise<void> {
    try {
      await pacote.extract(`${name}@${version}`, directory, this.#options());
    } catch (thrown) {
      rmSync(directory, { recursive: true, force: true });
      throw this.#explained(thrown, `${name}@${version}`);
    }
  }

  close(): void {
    rmSync(this.#cache, { recursive: true, force: true });
  }

  #options() {
    const token = getAuthToken(this.url)?.token;
    return {
      registry: this.url,
      cache: this.#cache,
      preferOnline: true,
      fetchRetries: 1,
      fetchRetryMintimeout: 100,
      // The library multiplies and bounds by these, and has no defaults for them
      fetchRetryMaxtimeout: 1000,
      fetchRetryFactor: 2,
      ...(token === undefined ? {} : { "//token": token, forceAuth: { token } }),
    };
  }

  #explained(thrown: unknown, what: string): GateError {
    const { code } = thrown as { code?: string };
    if (code === "E404" || code === "ETARGET")
      return new GateError(
        `registry ${this.url} has no ${what}: 'npm view ${what.replace(/(?<=.)@[^@]*$/, "")} versions' lists what there is`,
      );
    if (code === "EINTEGRITY")
      return new GateError(
        `the tarball of ${what} from ${this.url} is not the one that was published (integrity mismatch): nothing of it was used`,
      );
    if (code === "E401" || code === "E403")
      return new GateError(`registry ${this.url} refuses to give ${what}: log in with 'npm login'`);
    return new GateError(`registry ${this.url} cannot be asked for ${what}: ${messageOf(thrown)}`);
  }
}

/** Text of the files below `directory` whose name `wanted` takes, by path with "/". */
export function textFiles(directory: string, wanted: (path: string) => boolean): Map<string, string> {
  const files = new Map<string, string>();
  const visit = (folder: string): void => {
    for (const name of readdirSync(folder).sort()) {
      const path = join(folder, name);
      const short = relative(directory, path).replaceAll("\\", "/");
      if (statSync(path).isDirectory()) visit(path);
      else if (wanted(short)) files.set(short, readFileSync(path, "utf8"));
    }
  };
  visit(directory);
  return files;
}
