import { COMMAND_LINE, COMMAND_LINE_BYTES } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import type { BootRequest } from "./guest-image.ts";

const PAGE = 4096;

/** Puts the command line, zero-terminated, where every protocol's structures point. Returns its address. */
export function placeCommandLine(request: BootRequest, limitBytes = COMMAND_LINE_BYTES - 1): number {
  const text = new TextEncoder().encode(request.commandLine);
  const limit = Math.min(limitBytes, COMMAND_LINE_BYTES - 1);
  if (text.length > limit)
    throw new VmmError(`the kernel command line has ${text.length} bytes; this kernel takes ${limit}; shorten --append`);
  request.memory.fill(COMMAND_LINE, COMMAND_LINE_BYTES);
  request.memory.write(COMMAND_LINE, text);
  return COMMAND_LINE;
}

/** Loads the initrd as high as allowed. `highestAddress`: last address that it may use; `lowestAddress`: end of what the kernel needs. */
export function placeInitrd(
  request: BootRequest,
  lowestAddress: number,
  highestAddress: number,
): { address: number; bytes: number } | undefined {
  const { initrd, memory } = request;
  if (!initrd) return undefined;
  const top = Math.min(memory.lowBytes, highestAddress + 1);
  const address = Math.floor((top - initrd.bytes) / PAGE) * PAGE;
  if (address < lowestAddress) {
    const need = Math.ceil((lowestAddress + initrd.bytes) / (1 << 20));
    throw new VmmError(
      `too little memory: kernel and initrd need ${need} MiB, the guest has ${memory.bytes >> 20} MiB; raise --memory`,
    );
  }
  initrd.readInto(memory, address, 0, initrd.bytes);
  return { address, bytes: initrd.bytes };
}

/** Throws VmmError unless `bytes` at `address` are RAM above the first MiB. */
export function requireRoom(request: BootRequest, address: number, bytes: number, what: string): void {
  if (address + bytes <= request.memory.lowBytes) return;
  const need = Math.ceil((address + bytes) / (1 << 20));
  throw new VmmError(
    `too little memory: ${what} needs ${need} MiB, the guest has ${request.memory.bytes >> 20} MiB; raise --memory`,
  );
}
