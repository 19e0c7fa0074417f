/**
 * Virtual interrupts and NMIs of the VMCB, and when the guest would take them. Source: AMD64 APM Vol. 2, Virtual Interrupts;
 * Interrupt Masking in EFLAGS and Virtual Interrupt Masking; Virtual GIF; NMI Virtualization.
 */
import { state } from "../engine/cpu-state.ts";
import { Flag } from "../engine/system/bits.ts";
import { SHADOWS } from "../guest-slices.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { Control, Intercept3, InterruptState, VInterrupt } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const INTERRUPTIBILITY = state.interruptibility >>> 2;
const SYSTEM_FLAGS = state.systemFlags >>> 2;
const CR8 = state.cr8 >>> 2;
const NMI_BLOCKED = 8;
const SHADOW_OF_STI = 1;

export class VirtualInterrupts {
  engine: GuestEngine | undefined;
  readonly #cpu: RootCpu;
  /** V_IRQ, V_GIF, V_NMI and their controls, while the guest runs. */
  #word = 0;
  vector = 0;
  #interceptsInterrupts = false;
  /** The guest handles an NMI of the machine's, and further ones are blocked, whatever VMCB is run. */
  #isInNmi = false;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  load(vmcb: Vmcb, word3: number): void {
    this.#word = vmcb.low(Control.V_INTERRUPT);
    this.vector = vmcb.low(Control.V_VECTOR) & 0xff;
    this.#interceptsInterrupts = (word3 & Intercept3.intr) !== 0;
  }

  /** Into the CPU: V_TPR, shadow and blocking by NMI. */
  enter(vmcb: Vmcb): void {
    const { u32 } = this.engine as GuestEngine;
    u32[CR8] = this.#word & 0xf;
    u32[CR8 + 1] = 0;
    let blocking = (vmcb.low(Control.INTERRUPT_STATE) & InterruptState.shadow) !== 0 ? SHADOW_OF_STI : 0;
    const isBlocked = this.#hasVirtualNmis ? (this.#word & VInterrupt.nmiMask) !== 0 : this.#isInNmi;
    if (isBlocked) blocking |= NMI_BLOCKED;
    u32[INTERRUPTIBILITY] = blocking;
  }

  /** Back to the VMCB. */
  save(vmcb: Vmcb): void {
    const { u32 } = this.engine as GuestEngine;
    const blocking = u32[INTERRUPTIBILITY] as number;
    let word = (this.#word & ~VInterrupt.tpr) | ((u32[CR8] as number) & 0xf);
    if (!this.#hasVirtualNmis) this.#isInNmi &&= (blocking & NMI_BLOCKED) !== 0;
    else word = (blocking & NMI_BLOCKED) !== 0 ? word | VInterrupt.nmiMask : word & ~VInterrupt.nmiMask;
    vmcb.setLow(Control.V_INTERRUPT, word);
    const flags = (this.#hasIf() ? InterruptState.guestIf : 0) | ((blocking & SHADOWS) !== 0 ? InterruptState.shadow : 0);
    vmcb.setLow(Control.INTERRUPT_STATE, flags);
  }

  #hasIf(): boolean {
    return (((this.engine as GuestEngine).u32[SYSTEM_FLAGS] as number) & Flag.IF) !== 0;
  }
  #isShadowed(): boolean {
    this.engine?.settleShadow();
    return (((this.engine as GuestEngine).u32[INTERRUPTIBILITY] as number) & SHADOWS) !== 0;
  }
  /** With virtual GIF on, nothing virtual is taken while it is clear. */
  #isGifClear(): boolean {
    return (this.#word & (VInterrupt.gifEnable | VInterrupt.gif)) === VInterrupt.gifEnable;
  }

  /** A virtual interrupt of whatever priority is not held off. */
  acceptsInterrupts(): boolean {
    return !this.#isGifClear() && this.#hasIf() && !this.#isShadowed();
  }
  /** The guest takes the virtual interrupt now, or would if it were not intercepted. With AVIC on there is none but the backing page's. */
  isInterruptDue(): boolean {
    const word = this.#word;
    if ((word & (VInterrupt.irq | VInterrupt.avicEnable)) !== VInterrupt.irq || !this.acceptsInterrupts()) return false;
    const priority = (word >>> VInterrupt.priorityShift) & 0xf;
    const tpr = ((this.engine as GuestEngine).u32[CR8] as number) & 0xf;
    return (word & VInterrupt.ignoreTpr) !== 0 || priority > tpr;
  }
  isNmiDue(): boolean {
    const wanted = VInterrupt.nmiEnable | VInterrupt.nmi;
    if ((this.#word & wanted) !== wanted || this.#isGifClear() || this.#isShadowed()) return false;
    return (((this.engine as GuestEngine).u32[INTERRUPTIBILITY] as number) & NMI_BLOCKED) === 0;
  }
  get #hasVirtualNmis(): boolean {
    return (this.#word & VInterrupt.nmiEnable) !== 0;
  }
  /** An NMI of the machine's comes through. With virtual NMIs the blocking is that of virtual ones. */
  acceptsNmi(): boolean {
    const isBlocked = (((this.engine as GuestEngine).u32[INTERRUPTIBILITY] as number) & NMI_BLOCKED) !== 0;
    return !this.#isShadowed() && (this.#hasVirtualNmis || !isBlocked);
  }
  tookNmi(): void {
    this.#isInNmi = true;
  }

  /** Physical interrupts come through: with virtual masking the host's flag decides, which is set in guest mode. */
  isPhysicalEnabled(): boolean {
    return !this.#isShadowed() && ((this.#word & VInterrupt.masking) !== 0 || this.#hasIf());
  }

  /** Something that was held off may be taken now: `run` must stop after the instruction at hand. */
  isDue(): boolean {
    if (this.isInterruptDue() || this.isNmiDue()) return true;
    return (
      (this.#word & VInterrupt.masking) === 0 && this.isPhysicalEnabled() && this.#cpu.waitingInterrupt(this.#cpu.rdtsc()) >= 0
    );
  }
  get interceptsInterrupts(): boolean {
    return this.#interceptsInterrupts;
  }

  /** One waits, whatever holds it off. */
  get isRequested(): boolean {
    return (this.#word & VInterrupt.irq) !== 0;
  }

  takeInterrupt(): void {
    this.#word &= ~VInterrupt.irq;
  }
  takeNmi(): void {
    this.#word &= ~VInterrupt.nmi;
  }

  /** STGI and CLGI of a guest with virtual GIF; false for what is neither, or without it. */
  setVirtualGif(mnemonic: string): boolean {
    if ((this.#word & VInterrupt.gifEnable) === 0) return false;
    if (mnemonic === "STGI") this.#word |= VInterrupt.gif;
    else if (mnemonic === "CLGI") this.#word &= ~VInterrupt.gif;
    else return false;
    if (this.isDue()) (this.engine as GuestEngine).requestStop();
    return true;
  }
}
