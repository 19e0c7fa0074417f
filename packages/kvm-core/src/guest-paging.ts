/** Translation by the guest's own page tables. Source: Intel SDM Vol. 3A, Paging. */
import { Cr0, Cr4, Efer, PageFaultError, Rflags, Vector } from "./arch/registers.ts";
import type { GuestFault } from "./instruction-emulator/emulated-cpu.ts";

/** Registers that guest paging depends on, and access to the tables. */
export interface PagingState {
  readonly cr0: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
  readonly rflags: bigint;
  readonly cpl: number;
  /** Rights of the protection keys; asked for only where CR4.PKE gives them a meaning. */
  readonly pkru: number;
  /** Bits of a guest-physical address: entries have none above. */
  readonly physicalBits: number;
  /** PDPTEs in use, PAE paging only. */
  readonly pdptrs?: readonly bigint[] | undefined;
  /** Guest memory at `gpa`: 4 or 8 bytes; undefined where there is none. */
  readEntry(gpa: number, bytes: 4 | 8): bigint | undefined;
  writeEntry(gpa: number, bytes: 4 | 8, value: bigint): void;
}
export interface GuestTranslation {
  readonly gpa: number;
  readonly pageBytes: number;
  readonly writable: boolean;
  readonly user: boolean;
}

const Entry = { present: 1n, writable: 2n, user: 4n, accessed: 32n, dirty: 64n, large: 128n, noExecute: 1n << 63n } as const;
const ADDRESS = 0x000f_ffff_ffff_f000n;
/** Bits 62:52 of entries, which PAE paging outside long mode reserves. */
const PAE_RESERVED = 0x7ff0_0000_0000_0000n;
/** Bit 21 of the entry of a 4 MiB page. */
const PSE_RESERVED = 0x20_0000n;
/** Bits 62:59 of the entry that maps a page: its protection key. */
const KEY_SHIFT = 59n;
/** Access-disable and write-disable, the two bits of PKRU for each key. */
const KEY_AD = 1;
const KEY_WD = 2;

type Access = "read" | "write" | "fetch";
/** What all entries of a walk allow together, and the key of the last one. */
interface Rights {
  readonly writable: boolean;
  readonly user: boolean;
  readonly executable: boolean;
  readonly key: number;
}

/** Where the walk starts. */
interface Root {
  readonly levels: number;
  readonly entryBytes: 4 | 8;
  readonly table: bigint;
}

function rootOf(state: PagingState, linear: bigint): Root | undefined {
  if (!(state.cr4 & Cr4.PAE)) return { levels: 2, entryBytes: 4, table: state.cr3 & 0xffff_f000n };
  if (state.efer & Efer.LMA) return { levels: state.cr4 & Cr4.LA57 ? 5 : 4, entryBytes: 8, table: state.cr3 & ADDRESS };
  const index = Number((linear >> 30n) & 3n);
  const pdpte = state.pdptrs ? state.pdptrs[index] : state.readEntry(Number(state.cr3 & 0xffff_ffe0n) + index * 8, 8);
  if (pdpte === undefined || !(pdpte & Entry.present)) return undefined;
  return { levels: 2, entryBytes: 8, table: pdpte & ADDRESS };
}

/** Walks the guest's tables; `setAccessed` false leaves accessed and dirty bits alone (KVM_TRANSLATE, save). */
export function translateGuest(
  state: PagingState,
  linear: bigint,
  access: Access,
  setAccessed: boolean,
): GuestTranslation | GuestFault {
  const longMode = (state.efer & Efer.LMA) !== 0n;
  if (!(state.cr0 & Cr0.PG)) return { gpa: Number(linear & 0xffff_ffffn), pageBytes: 4096, writable: true, user: true };
  const address = longMode ? BigInt.asUintN(64, linear) : linear & 0xffff_ffffn;
  const bits = state.cr4 & Cr4.LA57 ? 57 : 48;
  if (longMode && BigInt.asUintN(64, BigInt.asIntN(bits, address)) !== address)
    return { vector: Vector.GP, errorCode: 0, cr2: undefined };

  const isUser = state.cpl === 3;
  const nxe = (state.efer & Efer.NXE) !== 0n;
  const isWide = (state.cr4 & Cr4.PAE) !== 0n;
  // The fetch bit exists only where something can forbid a fetch
  const tellsFetches = (nxe && isWide) || (state.cr4 & Cr4.SMEP) !== 0n;
  const pageFault = (flags: number): GuestFault => ({
    vector: Vector.PF,
    errorCode:
      flags |
      (access === "write" ? PageFaultError.write : 0) |
      (isUser ? PageFaultError.user : 0) |
      (access === "fetch" && tellsFetches ? PageFaultError.fetch : 0),
    cr2: address,
  });
  const reservedFault = (): GuestFault => pageFault(PageFaultError.present | PageFaultError.reserved);

  const root = rootOf(state, address);
  if (!root) return pageFault(0);
  const { entryBytes } = root;
  const indexBits = isWide ? 9n : 10n;
  const reserved = isWide ? reservedBits(state, nxe, longMode) : 0n;
  let writable = true;
  let user = true;
  let executable = true;
  /** Entries on the way, the last one last. */
  const path: { at: number; entry: bigint }[] = [];
  let table = root.table;
  for (let level = root.levels; ; level--) {
    const shift = 12n + indexBits * BigInt(level - 1);
    const at = Number(table) + Number((address >> shift) & ((1n << indexBits) - 1n)) * entryBytes;
    const entry = state.readEntry(at, entryBytes);
    if (entry === undefined || !(entry & Entry.present)) return pageFault(0);
    if (entry & reserved || (level > 3 && entry & Entry.large)) return reservedFault();
    path.push({ at, entry });
    writable &&= (entry & Entry.writable) !== 0n;
    user &&= (entry & Entry.user) !== 0n;
    executable &&= !isWide || (entry & Entry.noExecute) === 0n;
    const large = level > 1 && (entry & Entry.large) !== 0n && (isWide || (state.cr4 & Cr4.PSE) !== 0n);
    if (level > 1 && !large) {
      table = entry & (isWide ? ADDRESS : 0xffff_f000n);
      continue;
    }
    const pageBytes = 2 ** Number(shift);
    const frame = large && !isWide ? largeFrame(entry) : entry & (isWide ? ADDRESS & ~BigInt(pageBytes - 1) : 0xffff_f000n);
    // Below the frame of a large page there is only the PAT bit
    if (large && isWide && entry & ADDRESS & BigInt(pageBytes - 1) & ~0x1fffn) return reservedFault();
    if (large && !isWide && (entry & PSE_RESERVED || frame >> BigInt(state.physicalBits))) return reservedFault();
    const rights = { writable, user, executable, key: longMode ? Number((entry >> KEY_SHIFT) & 15n) : 0 };
    const isKeyed = keyForbids(state, access, isUser, rights);
    if (isKeyed || !isAllowed(state, access, isUser, rights))
      return pageFault(PageFaultError.present | (isKeyed ? PageFaultError.protectionKey : 0));
    if (setAccessed) markEntries(state, path, entryBytes, access);
    const offset = Number(address & BigInt(pageBytes - 1));
    return { gpa: Number(frame) + offset, pageBytes, writable, user };
  }
}

/** Bits of 64-bit entries that have to be clear. */
function reservedBits(state: PagingState, nxe: boolean, longMode: boolean): bigint {
  const beyond = ADDRESS & ~((1n << BigInt(state.physicalBits)) - 1n);
  return beyond | (nxe ? 0n : Entry.noExecute) | (longMode ? 0n : PAE_RESERVED);
}

/** PSE-36: bits 20:13 of a 4 MiB entry are bits 39:32 of the frame. */
function largeFrame(entry: bigint): bigint {
  return (entry & 0xffc0_0000n) | (((entry >> 13n) & 0xffn) << 32n);
}

function markEntries(state: PagingState, path: readonly { at: number; entry: bigint }[], bytes: 4 | 8, access: Access): void {
  for (const [index, { at, entry }] of path.entries()) {
    const wanted = Entry.accessed | (index === path.length - 1 && access === "write" ? Entry.dirty : 0n);
    if ((entry & wanted) !== wanted) state.writeEntry(at, bytes, entry | wanted);
  }
}

/** Whether the page's protection key forbids a data access: long mode has keys, and those of user pages count, whoever runs. */
function keyForbids(state: PagingState, access: Access, isUser: boolean, page: Rights): boolean {
  if (!(state.cr4 & Cr4.PKE) || !(state.efer & Efer.LMA) || access === "fetch" || !page.user) return false;
  const key = state.pkru >>> (page.key * 2);
  const heedsWrites = access === "write" && (isUser || (state.cr0 & Cr0.WP) !== 0n);
  return (key & KEY_AD) !== 0 || ((key & KEY_WD) !== 0 && heedsWrites);
}

function isAllowed(state: PagingState, access: Access, isUser: boolean, page: Rights): boolean {
  if (isUser && !page.user) return false;
  const isForeign = !isUser && page.user;
  if (access === "fetch") return page.executable && !(isForeign && state.cr4 & Cr4.SMEP);
  if (isForeign && state.cr4 & Cr4.SMAP && !(state.rflags & Rflags.AC)) return false;
  return access === "read" || page.writable || (!isUser && !(state.cr0 & Cr0.WP));
}
