import { Ioctl, type KvmRegs, KvmSregs, KvmRegs as Regs, type StructInput } from "@mkvm/kvm-abi";
import type { GuestMemory } from "../guest-memory.ts";
import type { KvmCalls } from "../kvm-calls.ts";
import type { EntryPoint } from "../loaders/guest-image.ts";
import { GDT, IDENTITY_PAGE_TABLES } from "../memory-layout.ts";

const CR0_PE = 1n,
  CR0_ET = 1n << 4n,
  CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const EFER_LME = 1n << 8n,
  EFER_LMA = 1n << 10n;
const RFLAGS_FIXED = 2n;
/** Selectors of the GDT below: index 2 and 3, as the Linux boot protocols name them. */
const CODE_SELECTOR = 0x10,
  DATA_SELECTOR = 0x18,
  TASK_SELECTOR = 0x20;
const PAGE_PRESENT_WRITABLE = 3;
const PAGE_LARGE = 0x80;
const LARGE_PAGE_BYTES = 1 << 21;

/** Sets the boot CPU's registers for the entry point; other vCPUs wait for a start-up IPI. */
export async function setBootRegisters(kvm: KvmCalls, vcpuFd: number, memory: GuestMemory, entry: EntryPoint): Promise<void> {
  if (entry.mode === "reset") return;
  const sregs = await kvm.get(vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
  if (entry.mode === "real") {
    const flat = { base: 0n, selector: 0 };
    for (const name of ["cs", "ds", "es", "fs", "gs", "ss"] as const) Object.assign(sregs[name], flat);
  } else {
    const long = entry.mode === "long";
    writeDescriptorTable(memory, long);
    const common = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0, padding: 0 };
    sregs.cs = { ...common, selector: CODE_SELECTOR, type: 11, db: long ? 0 : 1, l: long ? 1 : 0 };
    for (const name of ["ds", "es", "fs", "gs", "ss"] as const)
      sregs[name] = { ...common, selector: DATA_SELECTOR, type: 3, db: 1, l: 0 };
    sregs.tr = { ...common, limit: 0x67, selector: TASK_SELECTOR, type: 11, s: 0, g: 0, db: 0, l: 0 };
    sregs.gdt = { base: BigInt(GDT), limit: 5 * 8 - 1, padding: [0, 0, 0] };
    sregs.idt = { base: 0n, limit: 0, padding: [0, 0, 0] };
    sregs.cr0 = CR0_PE | CR0_ET;
    if (long) {
      sregs.cr3 = BigInt(writeIdentityMap(memory));
      sregs.cr4 = CR4_PAE;
      sregs.cr0 |= CR0_PG;
      sregs.efer = EFER_LME | EFER_LMA;
    }
  }
  await kvm.set(vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs);
  const registers: Record<string, bigint> = { rip: BigInt(entry.rip), rflags: RFLAGS_FIXED };
  for (const [name, value] of Object.entries(entry.registers)) registers[name] = BigInt(value);
  await kvm.set(vcpuFd, Ioctl.KVM_SET_REGS, Regs, registers as StructInput<(typeof KvmRegs)["fields"]>);
}

function writeDescriptorTable(memory: GuestMemory, long: boolean): void {
  memory.fill(GDT, 6 * 8);
  memory.setU64(GDT + CODE_SELECTOR, long ? 0x00af_9b00_0000_ffffn : 0x00cf_9b00_0000_ffffn);
  memory.setU64(GDT + DATA_SELECTOR, 0x00cf_9300_0000_ffffn);
  memory.setU64(GDT + TASK_SELECTOR, 0x0000_8b00_0000_0067n);
}

/** Identity map of the first 4 GiB in 2 MiB pages: PML4, PDPT, four page directories. Returns the address of the PML4. */
function writeIdentityMap(memory: GuestMemory): number {
  const PAGE = 4096,
    ENTRIES = 512,
    DIRECTORIES = 4;
  const pdpt = IDENTITY_PAGE_TABLES + PAGE;
  memory.fill(IDENTITY_PAGE_TABLES, (2 + DIRECTORIES) * PAGE);
  memory.setU64(IDENTITY_PAGE_TABLES, pdpt | PAGE_PRESENT_WRITABLE);
  for (let directory = 0; directory < DIRECTORIES; directory++) {
    const table = pdpt + (1 + directory) * PAGE;
    memory.setU64(pdpt + directory * 8, table | PAGE_PRESENT_WRITABLE);
    for (let index = 0; index < ENTRIES; index++) {
      memory.setU64(table + index * 8, (directory * ENTRIES + index) * LARGE_PAGE_BYTES + (PAGE_PRESENT_WRITABLE | PAGE_LARGE));
    }
  }
  return IDENTITY_PAGE_TABLES;
}
