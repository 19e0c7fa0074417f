/** A VMM of a page: runs a 64-bit guest that does nothing but exit, and says how long each round trip took. */
import { Ioctl, KvmRegs, KvmSegment, KvmSregs, KvmUserspaceMemoryRegion, type Main, type SystemCalls } from "@mkvm/kvm-abi";

const RAM_BYTES = 0x40_0000;
const CODE = 0x8000;
const CPUID_ROOM = 8 + 100 * 40;
const KVM_EXIT_IO = 2;
const KVM_EXIT_HLT = 5;

/** mov ecx, 0; mov eax, 1; cpuid: in a loop counted down in RSI, and HLT. */
const CPUID_LOOP = [0x31, 0xc9, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x48, 0xff, 0xce, 0x75, 0xf2, 0xf4];
/** out 0x80, al, in the same loop: a port that no device of the kernel owns. */
const OUT_LOOP = [0xe6, 0x80, 0x48, 0xff, 0xce, 0x75, 0xf9, 0xf4];
/** in al, 0x80, likewise. */
const IN_LOOP = [0xe4, 0x80, 0x48, 0xff, 0xce, 0x75, 0xf9, 0xf4];
/** Reads the TSC until RSI ticks have passed since the start: R10 is the longest time between two readings, R11 their number. */
const GAP_LOOP = [
  ...[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0], // rdtsc; shl rdx, 32; or rax, rdx
  ...[0x49, 0x89, 0xc0, 0x49, 0x89, 0xc1, 0x4d, 0x31, 0xd2, 0x4d, 0x31, 0xdb], // mov r8, rax; mov r9, rax; xor r10, r10; xor r11, r11
  ...[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0], // again: the TSC
  ...[0x48, 0x89, 0xc1, 0x4c, 0x29, 0xc9, 0x49, 0x89, 0xc1], // mov rcx, rax; sub rcx, r9; mov r9, rax
  ...[0x4c, 0x39, 0xd1, 0x4c, 0x0f, 0x47, 0xd1, 0x49, 0xff, 0xc3], // cmp rcx, r10; cmova r10, rcx; inc r11
  ...[0x48, 0x89, 0xc1, 0x4c, 0x29, 0xc1, 0x48, 0x39, 0xf1, 0x72, 0xd9, 0xf4], // mov rcx, rax; sub rcx, r8; cmp rcx, rsi; jb again; hlt
];
const LOOPS: Readonly<Record<string, readonly number[]>> = { cpuid: CPUID_LOOP, out: OUT_LOOP, in: IN_LOOP, gap: GAP_LOOP };

function must(result: number): number {
  if (result < 0) throw new Error(`errno ${-result}`);
  return result;
}

interface Vm {
  vcpu: number;
  ram: number;
  run: number;
  ioctl(fd: number, request: number, argument?: Uint8Array): Promise<number>;
}

async function createVm(sys: SystemCalls): Promise<Vm> {
  const buffer = must(sys.mmap(1 << 16, -1, 0));
  const ioctl = async (fd: number, request: number, argument?: Uint8Array): Promise<number> => {
    if (argument) sys.memory.u8.set(argument, buffer);
    const result = must(await sys.ioctl(fd, request, argument ? buffer : 0));
    argument?.set(sys.memory.u8.subarray(buffer, buffer + argument.length));
    return result;
  };
  const system = must(sys.open("/dev/kvm"));
  const vm = await ioctl(system, Ioctl.KVM_CREATE_VM);
  const ram = must(sys.mmap(RAM_BYTES, -1, 0));
  const region = { slot: 0, guest_phys_addr: 0n, memory_size: BigInt(RAM_BYTES), userspace_addr: BigInt(ram) };
  await ioctl(vm, Ioctl.KVM_SET_USER_MEMORY_REGION, KvmUserspaceMemoryRegion.encode(region));
  const vcpu = await ioctl(vm, Ioctl.KVM_CREATE_VCPU);
  const table = new Uint8Array(CPUID_ROOM);
  new DataView(table.buffer).setUint32(0, 100, true);
  await ioctl(system, Ioctl.KVM_GET_SUPPORTED_CPUID, table);
  await ioctl(vcpu, Ioctl.KVM_SET_CPUID2, table);
  const run = must(sys.mmap(12288, vcpu, 0));
  return { vcpu, ram, run, ioctl };
}

/** 64-bit mode with the first GiB mapped one to one. */
async function startLong(sys: SystemCalls, vm: Vm, code: readonly number[], rounds: number): Promise<void> {
  const { view, u8 } = sys.memory;
  view.setBigUint64(vm.ram + 0x1000, 0x2003n, true);
  view.setBigUint64(vm.ram + 0x2000, 0x3003n, true);
  for (let index = 0; index < 512; index++) view.setUint32(vm.ram + 0x3000 + index * 8, (index * 0x20_0000) | 0x83, true);
  u8.set(code, vm.ram + CODE);
  const bytes = new Uint8Array(KvmSregs.sizeBytes);
  await vm.ioctl(vm.vcpu, Ioctl.KVM_GET_SREGS, bytes);
  const sregs = KvmSregs.read(bytes);
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, db: 0, s: 1, l: 0, g: 1, avl: 0, unusable: 0, padding: 0 };
  sregs.cs = KvmSegment.read(KvmSegment.encode({ ...flat, selector: 8, type: 11, l: 1 }));
  const data = KvmSegment.read(KvmSegment.encode({ ...flat, selector: 16, type: 3, db: 1 }));
  Object.assign(sregs, { ds: data, es: data, fs: data, gs: data, ss: data });
  Object.assign(sregs, { cr0: 0x8000_0033n, cr3: 0x1000n, cr4: 0x620n, efer: 0x500n });
  await vm.ioctl(vm.vcpu, Ioctl.KVM_SET_SREGS, KvmSregs.encode(sregs));
  const regs = { rip: BigInt(CODE), rsp: 0x7000n, rsi: BigInt(rounds), rflags: 2n };
  await vm.ioctl(vm.vcpu, Ioctl.KVM_SET_REGS, KvmRegs.encode(regs));
}

/** Runs the loop to its HLT; nanoseconds for each exit, by the clock and of this thread's CPU time. */
async function measure(sys: SystemCalls, vm: Vm, name: string, rounds: number): Promise<{ wallNs: number; cpuNs: number }> {
  await startLong(sys, vm, LOOPS[name], rounds);
  const { view } = sys.memory;
  const began = sys.clockMonotonicNs();
  const cpu = process.threadCpuUsage();
  for (;;) {
    const pending = sys.ioctl(vm.vcpu, Ioctl.KVM_RUN, 0);
    must(typeof pending === "number" ? pending : await pending);
    const reason = view.getUint32(vm.run + 8, true);
    if (reason === KVM_EXIT_HLT) break;
    if (reason !== KVM_EXIT_IO) throw new Error(`exit reason ${reason}`);
  }
  const { user, system } = process.threadCpuUsage(cpu);
  return { wallNs: (sys.clockMonotonicNs() - began) / rounds, cpuNs: ((user + system) * 1000) / rounds };
}

/** Runs the loop of TSC readings from one instant to another; says the longest gap in nanoseconds and how often the guest read. */
async function gaps(sys: SystemCalls, vm: Vm, beginNs: number, endNs: number): Promise<string> {
  const tscKhz = await vm.ioctl(vm.vcpu, Ioctl.KVM_GET_TSC_KHZ);
  // The engine of a VM is made when it first runs, and takes the CPU for a while: not what is measured
  await measure(sys, vm, "gap", 10 * tscKhz);
  await sys.sleepNs(beginNs - sys.clockMonotonicNs());
  await measure(sys, vm, "gap", Math.round(((endNs - beginNs) / 1e6) * tscKhz));
  const bytes = new Uint8Array(KvmRegs.sizeBytes);
  await vm.ioctl(vm.vcpu, Ioctl.KVM_GET_REGS, bytes);
  const { r10, r11 } = KvmRegs.read(bytes);
  return `${((Number(r10) * 1e6) / tscKhz).toFixed(0)} ${r11}\n`;
}

/** Arguments: "gap", and monotonic nanoseconds of begin and end; or kind of exit, exits in a sample, samples. Prints a line for each sample after a warm-up: nanoseconds
 * an exit by the clock, and of CPU time. */
export const main: Main = async (sys, [kind, exits, samples]) => {
  const vm = await createVm(sys);
  const line = must(sys.mmap(4096, -1, 0));
  const rounds = Number(exits);
  if (kind === "gap") {
    const text = new TextEncoder().encode(await gaps(sys, vm, rounds, Number(samples)));
    sys.memory.u8.set(text, line);
    sys.write(1, line, text.length);
    return 0;
  }
  await measure(sys, vm, kind, rounds);
  for (let sample = 0; sample < Number(samples); sample++) {
    const { wallNs, cpuNs } = await measure(sys, vm, kind, rounds);
    const text = new TextEncoder().encode(`${wallNs.toFixed(1)} ${cpuNs.toFixed(1)}\n`);
    sys.memory.u8.set(text, line);
    sys.write(1, line, text.length);
  }
  return 0;
};
