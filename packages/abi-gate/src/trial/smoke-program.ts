/**
 * The smallest VM that shows a module to work: one vCPU in real mode writes a byte to a port, reads one back, and halts. Run as a
 * program on a scratch host. Standard error says what was not as it should be.
 */
import {
  ExitReason,
  Ioctl,
  IoDirection,
  KVM_API_VERSION,
  KvmRegs,
  KvmRun,
  KvmSregs,
  KvmUserspaceMemoryRegion,
  type Main,
  type SystemCalls,
} from "@mkvm/kvm-abi";

const GUEST_BYTES = 0x10000;
const CODE_AT = 0x1000;
/** mov al, 0x2a; out 0x10, al; in al, 0x11; out 0x12, al; hlt */
const CODE = [0xb0, 0x2a, 0xe6, 0x10, 0xe4, 0x11, 0xe6, 0x12, 0xf4];

export const main: Main = async (sys) => {
  try {
    await smoke(sys);
    return 0;
  } catch (thrown) {
    const text = new TextEncoder().encode(`${(thrown as Error).message}\n`).subarray(0, 4096);
    const buffer = sys.mmap(4096, -1, 0);
    sys.memory.u8.set(text, buffer);
    sys.write(2, buffer, text.length);
    return 1;
  }
};

async function smoke(sys: SystemCalls): Promise<void> {
  const succeeded = (what: string, result: number): number => {
    if (result < 0) throw new Error(`${what} answers ${result}`);
    return result;
  };
  const call = async (fd: number, name: keyof typeof Ioctl, argument = 0) =>
    succeeded(name, await sys.ioctl(fd, Ioctl[name], argument));
  const buffer = sys.mmap(4096, -1, 0);
  const structure = (bytes: Uint8Array): number => {
    sys.memory.u8.set(bytes, buffer);
    return buffer;
  };

  const kvm = succeeded("open of /dev/kvm", sys.open("/dev/kvm"));
  const version = await call(kvm, "KVM_GET_API_VERSION");
  if (version !== KVM_API_VERSION) throw new Error(`KVM_GET_API_VERSION answers ${version}, not ${KVM_API_VERSION}`);
  const vm = await call(kvm, "KVM_CREATE_VM");
  const memory = sys.mmap(GUEST_BYTES, -1, 0);
  sys.memory.u8.set(CODE, memory + CODE_AT);
  const region = KvmUserspaceMemoryRegion.encode({ memory_size: BigInt(GUEST_BYTES), userspace_addr: BigInt(memory) });
  await call(vm, "KVM_SET_USER_MEMORY_REGION", structure(region));
  const vcpu = await call(vm, "KVM_CREATE_VCPU", 0);
  const run = sys.mmap(await call(kvm, "KVM_GET_VCPU_MMAP_SIZE"), vcpu, 0);

  await call(vcpu, "KVM_GET_SREGS", structure(new Uint8Array(KvmSregs.sizeBytes)));
  const sregs = KvmSregs.read(sys.memory.u8, buffer);
  await call(vcpu, "KVM_SET_SREGS", structure(KvmSregs.encode({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })));
  await call(vcpu, "KVM_SET_REGS", structure(KvmRegs.encode({ rip: BigInt(CODE_AT), rflags: 2n })));

  const { io } = KvmRun.fields.exit.members;
  const exits: string[] = [];
  for (let i = 0; i < 4; i++) {
    await call(vcpu, "KVM_RUN");
    const reason = KvmRun.get(sys.memory.view, "exit_reason", run);
    if (reason !== ExitReason.KVM_EXIT_IO) {
      exits.push(String(reason));
      break;
    }
    const exit = io.read(sys.memory.view, run);
    const data = run + Number(exit.data_offset);
    if (exit.direction === IoDirection.KVM_EXIT_IO_IN) sys.memory.u8[data] = 0x55;
    exits.push(
      `${exit.direction === IoDirection.KVM_EXIT_IO_IN ? "in" : "out"} ${exit.port.toString(16)} ${sys.memory.u8[data]!.toString(16)}`,
    );
  }
  const said = exits.join(", ");
  const expected = `out 10 2a, in 11 55, out 12 55, ${ExitReason.KVM_EXIT_HLT}`;
  if (said !== expected) throw new Error(`its exits are "${said}", not "${expected}"`);
  sys.close(vcpu);
  sys.close(vm);
  sys.close(kvm);
}
