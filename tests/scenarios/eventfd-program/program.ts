/** A VMM with eventfds and a vCPU that runs nothing, which takes part in being saved: wherever it goes on, it sees whether they are what they were. */
import {
  EfdFlag,
  Ioctl,
  IrqchipId,
  KvmIoeventfd,
  KvmIrqchip,
  KvmIrqfd,
  KvmRun,
  type Main,
  type SystemCalls,
  sectionList,
  struct,
  u32,
  VCPU_MMAP_SIZE_BYTES,
} from "@mkvm/kvm-abi";

const State = sectionList("eventfd-program.state", {
  version: 1,
  required: true,
  fixed: struct("eventfd_program_state", 20, {
    vm: u32(0),
    counter: u32(4),
    interrupt: u32(8),
    place: u32(12),
    vcpu: u32(16),
  }),
  entry: struct("eventfd_program_none", 4, { reserved: u32(0) }),
});
type Fds = { vm: number; counter: number; interrupt: number; place: number; vcpu: number };

const COUNT = 5n;
const GSI = 3;
const EEXIST = -17;
const EAGAIN = -11;
const IOEVENTFD = { addr: 0xd000_0000n, len: 4 };

async function setUp(sys: SystemCalls): Promise<Fds> {
  const place = sys.mmap(4096, -1, 0);
  const vm = (await sys.ioctl(sys.open("/dev/kvm"), Ioctl.KVM_CREATE_VM, 0)) as number;
  await sys.ioctl(vm, Ioctl.KVM_CREATE_IRQCHIP, 0);
  const vcpu = (await sys.ioctl(vm, Ioctl.KVM_CREATE_VCPU, 0)) as number;
  const counter = sys.eventfd(Number(COUNT), EfdFlag.EFD_NONBLOCK);
  const interrupt = sys.eventfd(0, EfdFlag.EFD_NONBLOCK);
  sys.memory.u8.set(KvmIoeventfd.encode({ ...IOEVENTFD, fd: counter }), place);
  await sys.ioctl(vm, Ioctl.KVM_IOEVENTFD, place);
  sys.memory.u8.set(KvmIrqfd.encode({ fd: interrupt, gsi: GSI }), place);
  await sys.ioctl(vm, Ioctl.KVM_IRQFD, place);
  return { vm, counter, interrupt, place, vcpu };
}

/** What is not as it was. */
async function problems(sys: SystemCalls, { vm, counter, interrupt, place }: Fds): Promise<string[]> {
  const { u8, view } = sys.memory;
  const found: string[] = [];
  const expect = (what: string, is: unknown, wanted: unknown): void => {
    if (is !== wanted) found.push(`${what}: ${is}, not ${wanted}`);
  };
  expect("reading the counter", await sys.read(counter, place, 8), 8);
  expect("the counter", view.getBigUint64(place, true), COUNT);
  expect("writing it", sys.write(counter, place, 8), 8);
  u8.set(KvmIoeventfd.encode({ ...IOEVENTFD, fd: counter }), place);
  expect("the ioeventfd again", await sys.ioctl(vm, Ioctl.KVM_IOEVENTFD, place), EEXIST);
  const pic = KvmIrqchip.fields.chip.members.pic;
  u8.set(KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_PIC_MASTER }), place);
  await sys.ioctl(vm, Ioctl.KVM_GET_IRQCHIP, place);
  pic.write(view, place, { ...pic.read(view, place), irr: 0, last_irr: 0 });
  await sys.ioctl(vm, Ioctl.KVM_SET_IRQCHIP, place);
  view.setBigUint64(place, 1n, true);
  expect("writing the irqfd", sys.write(interrupt, place, 8), 8);
  expect("reading it", await sys.read(interrupt, place, 8), EAGAIN);
  u8.set(KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_PIC_MASTER }), place);
  await sys.ioctl(vm, Ioctl.KVM_GET_IRQCHIP, place);
  expect("the interrupt", pic.read(view, place).irr, 1 << GSI);
  return found;
}

function say(sys: SystemCalls, text: string): void {
  const bytes = new TextEncoder().encode(text);
  const at = sys.mmap(4096, -1, 0);
  sys.memory.u8.set(bytes, at);
  sys.write(1, at, bytes.length);
  sys.munmap(at, 4096);
}

export const main: Main = async (sys) => {
  const restored = sys.restored();
  let fds: Fds;
  if (restored === undefined) fds = await setUp(sys);
  else {
    const state = State.find(restored);
    if (typeof state === "string") throw new Error(state);
    fds = state.fixed;
  }
  const save = () => ({
    sections: [State.encode(0, fds)],
    memory: [{ address: fds.place, lengthBytes: 4096 }],
  });
  sys.onSave(save);
  // A move to another CPU ends with the first KVM_RUN there
  sys.memory.u8[sys.mmap(VCPU_MMAP_SIZE_BYTES, fds.vcpu, 0) + KvmRun.offsets.immediate_exit] = 1;
  await sys.ioctl(fds.vcpu, Ioctl.KVM_RUN, 0);
  const found = await problems(sys, fds);
  say(sys, found.length === 0 ? "as they were\n" : `${found.join("; ")}\n`);
  // It looks again, on whichever module it is then, when it is told to
  const end = sys.mmap(4096, -1, 0);
  while ((await sys.read(0, end, 1)) > 0) {
    const again = await problems(sys, fds);
    say(sys, again.length === 0 ? "still so\n" : `${again.join("; ")}\n`);
  }
  return 0;
};
