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
  access: "read" | "write" | "fetch",
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
  const smep = (state.cr4 & Cr4.SMEP) !== 0n;
  const pageFault = (flags: number): GuestFault => ({
    vector: Vector.PF,
    errorCode:
      flags |
      (access === "write" ? PageFaultError.write : 0) |
      (isUser ? PageFaultError.user : 0) |
      (access === "fetch" && (nxe || smep) ? PageFaultError.fetch : 0),
    cr2: address,
  });

  const root = rootOf(state, address);
  if (!root) return pageFault(0);
  const { entryBytes } = root;
  const indexBits = entryBytes === 8 ? 9n : 10n;
  let table = root.table;
  let writable = true;
  let user = true;
  let executable = true;
  for (let level = root.levels; ; level--) {
    const shift = 12n + indexBits * BigInt(level - 1);
    const at = Number(table) + Number((address >> shift) & ((1n << indexBits) - 1n)) * entryBytes;
    const entry = state.readEntry(at, entryBytes);
    if (entry === undefined || !(entry & Entry.present)) return pageFault(0);
    if (entryBytes === 8 && entry & Entry.noExecute && !nxe) return pageFault(PageFaultError.present | PageFaultError.reserved);
    const large = level > 1 && (entry & Entry.large) !== 0n && (entryBytes === 8 || (state.cr4 & Cr4.PSE) !== 0n);
    if (level > 3 && entry & Entry.large) return pageFault(PageFaultError.present | PageFaultError.reserved);
    writable &&= (entry & Entry.writable) !== 0n;
    user &&= (entry & Entry.user) !== 0n;
    executable &&= entryBytes === 4 || (entry & Entry.noExecute) === 0n;
    if (level > 1 && !large) {
      if (setAccessed && !(entry & Entry.accessed)) state.writeEntry(at, entryBytes, entry | Entry.accessed);
      table = entry & (entryBytes === 8 ? ADDRESS : 0xffff_f000n);
      continue;
    }
    const pageBytes = 2 ** Number(shift);
    // Below the frame of a large page there is only the PAT bit
    if (large && entryBytes === 8 && entry & ADDRESS & BigInt(pageBytes - 1) & ~0x1fffn)
      return pageFault(PageFaultError.present | PageFaultError.reserved);
    if (!isAllowed(state, access, isUser, { writable, user, executable, smep })) return pageFault(PageFaultError.present);
    const wanted = Entry.accessed | (access === "write" ? Entry.dirty : 0n);
    if (setAccessed && (entry & wanted) !== wanted) state.writeEntry(at, entryBytes, entry | wanted);
    const offset = Number(address & BigInt(pageBytes - 1));
    // PSE-36: bits 20:13 of a 4 MiB entry are bits 39:32 of the frame
    const frame =
      large && entryBytes === 4
        ? (entry & 0xffc0_0000n) | (((entry >> 13n) & 0xffn) << 32n)
        : entry & (entryBytes === 8 ? ADDRESS & ~BigInt(pageBytes - 1) : 0xffff_f000n);
    return { gpa: Number(frame) + offset, pageBytes, writable, user };
  }
}

function isAllowed(
  state: PagingState,
  access: "read" | "write" | "fetch",
  isUser: boolean,
  page: { writable: boolean; user: boolean; executable: boolean; smep: boolean },
): boolean {
  if (isUser && !page.user) return false;
  if (access === "fetch") return page.executable && (isUser || !page.user || !page.smep);
  if (!isUser && page.user && state.cr4 & Cr4.SMAP && !(state.rflags & Rflags.AC)) return false;
  return access === "read" || page.writable || (!isUser && !(state.cr0 & Cr0.WP));
}
