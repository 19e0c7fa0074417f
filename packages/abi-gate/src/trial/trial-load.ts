/** Loads a published module into a scratch host that runs today's ABI, starts a small VM on it, and unloads it. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { messageOf } from "../errors.ts";

export interface TrialResult {
  readonly works: boolean;
  /** "loads, runs a VM, unloads", or the step that failed and why. */
  readonly detail: string;
}

const PATIENCE_MS = 120_000;

/**
 * `directory`: the module's unpacked package, which is copied and not touched. What it says it requires is set aside: whether its
 * range takes the new version is another question, and is asked apart.
 */
export async function trialLoad(directory: string): Promise<TrialResult> {
  const scratch = mkdtempSync(join(tmpdir(), "mkvm-abi-trial-"));
  try {
    const copy = join(scratch, "module");
    cpSync(directory, copy, { recursive: true, filter: (path) => !path.endsWith("node_modules") });
    const file = join(copy, "package.json");
    const manifest = JSON.parse(readFileSync(file, "utf8"));
    manifest.mkvm.requires = { "@mkvm/kvm-abi": "*" };
    writeFileSync(file, JSON.stringify(manifest));
    return await loadAndRun(copy, smokeProgram(scratch));
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

async function loadAndRun(module: string, program: string): Promise<TrialResult> {
  let step = "a scratch host";
  const host = await createHost({ directory: module });
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  const trial = async (): Promise<TrialResult> => {
    step = "insmod";
    const { name } = await host.insmod(module);
    step = "a small VM";
    await host.ln(`/dev/${name}`, "/dev/kvm");
    const running = await host.run({ program, args: [] });
    const decoder = new TextDecoder();
    let said = "";
    for await (const chunk of running.output) said += decoder.decode(chunk, { stream: true });
    const exit = await running.exited;
    if (exit.status !== 0)
      return { works: false, detail: `a small VM fails: ${(exit.message ?? said.trim()) || `status ${exit.status}`}` };
    step = "rmmod";
    await host.rmmod(name);
    return { works: true, detail: "loads, runs a VM, unloads" };
  };
  try {
    return await Promise.race([trial(), patience]);
  } catch (thrown) {
    return { works: false, detail: `${step} fails: ${messageOf(thrown)}` };
  } finally {
    clearTimeout(timer);
    await host.close();
  }
}

/** A package around the program that is built beside this file. */
function smokeProgram(scratch: string): string {
  const folder = join(scratch, "smoke-program");
  mkdirSync(folder);
  const program = new URL(import.meta.url.endsWith(".ts") ? "./smoke-program.ts" : "./smoke-program.js", import.meta.url);
  writeFileSync(join(folder, "index.js"), `export { main } from ${JSON.stringify(program.href)};\n`);
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({ name: "mkvm-abi-smoke", version: "0.0.0", type: "module", exports: "./index.js" }),
  );
  return folder;
}
