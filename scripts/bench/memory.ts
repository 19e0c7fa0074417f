/**
 * What VMs take beside the RAM that their guests have touched. Resident memory belongs to a process, so the measurement runs in one
 * of its own: this file is its program, too.
 */
import { execFile } from "node:child_process";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { promisify } from "node:util";
import { createHost } from "@mkvm/host";
import { createLogicalCpu, createMachine } from "@mkvm/hw-x86";
import { startIdleLinux } from "./idle.ts";

const GUEST_MIB = 256;
const MIB = 1 << 20;
const PAGE = 4096;
const HUGE_PAGE = 2 * MIB;
/** After its shell has asked for input a guest still works, and so does the engine's compiler. */
const SETTLE_MS = 5000;
const FREED_MS = 1000;

/** Resident MiB that each of `vms` idle Linux guests with the same kernel adds, less its touched RAM; the first includes what all share. */
export async function vmMemory(module: string, vms: number): Promise<number[]> {
  const words = [...process.execArgv, "--expose-gc", import.meta.filename, module, String(vms)];
  const { stdout } = await promisify(execFile)(process.execPath, words);
  return JSON.parse(stdout);
}

/**
 * This thread is the VMM's user, whose buffers of the kernel image are its own affair; CPU threads collect when they like. What a
 * collection frees outside of the heap goes back to the system in the background.
 */
async function residentMib(): Promise<number> {
  globalThis.gc?.();
  await pause(FREED_MS);
  return Number(/^Rss:\s+(\d+) kB/m.exec(readFileSync("/proc/self/smaps_rollup", "utf8"))?.[1]) / 1024;
}

/** MiB of guest RAM that is resident, over all banks. */
function touchedMib(ramOffset: number): number {
  const pagemap = openSync("/proc/self/pagemap", "r");
  let pages = 0;
  for (const line of readFileSync("/proc/self/maps", "utf8").split("\n")) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) rw-p/.exec(line);
    if (!range) continue;
    const [start, end] = [Number.parseInt(range[1], 16), Number.parseInt(range[2], 16)];
    // Nothing else of this process maps as much at once
    if (end - start < GUEST_MIB * MIB) continue;
    const entries = new BigUint64Array((GUEST_MIB * MIB) / PAGE);
    readSync(pagemap, entries, 0, entries.byteLength, ((start + ramOffset) / PAGE) * 8);
    for (const entry of entries) if (entry >> 63n !== 0n) pages++;
  }
  closeSync(pagemap);
  return (pages * PAGE) / MIB;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function main(module: string, vms: number): Promise<void> {
  // RAM is the first large thing that the VMM maps: at the first 2 MiB boundary behind what the CPU keeps of a bank
  const { firstFreeOffset } = createLogicalCpu(createMachine(), 0, () => undefined).memory.createBank(1, 64 * MIB);
  const ramOffset = Math.ceil((firstFreeOffset + PAGE) / HUGE_PAGE) * HUGE_PAGE;
  const host = await createHost({ directory: process.cwd() });
  const { name } = await host.insmod(module);
  await host.ln(`/dev/${name}`, "/dev/kvm");
  await pause(SETTLE_MS);
  const added: number[] = [];
  let before = await residentMib();
  for (let vm = 0; vm < vms; vm++) {
    await startIdleLinux(host, `${GUEST_MIB}M`);
    await pause(SETTLE_MS);
    const now = (await residentMib()) - touchedMib(ramOffset);
    added.push(now - before);
    before = now;
  }
  await host.close();
  console.log(JSON.stringify(added));
}

if (import.meta.main) await main(process.argv[2], Number(process.argv[3]));
