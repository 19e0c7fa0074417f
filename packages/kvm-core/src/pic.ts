/** The pair of 8259A interrupt controllers of a PC. Source: Intel 8259A data sheet; edge/level control as in the PIIX. */
import type { KvmPicState, StructValue } from "@mkvm/kvm-abi";

type ChipState = StructValue<(typeof KvmPicState)["fields"]>;

export interface PicHost {
  /** The INTR output towards the vCPU with ExtINT changed. */
  outputChanged(level: boolean): void;
  /** The guest ended (or auto-ended) the interrupt of this line, 0 to 15. */
  acknowledged(irq: number): void;
}

/** Two 8259A in cascade with their ELCR. */
export interface Pic {
  /** Sets line `irq` (0 to 15) for one source (IrqSource bit). 1: delivered; 0: it was pending already; -1: masked. */
  setLine(irq: number, source: number, level: boolean): number;
  /** True for 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. */
  ownsPort(port: number): boolean;
  read(port: number): number;
  write(port: number, value: number): void;
  /** INTR output. */
  readonly output: boolean;
  /** INTA: the vector, 0 to 255; spurious IRQ 7 when nothing is there any more. */
  readInterrupt(): number;
  /** chip 0 master, 1 slave. */
  getState(chip: number): ChipState;
  setState(chip: number, state: ChipState): void;
  /** Which sources drive each line, 16 numbers. */
  readonly lines: Uint32Array;
  reset(): void;
}

/** Line of the master that the slave's output is on. */
const CASCADE = 2;
const NONE = 8;
/** Lines that cannot be level triggered: timer, keyboard, cascade; RTC, coprocessor. */
const ELCR_MASKS = [0xf8, 0xde] as const;

const Ocw2 = { eoi: 1, specificEoi: 3, rotateOnEoi: 5, setPriority: 6, rotateOnSpecificEoi: 7 } as const;

function chipState(chip: number): ChipState {
  return {
    last_irr: 0,
    irr: 0,
    imr: 0,
    isr: 0,
    priority_add: 0,
    irq_base: 0,
    read_reg_select: 0,
    poll: 0,
    special_mask: 0,
    init_state: 0,
    auto_eoi: 0,
    rotate_on_auto_eoi: 0,
    special_fully_nested_mode: 0,
    init4: 0,
    elcr: 0,
    elcr_mask: ELCR_MASKS[chip],
  };
}

export function createPic(host: PicHost): Pic {
  const chips = [chipState(0), chipState(1)];
  const [master, slave] = chips;
  const lines = new Uint32Array(16);
  let output = false;

  /** Distance of the highest of these lines from the one of highest priority, or NONE. */
  function priority(chip: ChipState, mask: number): number {
    if (mask === 0) return NONE;
    let distance = 0;
    while (!(mask & (1 << ((distance + chip.priority_add) & 7)))) distance++;
    return distance;
  }
  /** Line that the chip asks to serve, or -1. */
  function request(chip: ChipState): number {
    const wanted = priority(chip, chip.irr & ~chip.imr);
    if (wanted === NONE) return -1;
    let inService = chip.isr;
    if (chip.special_mask) inService &= ~chip.imr;
    // The slave may interrupt again while a line of its own is in service
    if (chip.special_fully_nested_mode && chip === master) inService &= ~(1 << CASCADE);
    return wanted < priority(chip, inService) ? (wanted + chip.priority_add) & 7 : -1;
  }
  function setInput(chip: ChipState, irq: number, level: boolean): number {
    const mask = 1 << irq;
    let isNew = 1;
    if (chip.elcr & mask) {
      if (level) {
        isNew = chip.irr & mask ? 0 : 1;
        chip.irr |= mask;
        chip.last_irr |= mask;
      } else {
        chip.irr &= ~mask;
        chip.last_irr &= ~mask;
      }
    } else if (level) {
      if (!(chip.last_irr & mask)) {
        isNew = chip.irr & mask ? 0 : 1;
        chip.irr |= mask;
      }
      chip.last_irr |= mask;
    } else chip.last_irr &= ~mask;
    return chip.imr & mask ? -1 : isNew;
  }
  function update(): void {
    if (request(slave) >= 0) {
      // An edge, whatever the line was
      setInput(master, CASCADE, true);
      setInput(master, CASCADE, false);
    }
    const next = request(master) >= 0;
    if (next === output) return;
    output = next;
    host.outputChanged(next);
  }
  function clearInService(chip: ChipState, irq: number): void {
    chip.isr &= ~(1 << irq);
    host.acknowledged(chip === slave ? irq + 8 : irq);
  }
  function takeInterrupt(chip: ChipState, irq: number): void {
    chip.isr |= 1 << irq;
    if (!(chip.elcr & (1 << irq))) chip.irr &= ~(1 << irq);
    if (!chip.auto_eoi) return;
    if (chip.rotate_on_auto_eoi) chip.priority_add = (irq + 1) & 7;
    clearInService(chip, irq);
  }
  /** ICW1, or a reset: what survives is the vector base, ELCR, and lines that are level triggered and high. */
  function initialise(chip: ChipState): void {
    chip.last_irr = 0;
    chip.irr &= chip.elcr;
    chip.imr = 0;
    const wasInService = chip.isr;
    chip.isr = 0;
    chip.priority_add = 0;
    chip.special_mask = 0;
    chip.read_reg_select = 0;
    if (!chip.init4) {
      chip.special_fully_nested_mode = 0;
      chip.auto_eoi = 0;
    }
    chip.init_state = 1;
    for (let irq = 0; irq < 8; irq++) if (wasInService & (1 << irq)) clearInService(chip, irq);
  }
  function writeCommand(chip: ChipState, value: number): void {
    if (value & 0x10) {
      chip.init4 = value & 1;
      initialise(chip);
      update();
      return;
    }
    if (value & 0x08) {
      if (value & 0x04) chip.poll = 1;
      if (value & 0x02) chip.read_reg_select = value & 1;
      if (value & 0x40) chip.special_mask = (value >> 5) & 1;
      update();
      return;
    }
    const command = value >> 5;
    const level = value & 7;
    switch (command) {
      case 0:
      case 4:
        chip.rotate_on_auto_eoi = command >> 2;
        break;
      case Ocw2.eoi:
      case Ocw2.rotateOnEoi: {
        const distance = priority(chip, chip.isr);
        if (distance === NONE) break;
        const irq = (distance + chip.priority_add) & 7;
        if (command === Ocw2.rotateOnEoi) chip.priority_add = (irq + 1) & 7;
        clearInService(chip, irq);
        update();
        break;
      }
      case Ocw2.specificEoi:
        clearInService(chip, level);
        update();
        break;
      case Ocw2.setPriority:
        chip.priority_add = (level + 1) & 7;
        update();
        break;
      case Ocw2.rotateOnSpecificEoi:
        chip.priority_add = (level + 1) & 7;
        clearInService(chip, level);
        update();
        break;
      default: // 2: no operation
    }
  }
  function writeData(chip: ChipState, value: number): void {
    switch (chip.init_state) {
      case 0:
        chip.imr = value;
        update();
        break;
      case 1:
        chip.irq_base = value & 0xf8;
        chip.init_state = 2;
        break;
      case 2:
        chip.init_state = chip.init4 ? 3 : 0;
        break;
      default:
        chip.special_fully_nested_mode = (value >> 4) & 1;
        chip.auto_eoi = (value >> 1) & 1;
        chip.init_state = 0;
    }
  }
  function poll(chip: ChipState): number {
    chip.poll = 0;
    const irq = request(chip);
    if (irq < 0) {
      update();
      return 0;
    }
    if (chip === slave) {
      master.isr &= ~(1 << CASCADE);
      master.irr &= ~(1 << CASCADE);
    }
    chip.irr &= ~(1 << irq);
    clearInService(chip, irq);
    update();
    return irq | 0x80;
  }

  return {
    lines,
    get output() {
      return output;
    },
    setLine(irq, source, level) {
      lines[irq] = level ? lines[irq] | source : lines[irq] & ~source;
      const result = setInput(chips[irq >> 3], irq & 7, lines[irq] !== 0);
      update();
      return result;
    },
    ownsPort: (port) => port === 0x20 || port === 0x21 || port === 0xa0 || port === 0xa1 || port === 0x4d0 || port === 0x4d1,
    read(port) {
      if (port >= 0x4d0) return chips[port & 1].elcr;
      const chip = port & 0x80 ? slave : master;
      if (chip.poll) return poll(chip);
      if (port & 1) return chip.imr;
      return chip.read_reg_select ? chip.isr : chip.irr;
    },
    write(port, value) {
      if (port >= 0x4d0) {
        const chip = chips[port & 1];
        chip.elcr = value & chip.elcr_mask;
        return;
      }
      const chip = port & 0x80 ? slave : master;
      if (port & 1) writeData(chip, value & 0xff);
      else writeCommand(chip, value & 0xff);
    },
    readInterrupt() {
      const irq = request(master);
      let vector: number;
      if (irq < 0) vector = master.irq_base + 7;
      else {
        takeInterrupt(master, irq);
        if (irq === CASCADE) {
          const slaveIrq = request(slave);
          if (slaveIrq >= 0) takeInterrupt(slave, slaveIrq);
          vector = slave.irq_base + (slaveIrq >= 0 ? slaveIrq : 7);
        } else vector = master.irq_base + irq;
      }
      update();
      return vector;
    },
    getState: (chip) => ({ ...chips[chip] }),
    setState(chip, state) {
      Object.assign(chips[chip], state, { elcr_mask: ELCR_MASKS[chip] });
      update();
    },
    reset() {
      lines.fill(0);
      chips.forEach((chip, i) => {
        Object.assign(chip, chipState(i));
      });
      update();
    },
  };
}
