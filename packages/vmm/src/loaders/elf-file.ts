import type { ImageFile } from "../image-file.ts";
import { VmmError } from "../vmm-error.ts";
import { view } from "./guest-image.ts";

/** Source: System V ABI, Object Files, and its AMD64 supplement. */
const ELF_MAGIC = 0x464c457f;
const CLASS_32 = 1,
  CLASS_64 = 2,
  LITTLE_ENDIAN = 1;
const MACHINE_386 = 3,
  MACHINE_X86_64 = 62;
const SEGMENT_LOAD = 1,
  SEGMENT_NOTE = 4;

export interface ElfSegment {
  type: "load" | "note";
  fileOffset: number;
  fileBytes: number;
  /** Physical address and size in memory, bytes. */
  physicalAddress: number;
  memoryBytes: number;
}

export interface ElfFile {
  bits: 32 | 64;
  /** Address of the first instruction, as the file has it. */
  entry: number;
  segments: ElfSegment[];
}

export function isElf(head: Uint8Array): boolean {
  return head.length > 64 && view(head).getUint32(0, true) === ELF_MAGIC;
}

/** Reads the headers. Throws VmmError for files that no x86 machine runs. */
export function readElf(image: ImageFile, head: Uint8Array): ElfFile {
  const header = view(head);
  const elfClass = head[4];
  const machine = header.getUint16(18, true);
  const known = (elfClass === CLASS_32 && machine === MACHINE_386) || (elfClass === CLASS_64 && machine === MACHINE_X86_64);
  if (!known || head[5] !== LITTLE_ENDIAN)
    throw new VmmError(`${image.path} is an ELF file, but not for x86; give an x86-64 kernel`);
  const is64 = elfClass === CLASS_64;
  const number64 = (v: DataView, offset: number) => Number(v.getBigUint64(offset, true));
  const entry = is64 ? number64(header, 24) : header.getUint32(24, true);
  const tableOffset = is64 ? number64(header, 32) : header.getUint32(28, true);
  const entryBytes = header.getUint16(is64 ? 54 : 42, true);
  const count = header.getUint16(is64 ? 56 : 44, true);
  const table = image.read(tableOffset, entryBytes * count);
  if (count === 0 || table.length < entryBytes * count)
    throw new VmmError(`${image.path} is an ELF file without program headers; it is no kernel`);
  const segments: ElfSegment[] = [];
  for (let index = 0; index < count; index++) {
    const row = view(table.subarray(index * entryBytes, (index + 1) * entryBytes));
    const type = row.getUint32(0, true);
    if (type !== SEGMENT_LOAD && type !== SEGMENT_NOTE) continue;
    segments.push(
      is64
        ? {
            type: type === SEGMENT_LOAD ? "load" : "note",
            fileOffset: number64(row, 8),
            physicalAddress: number64(row, 24),
            fileBytes: number64(row, 32),
            memoryBytes: number64(row, 40),
          }
        : {
            type: type === SEGMENT_LOAD ? "load" : "note",
            fileOffset: row.getUint32(4, true),
            physicalAddress: row.getUint32(12, true),
            fileBytes: row.getUint32(16, true),
            memoryBytes: row.getUint32(20, true),
          },
    );
  }
  return { bits: is64 ? 64 : 32, entry, segments };
}

/** Contents of the note of `owner` and `type`, or undefined. */
export function findNote(image: ImageFile, elf: ElfFile, owner: string, type: number): Uint8Array | undefined {
  const align4 = (bytes: number) => (bytes + 3) & ~3;
  for (const segment of elf.segments) {
    if (segment.type !== "note") continue;
    const notes = image.read(segment.fileOffset, segment.fileBytes);
    for (let at = 0; at + 12 <= notes.length; ) {
      const row = view(notes.subarray(at));
      const nameBytes = row.getUint32(0, true);
      const bodyBytes = row.getUint32(4, true);
      const name = new TextDecoder().decode(notes.subarray(at + 12, at + 12 + Math.max(0, nameBytes - 1)));
      const body = at + 12 + align4(nameBytes);
      if (name === owner && row.getUint32(8, true) === type) return notes.slice(body, body + bodyBytes);
      at = body + align4(bodyBytes);
    }
  }
  return undefined;
}
