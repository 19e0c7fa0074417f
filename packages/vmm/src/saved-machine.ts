/** What a VMM that goes on elsewhere must know of its own: which descriptors and addresses are the VM's. */
import { type Section, sectionList, struct, u32, u64 } from "@mkvm/kvm-abi";

/** Entries are vCPUs, in the order in which they were made. */
const MachineState = sectionList("vmm.machine", {
  version: 1,
  required: true,
  fixed: struct("vmm_machine", 40, {
    memory_address: u64(0), // of guest RAM in the process
    memory_bytes: u64(8),
    rom_address: u64(16),
    rom_bytes: u64(24), // 0: there is none
    system_fd: u32(32),
    vm_fd: u32(36),
  }),
  entry: struct("vmm_vcpu", 8, { id: u32(0), fd: u32(4) }),
});

export interface SavedMachine {
  readonly memory: { readonly address: number; readonly bytes: number };
  readonly rom: { readonly address: number; readonly bytes: number } | undefined;
  readonly systemFd: number;
  readonly vmFd: number;
  readonly vcpus: readonly { readonly id: number; readonly fd: number }[];
}

export function saveMachine(machine: SavedMachine): Section {
  const { memory, rom, systemFd, vmFd, vcpus } = machine;
  return MachineState.encode(
    0,
    {
      memory_address: BigInt(memory.address),
      memory_bytes: BigInt(memory.bytes),
      rom_address: BigInt(rom?.address ?? 0),
      rom_bytes: BigInt(rom?.bytes ?? 0),
      system_fd: systemFd,
      vm_fd: vmFd,
    },
    vcpus.map(({ id, fd }) => ({ id, fd })),
  );
}

/** A sentence: why not. */
export function readMachine(sections: readonly Section[]): SavedMachine | string {
  const state = MachineState.find(sections);
  if (typeof state === "string") return state;
  const { fixed, entries } = state;
  return {
    memory: { address: Number(fixed.memory_address), bytes: Number(fixed.memory_bytes) },
    rom: fixed.rom_bytes === 0n ? undefined : { address: Number(fixed.rom_address), bytes: Number(fixed.rom_bytes) },
    systemFd: fixed.system_fd,
    vmFd: fixed.vm_fd,
    vcpus: entries,
  };
}
