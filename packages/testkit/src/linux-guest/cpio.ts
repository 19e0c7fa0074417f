/** Writes archives in the "newc" format of cpio, which Linux unpacks as its initramfs. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. */
export type CpioEntry =
  | { path: string; type: "file"; mode: number; content: Uint8Array }
  | { path: string; type: "directory"; mode: number }
  | { path: string; type: "symlink"; target: string }
  | { path: string; type: "character"; mode: number; major: number; minor: number };

const S_IFREG = 0o100000,
  S_IFDIR = 0o040000,
  S_IFLNK = 0o120000,
  S_IFCHR = 0o020000;
const encoder = new TextEncoder();

/** The archive; inode numbers count from 1, owner is root, times are the epoch, so that equal entries give equal bytes. */
export function cpioArchive(entries: readonly CpioEntry[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const [index, entry] of entries.entries()) parts.push(...record(entry, index + 1));
  parts.push(...record({ path: "TRAILER!!!", type: "file", mode: 0, content: new Uint8Array(0) }, 0));
  return Buffer.concat(parts);
}

function record(entry: CpioEntry, inode: number): Uint8Array[] {
  const name = encoder.encode(`${entry.path}\0`);
  const content =
    entry.type === "file" ? entry.content : entry.type === "symlink" ? encoder.encode(entry.target) : new Uint8Array(0);
  const mode = modeOf(entry);
  const [major, minor] = entry.type === "character" ? [entry.major, entry.minor] : [0, 0];
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, name.length, 0];
  const header = encoder.encode(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`);
  return [header, name, padding(header.length + name.length), content, padding(content.length)];
}

function modeOf(entry: CpioEntry): number {
  switch (entry.type) {
    case "file":
      return entry.mode === 0 ? 0 : S_IFREG | entry.mode;
    case "directory":
      return S_IFDIR | entry.mode;
    case "symlink":
      return S_IFLNK | 0o777;
    case "character":
      return S_IFCHR | entry.mode;
  }
}

function padding(length: number): Uint8Array {
  return new Uint8Array(-length & 3);
}
