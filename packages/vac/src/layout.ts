/**
 * The shared memory of VAC. Append-only: a minor version may add fields behind the last of a block and blocks behind the last
 * block, and raises the sizes in the header; nothing moves and nothing changes its meaning. All words are 32 bits, little-endian;
 * 64-bit values are aligned to 8.
 */
export const VAC_MAGIC = 0x4341_5621; // "!VAC"
export const VAC_VERSION = { major: 1, minor: 3 } as const;

export const MAX_CPUS = 64;
/** Owner ids run from 1 to this. */
export const MAX_OWNERS = 32;
export const MAX_NAME_BYTES = 47;
export const USER_RETURN_SLOTS = 16;
export const MAX_LOADED_VMCSS = 1024;
export const VPIDS = 0x1_0000;

/** Words of the header, by index. */
export const Header = {
  magic: 0,
  major: 1,
  minor: 2,
  headerBytes: 3,
  totalBytes: 4,
  cpus: 5,
  ownersOffset: 6,
  ownerBytes: 7,
  userReturnOffset: 8,
  vpidOffset: 9,
  cpuOffset: 10,
  cpuBytes: 11,
  /** Locks: 0, or the number of the CPU that holds it plus 1. */
  ownersLock: 12,
  vpidLock: 13,
  userReturnLock: 14,
  loadedVmcsLock: 15,
  /** Raised when freed VPIDs become free again: CPUs flush before they enter a guest in an older generation. */
  vpidGeneration: 16,
  /** Where the next search for a VPID starts. */
  vpidNext: 17,
} as const;
export const HEADER_BYTES = 128;

/** Words of one owner. */
export const Owner = { claimed: 0, cpusLow: 1, cpusHigh: 2, nameBytes: 3, name: 4 } as const;
export const OWNER_BYTES = 64;

/** Words of one user-return slot, machine-wide: the MSR, and bits of the owners that registered it (bit id - 1). */
export const UserReturnSlot = { msr: 0, owners: 1 } as const;
export const USER_RETURN_SLOT_BYTES = 8;

export const LoadedEntry = { vmcs: 0, owner: 8, bytes: 16 } as const;
/** Where a CPU's block of layout 1.0 ends. */
const LOADED_END = 48 + 4 * (MAX_OWNERS + 2) + 24 * USER_RETURN_SLOTS + LoadedEntry.bytes * MAX_LOADED_VMCSS;

/** Bytes of one CPU's block. */
export const CpuBlock = {
  attached: 0,
  enableTotal: 4,
  emergency: 8,
  vpidGeneration: 12,
  runningOwner: 16,
  runningToken: 20,
  loadedCount: 24,
  vmxonRegion: 32,
  saveArea: 40,
  /** u32 for each owner id from 0. */
  enableCounts: 48,
  /** 16 of UserReturnValue. */
  userReturn: 48 + 4 * (MAX_OWNERS + 2),
  /** 1,024 of LoadedEntry. */
  loaded: 48 + 4 * (MAX_OWNERS + 2) + 24 * USER_RETURN_SLOTS,
  // From 1.1 on: SVM
  /** Raised when this CPU's ASIDs begin anew; 0 before the first. */
  asidGeneration: LOADED_END,
  /** The next ASID to give out, and the first and last there are for guests without SEV. */
  asidNext: LOADED_END + 4,
  asidFirst: LOADED_END + 8,
  asidLast: LOADED_END + 12,
  /** 1 from the start of a generation until a VMRUN has flushed every ASID's translations. */
  asidFlushOwed: LOADED_END + 16,
  /** Owner whose ratio is in the TSC ratio MSR; 0: the ratio is 1. */
  tscRatioOwner: LOADED_END + 20,
  tscRatio: LOADED_END + 24,
  // From 1.2 on: suspend. 1 while the CPU is without power; gets stay counted
  suspended: LOADED_END + 32,
  // From 1.3 on. A bit for each VPID: this CPU gave it to the owner that holds it
  vpids: LOADED_END + 36,
} as const;
export const UserReturnValue = { host: 0, current: 8, owner: 16, bytes: 24 } as const;
export const CPU_BYTES = Math.ceil((CpuBlock.vpids + VPIDS / 8) / 64) * 64;

export const OWNERS_OFFSET = HEADER_BYTES;
export const USER_RETURN_OFFSET = OWNERS_OFFSET + OWNER_BYTES * MAX_OWNERS;
/** One byte for each VPID: an owner id, or a VpidState. */
export const VPID_OFFSET = USER_RETURN_OFFSET + USER_RETURN_SLOT_BYTES * USER_RETURN_SLOTS;
export const VpidState = { free: 0, freed: 0xfe, reserved: 0xff } as const;
export const CPU_OFFSET = VPID_OFFSET + VPIDS;

/** Views over the shared memory, once for each attachment. */
export interface VacMemory {
  readonly words: Int32Array;
  readonly quads: BigInt64Array;
  readonly bytes: Uint8Array;
  readonly cpus: number;
}

/** Byte offset of a CPU's block. */
export function cpuBlock(cpu: number): number {
  return CPU_OFFSET + cpu * CPU_BYTES;
}

/** New shared memory for a machine with `cpus` logical CPUs (1 to 64). */
export function createVacMemory(cpus: number): SharedArrayBuffer {
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > MAX_CPUS)
    throw new RangeError(`VAC takes 1 to ${MAX_CPUS} CPUs, not ${cpus}`);
  const totalBytes = CPU_OFFSET + cpus * CPU_BYTES;
  const shared = new SharedArrayBuffer(totalBytes);
  const words = new Int32Array(shared);
  words[Header.major] = VAC_VERSION.major;
  words[Header.minor] = VAC_VERSION.minor;
  words[Header.headerBytes] = HEADER_BYTES;
  words[Header.totalBytes] = totalBytes;
  words[Header.cpus] = cpus;
  words[Header.ownersOffset] = OWNERS_OFFSET;
  words[Header.ownerBytes] = OWNER_BYTES;
  words[Header.userReturnOffset] = USER_RETURN_OFFSET;
  words[Header.vpidOffset] = VPID_OFFSET;
  words[Header.cpuOffset] = CPU_OFFSET;
  words[Header.cpuBytes] = CPU_BYTES;
  words[Header.vpidNext] = 1;
  new Uint8Array(shared)[VPID_OFFSET] = VpidState.reserved; // VPID 0 is the host's
  Atomics.store(words, Header.magic, VAC_MAGIC);
  return shared;
}

/** Views over memory that `createVacMemory` made. Throws where the header is not one that this code understands. */
export function openVacMemory(shared: SharedArrayBuffer): VacMemory {
  if (shared.byteLength < HEADER_BYTES) throw new Error(`VAC memory of ${shared.byteLength} bytes has no header`);
  const words = new Int32Array(shared);
  const { major, minor } = VAC_VERSION;
  if (Atomics.load(words, Header.magic) !== VAC_MAGIC) throw new Error("this is not VAC memory: wrong magic number");
  const theirs = `${words[Header.major]}.${words[Header.minor]}`;
  if (words[Header.major] !== major || words[Header.minor] < minor)
    throw new Error(`VAC memory has layout ${theirs}; this code needs ${major}.${minor} or a later ${major}.x`);
  const expected: [string, number, number][] = [
    ["header", words[Header.headerBytes], HEADER_BYTES],
    ["owners", words[Header.ownersOffset], OWNERS_OFFSET],
    ["owner", words[Header.ownerBytes], OWNER_BYTES],
    ["user-return slots", words[Header.userReturnOffset], USER_RETURN_OFFSET],
    ["VPIDs", words[Header.vpidOffset], VPID_OFFSET],
    ["CPU blocks", words[Header.cpuOffset], CPU_OFFSET],
    ["CPU block", words[Header.cpuBytes], CPU_BYTES],
  ];
  for (const [what, has, needs] of expected)
    if (has !== needs)
      throw new Error(`VAC memory of layout ${theirs} is damaged: ${what} at or of ${has} bytes, not ${needs}`);
  if (words[Header.totalBytes] > shared.byteLength)
    throw new Error(`VAC memory is cut short: ${shared.byteLength} of ${words[Header.totalBytes]} bytes`);
  const cpus = words[Header.cpus];
  return { words, quads: new BigInt64Array(shared, 0, shared.byteLength >> 3), bytes: new Uint8Array(shared), cpus };
}
