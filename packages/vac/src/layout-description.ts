/**
 * The layout of VAC's shared memory as data: every byte of every block. Offsets are the ones that layout.ts works with; sizes and
 * types are added here, and `struct` refuses gaps and overlaps. The ABI gate compares it between versions.
 */
import { array, bytes, type Fields, type Struct, struct, structs, u32, u64 } from "@mkvm/kvm-abi";
import {
  CPU_BYTES,
  CPU_OFFSET,
  CpuBlock,
  HEADER_BYTES,
  Header,
  LoadedEntry,
  MAX_LOADED_VMCSS,
  MAX_NAME_BYTES,
  MAX_OWNERS,
  OWNER_BYTES,
  OWNERS_OFFSET,
  Owner,
  USER_RETURN_OFFSET,
  USER_RETURN_SLOT_BYTES,
  USER_RETURN_SLOTS,
  UserReturnSlot,
  UserReturnValue,
  VAC_MAGIC,
  VAC_VERSION,
  VPID_OFFSET,
  VPIDS,
} from "./layout.ts";

/** One block of shared memory: `count` structures of `strideBytes`, or single bytes where there is no structure. */
export interface VacBlock {
  readonly name: string;
  /** Bytes from the start. */
  readonly offset: number;
  readonly strideBytes: number;
  /** Missing where there is one for each CPU of the machine. */
  readonly count?: number;
  readonly struct?: Struct<Fields>;
}

const word = (index: number) => u32(index * 4);
const headerWords = Object.fromEntries(Object.entries(Header).map(([name, index]) => [name, word(index)]));
const headerEnd = 4 * (Math.max(...Object.values(Header)) + 1);
/** What tells an attaching side how large the header and a CPU's block are. */
const sizeNegotiatedBy = "the sizes in the header";

const VacHeader = struct(
  "vac_header",
  HEADER_BYTES,
  { ...headerWords, reserved: array(headerEnd, u32, (HEADER_BYTES - headerEnd) / 4) },
  undefined,
  { sizeNegotiatedBy },
);

const VacOwner = struct("vac_owner", OWNER_BYTES, {
  claimed: word(Owner.claimed),
  cpusLow: word(Owner.cpusLow),
  cpusHigh: word(Owner.cpusHigh),
  nameBytes: word(Owner.nameBytes),
  name: bytes(Owner.name * 4, MAX_NAME_BYTES),
  reserved: bytes(Owner.name * 4 + MAX_NAME_BYTES, OWNER_BYTES - Owner.name * 4 - MAX_NAME_BYTES),
});

const VacUserReturnSlot = struct("vac_user_return_slot", USER_RETURN_SLOT_BYTES, {
  msr: word(UserReturnSlot.msr),
  owners: word(UserReturnSlot.owners),
});

const VacUserReturnValue = struct("vac_user_return_value", UserReturnValue.bytes, {
  host: u64(UserReturnValue.host),
  current: u64(UserReturnValue.current),
  owner: u32(UserReturnValue.owner),
  reserved: u32(UserReturnValue.owner + 4),
});

const VacLoadedEntry = struct("vac_loaded_entry", LoadedEntry.bytes, {
  vmcs: u64(LoadedEntry.vmcs),
  owner: u32(LoadedEntry.owner),
  reserved: u32(LoadedEntry.owner + 4),
});

const cpuEnd = CpuBlock.vpids + VPIDS / 8;
const countsEnd = CpuBlock.enableCounts + 4 * (MAX_OWNERS + 1);

const VacCpu = struct(
  "vac_cpu",
  CPU_BYTES,
  {
    attached: u32(CpuBlock.attached),
    enableTotal: u32(CpuBlock.enableTotal),
    emergency: u32(CpuBlock.emergency),
    vpidGeneration: u32(CpuBlock.vpidGeneration),
    runningOwner: u32(CpuBlock.runningOwner),
    runningToken: u32(CpuBlock.runningToken),
    loadedCount: u32(CpuBlock.loadedCount),
    reserved0: u32(CpuBlock.loadedCount + 4),
    vmxonRegion: u64(CpuBlock.vmxonRegion),
    saveArea: u64(CpuBlock.saveArea),
    enableCounts: array(CpuBlock.enableCounts, u32, MAX_OWNERS + 1),
    reserved1: bytes(countsEnd, CpuBlock.userReturn - countsEnd),
    userReturn: structs(CpuBlock.userReturn, VacUserReturnValue, USER_RETURN_SLOTS),
    loaded: structs(CpuBlock.loaded, VacLoadedEntry, MAX_LOADED_VMCSS),
    asidGeneration: u32(CpuBlock.asidGeneration),
    asidNext: u32(CpuBlock.asidNext),
    asidFirst: u32(CpuBlock.asidFirst),
    asidLast: u32(CpuBlock.asidLast),
    asidFlushOwed: u32(CpuBlock.asidFlushOwed),
    tscRatioOwner: u32(CpuBlock.tscRatioOwner),
    tscRatio: u64(CpuBlock.tscRatio),
    suspended: u32(CpuBlock.suspended),
    vpids: bytes(CpuBlock.vpids, VPIDS / 8),
    ...(cpuEnd < CPU_BYTES ? { reserved2: bytes(cpuEnd, CPU_BYTES - cpuEnd) } : {}),
  },
  undefined,
  { sizeNegotiatedBy },
);

/** The layout of this version, as data. `blocks` are in the order of their places. */
export const VAC_LAYOUT: {
  readonly name: "vac";
  readonly magic: number;
  readonly version: { readonly major: number; readonly minor: number };
  readonly blocks: readonly VacBlock[];
} = {
  name: "vac",
  magic: VAC_MAGIC,
  version: VAC_VERSION,
  blocks: [
    { name: "header", offset: 0, strideBytes: HEADER_BYTES, count: 1, struct: VacHeader },
    { name: "owners", offset: OWNERS_OFFSET, strideBytes: OWNER_BYTES, count: MAX_OWNERS, struct: VacOwner },
    {
      name: "userReturnSlots",
      offset: USER_RETURN_OFFSET,
      strideBytes: USER_RETURN_SLOT_BYTES,
      count: USER_RETURN_SLOTS,
      struct: VacUserReturnSlot,
    },
    { name: "vpids", offset: VPID_OFFSET, strideBytes: 1, count: VPIDS },
    { name: "cpus", offset: CPU_OFFSET, strideBytes: CPU_BYTES, struct: VacCpu },
  ],
};
