/**
 * A VMM that drives an interrupt line, and whose slice is over whenever a call of it has been made: it waits for its turn with the result of
 * one. Wherever it goes on, it drives the line once and looks whether KVM was told.
 */
import {
  Ioctl,
  IrqchipId,
  KvmIrqchip,
  KvmIrqLevel,
  type Main,
  type SystemCalls,
  sectionList,
  struct,
  u32,
} from "@mkvm/kvm-abi";

const State = sectionList("interrupt-line-program.state", {
  version: 1,
  required: true,
  fixed: struct("interrupt_line_program_state", 12, { vm: u32(0), place: u32(4), level: u32(8) }),
  entry: struct("interrupt_line_program_none", 4, { reserved: u32(0) }),
});

const IRQ = 4;
/** More than a slice. */
const TURN_NS = 3_000_000;

function say(sys: SystemCalls, text: string): void {
  const bytes = new TextEncoder().encode(`${text}\n`);
  const at = sys.mmap(4096, -1, 0);
  sys.memory.u8.set(bytes, at);
  sys.write(1, at, bytes.length);
  sys.munmap(at, 4096);
}

export const main: Main = async (sys) => {
  const { u8, view } = sys.memory;
  const ioctl = async (fd: number, request: number, argument: number): Promise<number> => {
    const result = await sys.ioctl(fd, request, argument);
    if (result < 0) throw new Error(`ioctl 0x${request.toString(16)}: ${result}`);
    return result;
  };
  const state = { vm: 0, place: 0, level: 0 };
  /** The other level than before; as a device's, it is taken for driven when the call begins. */
  const drive = (): Promise<number> => {
    state.level ^= 1;
    u8.set(KvmIrqLevel.encode({ irq: IRQ, level: state.level }), state.place);
    return ioctl(state.vm, Ioctl.KVM_IRQ_LINE, state.place);
  };
  /** What the IOAPIC, whose pin is masked, says of the line. */
  const told = async (): Promise<number> => {
    u8.set(KvmIrqchip.encode({ chip_id: IrqchipId.KVM_IRQCHIP_IOAPIC }), state.place);
    await ioctl(state.vm, Ioctl.KVM_GET_IRQCHIP, state.place);
    return (KvmIrqchip.fields.chip.members.ioapic.read(view, state.place).irr >> IRQ) & 1;
  };

  const restored = sys.restored();
  if (restored === undefined) {
    state.place = sys.mmap(4096, -1, 0);
    state.vm = await ioctl(sys.open("/dev/kvm"), Ioctl.KVM_CREATE_VM, 0);
    await ioctl(state.vm, Ioctl.KVM_CREATE_IRQCHIP, 0);
  } else {
    const saved = State.find(restored);
    if (typeof saved === "string") throw new Error(saved);
    Object.assign(state, saved.fixed);
  }
  sys.onSave(() => ({
    sections: [State.encode(0, state)],
    memory: [{ address: state.place, lengthBytes: 4096 }],
  }));
  await drive();
  const level = await told();
  say(sys, level === state.level ? "KVM was told" : `the line is ${state.level}, KVM believes ${level}`);
  for (;;) {
    const until = sys.clockMonotonicNs() + TURN_NS;
    while (sys.clockMonotonicNs() < until);
    await drive();
  }
};
