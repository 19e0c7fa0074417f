/**
 * A saved process on disk: a head, then sections, each with a head of its own that has a checksum over itself and what it stores.
 * The first is the manifest, the last says how many there are, so that a file that was cut short is told from a whole one.
 */
import { createHash } from "node:crypto";
import { bytes, struct, u32, u64 } from "@mkvm/kvm-abi";

/** Of the file as a whole: what a reader must know to find the sections. */
export const FILE_VERSION = 1;
export const FILE_MAGIC = "MKVMSAVE";

export const FileHead = struct("mkvm_saved_file", 16, { magic: bytes(0, 8), version: u32(8), reserved: u32(12) });

export const SectionKind = { manifest: 1, vm: 2, program: 3, runPage: 4, input: 5, memory: 6, end: 7 } as const;
export const SectionFlag = { required: 1, deflated: 2 } as const;
const SECTION_MAGIC = 0x5443_4553; // "SECT"

export const FileSectionHead = struct("mkvm_saved_section", 128, {
  magic: u32(0),
  kind: u32(4), // SectionKind
  name: bytes(8, 48), // padded with zeros
  instance: u32(56),
  version: u32(60),
  flags: u32(64), // SectionFlag
  vm: u32(68), // which VM of the process
  size: u64(72), // bytes, of the contents
  stored: u64(80), // bytes that follow
  address: u64(88), // memory: where it lies in the process
  checksum: bytes(96, 32), // SHA-256 of the head with zeros here, and of what is stored
});

export interface FileSection {
  readonly kind: number;
  readonly name: string;
  readonly instance: number;
  readonly version: number;
  readonly flags: number;
  readonly vm: number;
  readonly address: number;
  /** As stored: deflated where the flags say so. */
  readonly stored: Uint8Array;
  /** Bytes of the contents. */
  readonly size: number;
}

/** "memory[12]", "vcpu.registers[0]": for messages. */
export const sectionTitle = ({ name, instance }: Pick<FileSection, "name" | "instance">): string => `${name}[${instance}]`;

export function encodeSectionHead(section: FileSection): Uint8Array {
  const name = new TextEncoder().encode(section.name);
  const { kind, instance, version, flags, vm, stored, size, address } = section;
  const head = FileSectionHead.encode({
    magic: SECTION_MAGIC,
    kind,
    name,
    instance,
    version,
    flags,
    vm,
    size: BigInt(size),
    stored: BigInt(stored.length),
    address: BigInt(address),
  });
  FileSectionHead.set(head, "checksum", checksumOf(head, stored));
  return head;
}

/** Undefined: no head of a section. */
export function decodeSectionHead(head: Uint8Array): (Omit<FileSection, "stored"> & { storedBytes: number }) | undefined {
  const { magic, name, size, stored, address, ...rest } = FileSectionHead.read(head);
  if (magic !== SECTION_MAGIC) return undefined;
  const end = name.indexOf(0);
  const text = new TextDecoder().decode(name.subarray(0, end < 0 ? name.length : end));
  return { ...rest, name: text, size: Number(size), storedBytes: Number(stored), address: Number(address) };
}

export function isIntact(head: Uint8Array, stored: Uint8Array): boolean {
  const said = FileSectionHead.get(head, "checksum");
  const blank = head.slice();
  FileSectionHead.set(blank, "checksum", new Uint8Array(32));
  return Buffer.compare(checksumOf(blank, stored), said) === 0;
}

function checksumOf(head: Uint8Array, stored: Uint8Array): Uint8Array {
  return createHash("sha256").update(head).update(stored).digest();
}
