/** Reads a saved process, section by section; each is whole and intact before anything is made of it. */
import { type FileHandle, open } from "node:fs/promises";
import { promisify } from "node:util";
import { inflateRaw } from "node:zlib";
import type { Section } from "@mkvm/kvm-abi";
import { HostError, messageOf } from "../errors.ts";
import {
  decodeSectionHead,
  FILE_MAGIC,
  FILE_VERSION,
  FileHead,
  type FileSection,
  FileSectionHead,
  isIntact,
  SectionFlag,
  SectionKind,
  sectionTitle,
} from "./file-format.ts";
import type { Manifest } from "./manifest.ts";
import { pieceBytes, unpackPiece } from "./page-runs.ts";
import type { ProcessImage } from "./process-image.ts";

const inflate = promisify(inflateRaw) as (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
/** No section is larger: what says so is damaged, and not worth the memory. */
const largestBytes = 0x1000_0000;

export class SavedFile {
  readonly path: string;
  readonly #handle: FileHandle;
  readonly #sizeBytes: number;
  #at = FileHead.sizeBytes;
  #sections = 0;
  #last = "its head";
  #next: FileSection | undefined;

  /** @throws HostError when it is no saved file, or of a version that this host does not know */
  static async open(path: string): Promise<SavedFile> {
    const handle = await open(path, "r").catch((thrown) => {
      throw new HostError("ENOENT", `${path} cannot be read: ${messageOf(thrown)}`);
    });
    try {
      const head = Buffer.alloc(FileHead.sizeBytes);
      await handle.read(head, 0, head.length, 0);
      const { magic, version } = FileHead.read(head);
      if (new TextDecoder().decode(magic) !== FILE_MAGIC)
        throw new HostError("EINVAL", `${path} is no saved VM: 'mkvm save' writes them`);
      if (version !== FILE_VERSION)
        throw new HostError("EINVAL", `${path} has format ${version}, this host reads ${FILE_VERSION}: update @mkvm/host`);
      return new SavedFile(path, handle, (await handle.stat()).size);
    } catch (thrown) {
      await handle.close();
      throw thrown;
    }
  }

  private constructor(path: string, handle: FileHandle, sizeBytes: number) {
    this.path = path;
    this.#handle = handle;
    this.#sizeBytes = sizeBytes;
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  async manifest(): Promise<Manifest> {
    const section = await this.#take();
    if (section.kind !== SectionKind.manifest) throw this.#damaged(section, "is where the manifest is expected");
    const { parseManifest } = await import("./manifest-schema.ts");
    return parseManifest(section.stored, this.path);
  }

  /** All but memory, which comes behind it in the file. */
  async image(manifest: Manifest): Promise<ProcessImage> {
    const sections: Section[][] = manifest.vms.map(() => []);
    const program: Section[] = [];
    const runPages: ProcessImage["runPages"][number][] = [];
    let input = new Uint8Array();
    for (let next = await this.#peek(); next.kind < SectionKind.memory; next = await this.#peek()) {
      const section = await this.#take();
      const { kind, name, instance, version, flags, vm, stored } = section;
      const state: Section = { name, instance, version, required: (flags & SectionFlag.required) !== 0, bytes: stored };
      if (kind === SectionKind.program) program.push(state);
      else if (kind === SectionKind.input) input = stored as typeof input;
      else {
        const of = sections[vm];
        if (of === undefined || (kind !== SectionKind.vm && kind !== SectionKind.runPage))
          throw this.#damaged(section, "belongs to nothing that the manifest has");
        if (kind === SectionKind.vm) of.push(state);
        else runPages.push({ vm, vcpu: instance, bytes: stored });
      }
    }
    const { program: _program, savedBy, vms, inputEnded, ...rest } = manifest;
    return {
      ...rest,
      module: savedBy.module,
      program,
      vms: vms.map(({ files }, vm) => ({ files, sections: sections[vm]! })),
      runPages,
      input: { bytes: input, ended: inputEnded },
    };
  }

  /** Fills memory, which is zero, and sees that the file ends as it says. */
  async readMemory(image: ProcessImage, memory: Uint8Array): Promise<void> {
    for (;;) {
      const section = await this.#take();
      if (section.kind === SectionKind.end) {
        if (section.instance !== this.#sections - 1)
          throw this.#damaged(
            section,
            `says that ${section.instance} sections are before it, and there are ${this.#sections - 1}`,
          );
        return;
      }
      const { address, stored, size } = section;
      const block = image.memory.find((each) => address >= each.address && address < each.address + each.lengthBytes);
      if (section.kind !== SectionKind.memory || block === undefined)
        throw this.#damaged(section, "is no memory that the manifest has");
      const packed = await inflate(stored, { maxOutputLength: size }).catch((thrown) => {
        throw this.#damaged(section, `cannot be unpacked: ${messageOf(thrown)}`);
      });
      const end = Math.min(address + pieceBytes, block.address + block.lengthBytes);
      if (packed.length !== size || !unpackPiece(packed, memory.subarray(address, end)))
        throw this.#damaged(section, "has other pages than its size says");
    }
  }

  async #peek(): Promise<FileSection> {
    this.#next ??= await this.#read();
    return this.#next;
  }

  async #take(): Promise<FileSection> {
    const section = await this.#peek();
    this.#next = undefined;
    this.#sections++;
    this.#last = `section ${sectionTitle(section)}`;
    return section;
  }

  async #read(): Promise<FileSection> {
    const head = await this.#bytes(FileSectionHead.sizeBytes, `behind ${this.#last}`);
    const decoded = decodeSectionHead(head);
    if (decoded === undefined) throw this.#failure(`what is behind ${this.#last} is no section`);
    const { storedBytes, ...rest } = decoded;
    const title = `section ${sectionTitle(decoded)}`;
    if (storedBytes > largestBytes || decoded.size > largestBytes) throw this.#failure(`${title} says that it is too large`);
    const stored = await this.#bytes(storedBytes, `within ${title}`);
    if (!isIntact(head, stored)) throw this.#failure(`${title} is damaged: its checksum is another`);
    return { ...rest, stored };
  }

  async #bytes(length: number, where: string): Promise<Uint8Array> {
    if (this.#at + length > this.#sizeBytes) throw this.#failure(`it is cut short ${where}`);
    const into = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#handle.read(into, done, length - done, this.#at + done);
      if (bytesRead === 0) throw this.#failure(`it is cut short ${where}`);
      done += bytesRead;
    }
    this.#at += length;
    return into;
  }

  #damaged(section: FileSection, what: string): HostError {
    return this.#failure(`section ${sectionTitle(section)} ${what}`);
  }

  #failure(what: string): HostError {
    return new HostError("EINVAL", `${this.path}: ${what}; nothing was restored`);
  }
}
