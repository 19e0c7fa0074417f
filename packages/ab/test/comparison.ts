/** What the tests of runs share: small guests, arms, and the command in this process. */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { vi } from "vitest";
import { runCommandLine } from "../src/cli/main.ts";
import type { PlanInput } from "../src/plan/schema.ts";
import { busyGuest } from "./guests/busy-guest.ts";

export const folder = mkdtempSync(join(tmpdir(), "mkvm-ab-test-"));
/** Where @mkvm/kvm-v1 and -v2 are found from. */
export const directory = join(import.meta.dirname, "..");
export const slowKvm = join(import.meta.dirname, "fixtures", "slow-kvm");

export function image(name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

export const busy = image("busy.bin", busyGuest(200, 500));

export function planOf(over: Partial<PlanInput> = {}): PlanInput {
  return {
    arms: { a: { module: "@mkvm/kvm-v1" }, b: { module: "@mkvm/kvm-v2" } },
    workload: { kind: "image", kernel: busy, format: "flat32", memory: "16M", start: "<", end: ">" },
    clock: "icount",
    rounds: 2,
    warmUp: 0,
    seed: 1,
    ...over,
  };
}

/** Runs `mkvm ab` here, and gives what it printed. */
export async function mkvmAb(...words: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  let stdout = "";
  let stderr = "";
  const log = vi.spyOn(console, "log").mockImplementation((line: string) => {
    stdout += `${line}\n`;
  });
  const out = vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    stdout += text;
    return true;
  });
  const error = vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    stderr += text;
    return true;
  });
  try {
    const status = await runCommandLine(words);
    return { status, stdout, stderr };
  } finally {
    for (const spy of [log, out, error]) spy.mockRestore();
  }
}
