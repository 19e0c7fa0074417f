/** Writes a saved process. The file appears under its name when it is whole. */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { promisify } from "node:util";
import { constants, deflateRaw } from "node:zlib";
import type { Section } from "@mkvm/kvm-abi";
import {
  encodeSectionHead,
  FILE_MAGIC,
  FILE_VERSION,
  FileHead,
  type FileSection,
  SectionFlag,
  SectionKind,
} from "./file-format.ts";
import type { Manifest } from "./manifest.ts";
import { packPiece, pieceBytes } from "./page-runs.ts";
import type { ProcessImage } from "./process-image.ts";

const deflate = promisify(deflateRaw) as (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
/** Memory of guests compresses well at once, and time counts: the VM stands still. */
const level = constants.Z_BEST_SPEED;

export interface WrittenFile {
  readonly bytes: number;
  /** Of memory, that were not zero. */
  readonly memoryBytes: number;
}

/** `memory`: the whole bank. */
export async function writeSavedFile(
  path: string,
  manifest: Manifest,
  image: ProcessImage,
  memory: Uint8Array,
): Promise<WrittenFile> {
  const partial = `${path}.partial`;
  const handle = await open(partial, "w", 0o600);
  try {
    const writer = new SectionWriter(handle);
    await writer.begin();
    await writer.plain(SectionKind.manifest, "manifest", 0, new TextEncoder().encode(JSON.stringify(manifest)));
    for (const [vm, { sections }] of image.vms.entries())
      for (const section of sections) await writer.state(SectionKind.vm, section, vm);
    for (const section of image.program) await writer.state(SectionKind.program, section, 0);
    for (const { vm, vcpu, bytes } of image.runPages) await writer.plain(SectionKind.runPage, "run-page", vcpu, bytes, vm);
    await writer.plain(SectionKind.input, "console-input", 0, image.input.bytes);
    const memoryBytes = await writeMemory(writer, image, memory);
    await writer.end();
    await handle.sync();
    await handle.close();
    await rename(partial, path);
    return { bytes: writer.bytes, memoryBytes };
  } catch (thrown) {
    await handle.close().catch(() => {});
    await rm(partial, { force: true });
    throw thrown;
  }
}

async function writeMemory(writer: SectionWriter, image: ProcessImage, memory: Uint8Array): Promise<number> {
  let total = 0;
  let piece = 0;
  for (const { address, lengthBytes } of image.memory) {
    for (let at = address; at < address + lengthBytes; at += pieceBytes, piece++) {
      const packed = packPiece(memory.subarray(at, Math.min(at + pieceBytes, address + lengthBytes)));
      if (packed === undefined) continue;
      total += packed.length;
      await writer.memory(piece, at, packed);
    }
  }
  return total;
}

class SectionWriter {
  readonly #handle: FileHandle;
  #sections = 0;
  bytes = 0;

  constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  async begin(): Promise<void> {
    await this.#write(FileHead.encode({ magic: new TextEncoder().encode(FILE_MAGIC), version: FILE_VERSION }));
  }

  plain(kind: number, name: string, instance: number, bytes: Uint8Array, vm = 0): Promise<void> {
    return this.#section({
      kind,
      name,
      instance,
      version: 1,
      flags: SectionFlag.required,
      vm,
      address: 0,
      stored: bytes,
      size: bytes.length,
    });
  }

  state(kind: number, { name, instance, version, required, bytes }: Section, vm: number): Promise<void> {
    const flags = required ? SectionFlag.required : 0;
    return this.#section({ kind, name, instance, version, flags, vm, address: 0, stored: bytes, size: bytes.length });
  }

  async memory(instance: number, address: number, packed: Uint8Array): Promise<void> {
    const stored = await deflate(packed, { level });
    const flags = SectionFlag.required | SectionFlag.deflated;
    await this.#section({
      kind: SectionKind.memory,
      name: "memory",
      instance,
      version: 1,
      flags,
      vm: 0,
      address,
      stored,
      size: packed.length,
    });
  }

  /** Its instance is the number of sections before it. */
  end(): Promise<void> {
    return this.plain(SectionKind.end, "end", this.#sections, new Uint8Array());
  }

  async #section(section: FileSection): Promise<void> {
    this.#sections++;
    await this.#write(encodeSectionHead(section));
    await this.#write(section.stored);
  }

  async #write(bytes: Uint8Array): Promise<void> {
    // One call may write a part
    for (let done = 0; done < bytes.length; ) done += (await this.#handle.write(bytes, done)).bytesWritten;
    this.bytes += bytes.length;
  }
}
