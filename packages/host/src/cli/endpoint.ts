/** Where the daemon of this user listens. */
import { lstatSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HostError } from "../errors.ts";

export interface Endpoint {
  directory: string;
  socket: string;
  log: string;
  /** State of the rollout, which outlives the daemon. */
  rollout: string;
}

/** Longest path that a Unix socket's address takes on all systems. */
const longestSocketPath = 103;

/**
 * The endpoint under MKVM_STATE_DIR, XDG_RUNTIME_DIR or the folder for temporary files; its folder is made when missing.
 * @throws HostError when the folder is somebody else's or its path too long
 */
export function findEndpoint(environment: NodeJS.ProcessEnv = process.env): Endpoint {
  const uid = process.getuid?.() ?? 0;
  const directory =
    environment.MKVM_STATE_DIR ||
    (environment.XDG_RUNTIME_DIR ? join(environment.XDG_RUNTIME_DIR, "mkvm") : join(tmpdir(), `mkvm-${uid}`));
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  } catch {
    throw new HostError("EACCES", `the state folder ${directory} cannot be made: set MKVM_STATE_DIR to a folder of yours`);
  }
  const found = lstatSync(directory);
  if (!found.isDirectory() || (process.getuid && found.uid !== uid)) {
    throw new HostError(
      "EACCES",
      `the state folder ${directory} belongs to somebody else: set MKVM_STATE_DIR to a folder of yours`,
    );
  }
  const socket =
    process.platform === "win32"
      ? `\\\\.\\pipe\\mkvm-${directory.replace(/[^a-z0-9]/gi, "-")}`
      : join(directory, "daemon.sock");
  if (process.platform !== "win32" && socket.length > longestSocketPath) {
    throw new HostError("EINVAL", `the socket path ${socket} is too long: set MKVM_STATE_DIR to a shorter folder`);
  }
  return { directory, socket, log: join(directory, "daemon.log"), rollout: join(directory, "rollout.json") };
}
