/**
 * A VMM that watches its own VM: it opens the statistics once, keeps their layout as QEMU does, and prints after each batch of
 * exits how many it made and how many the descriptors tell. Ends when its input does.
 */
import { Ioctl, KvmStatsDesc, KvmStatsHeader, type Main, type SystemCalls } from "@mkvm/kvm-abi";
import { BenchVm, Calls, ok } from "../../contract/bench-vm.ts";

const BATCH = 500;
const ROOM = 1 << 16;

/** Where values lie, as the descriptor told once. */
function layoutOf(sys: SystemCalls, fd: number, buffer: number): Map<string, number> {
  const length = ok(sys.pread(fd, buffer, ROOM, 0));
  const bytes = sys.memory.u8.slice(buffer, buffer + length);
  const header = KvmStatsHeader.read(bytes);
  const places = new Map<string, number>();
  for (let index = 0; index < header.num_desc; index++) {
    const at = header.desc_offset + index * (KvmStatsDesc.sizeBytes + header.name_size);
    const name = bytes.subarray(at + KvmStatsDesc.sizeBytes, at + KvmStatsDesc.sizeBytes + header.name_size);
    places.set(new TextDecoder().decode(name).replace(/\0.*$/s, ""), header.data_offset + KvmStatsDesc.read(bytes, at).offset);
  }
  return places;
}

export const main: Main = async (sys) => {
  const calls = new Calls(sys);
  const vm = await BenchVm.create(calls);
  const buffer = ok(sys.mmap(ROOM, -1, 0));
  const vcpuFd = ok(await calls.call(vm.vcpuFd, Ioctl.KVM_GET_STATS_FD));
  const vmFd = ok(await calls.call(vm.vmFd, Ioctl.KVM_GET_STATS_FD));
  const places = new Map([...layoutOf(sys, vcpuFd, buffer)].map(([name, place]) => [name, { fd: vcpuFd, place }]));
  for (const [name, place] of layoutOf(sys, vmFd, buffer)) places.set(name, { fd: vmFd, place });
  const value = (name: string): bigint => {
    const { fd, place } = places.get(name)!;
    if (sys.pread(fd, buffer, 8, place) !== 8) throw new Error(`${name} cannot be read`);
    return sys.memory.view.getBigUint64(buffer, true);
  };
  let ended = false;
  sys.spawnThread("input", async (own) => {
    const into = own.mmap(4096, -1, 0);
    while ((await own.read(0, into, 4096)) > 0);
    ended = true;
    return 0;
  });
  vm.code(0xe6, 0x80, 0xeb, 0xfc); // out 0x80, al; jmp to it
  for (let made = 0; !ended; ) {
    for (let exit = 0; exit < BATCH; exit++, made++) await vm.exit("KVM_EXIT_IO");
    const line = `${made} ${value("io_exits")} ${value("exits")} ${value("guest_instructions")} ${value("mmu_cache_miss")}\n`;
    sys.memory.u8.set(new TextEncoder().encode(line), buffer);
    sys.write(1, buffer, line.length);
    await sys.sleepNs(1_000_000);
  }
  return 0;
};
