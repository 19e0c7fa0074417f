/**
 * The SVM side of one vCPU: its VMCB, the registers that VMLOAD and VMSAVE move, NMI blocking, its ASID. Which events go in and what
 * an exit means to the vCPU is the version's. Source: AMD64 APM Vol. 2, Secure Virtual Machine.
 */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import type { AsidTag, OwnerId, Vac } from "@mkvm/vac";
import { Msr } from "../arch/msr-index.ts";
import { Gpr, Rflags, SegmentRegister } from "../arch/registers.ts";
import { SvmExitCode } from "../arch/svm-exit-codes.ts";
import { Intercept1, SvmEvent, TlbControl, VirtualInterrupt, VmcbControl, VmcbSave } from "../arch/vmcb-layout.ts";
import { exceptionHasErrorCode, type SegmentState } from "../guest/guest-cpu.ts";
import type { DebugIntercepts } from "../guest/guest-debug.ts";
import type { SvmCapabilities } from "./capabilities.ts";
import type { SvmExit } from "./exit-handlers.ts";
import { NmiBlocking } from "./nmi-blocking.ts";
import { Vmcb } from "./vmcb.ts";
import { EFER_SVME } from "./vmcb-setup.ts";

const SUCCEED = 0;
const BP = 3;
const OF = 4;
const SHADOW_OF_BOTH = 3;
const INTERCEPT_BP = 1 << BP;
const ALL_ONES = 0xffff_ffff;

/** MSRs in the VMCB, by offset. */
const LOADED_BY_VMRUN: ReadonlyMap<number, number> = new Map<number, number>([
  [Msr.IA32_PAT, VmcbSave.G_PAT],
  [Msr.IA32_DEBUGCTL, VmcbSave.DBGCTL],
]);
const LOADED_BY_VMLOAD: ReadonlyMap<number, number> = new Map<number, number>([
  [Msr.IA32_STAR, VmcbSave.STAR],
  [Msr.IA32_LSTAR, VmcbSave.LSTAR],
  [Msr.IA32_CSTAR, VmcbSave.CSTAR],
  [Msr.IA32_FMASK, VmcbSave.SFMASK],
  [Msr.IA32_KERNEL_GS_BASE, VmcbSave.KERNEL_GS_BASE],
  [Msr.IA32_SYSENTER_CS, VmcbSave.SYSENTER_CS],
  [Msr.IA32_SYSENTER_ESP, VmcbSave.SYSENTER_ESP],
  [Msr.IA32_SYSENTER_EIP, VmcbSave.SYSENTER_EIP],
  [Msr.IA32_FS_BASE, VmcbSave.FS + 8],
  [Msr.IA32_GS_BASE, VmcbSave.GS + 8],
]);

export interface SvmInjection {
  readonly kind: "exception" | "software-exception" | "interrupt" | "software-interrupt" | "nmi";
  readonly vector: number;
  readonly errorCode: number | undefined;
  /** Of the instruction behind a software event. */
  readonly instructionLength: number;
}
/** An event whose delivery an exit cut short. */
export interface CutShort {
  readonly kind: "exception" | "interrupt" | "nmi";
  readonly vector: number;
  readonly errorCode: number | undefined;
  /** Not 0: INT3 or INTO that was injected, with the length of the instruction behind it. */
  readonly instructionLength: number;
}

export interface SvmVcpuSetup {
  readonly cpu: LogicalCpu;
  readonly vac: Vac;
  readonly owner: OwnerId;
  readonly capabilities: SvmCapabilities;
  /** Physical page of the VMCB, and its bytes. */
  readonly address: Hpa;
  readonly page: Uint8Array;
  /** Page that keeps the host's FS, GS, TR, ... while the guest's are on the CPU. */
  readonly hostState: Hpa;
}

export class SvmVcpu {
  readonly vmcb: Vmcb;
  readonly exit: SvmExit;
  readonly nmi: NmiBlocking;
  readonly #setup: SvmVcpuSetup;
  readonly #tag: AsidTag = { asid: 0, generation: 0 };
  #flushRequested = false;
  /** Of the instruction behind the software exception that the last entry injected. */
  #injectedLength = 0;
  /** Where what VMLOAD and VMSAVE move is up to date: in the VMCB, on the CPU, or both. */
  #inMemory = true;
  #onCpu = false;

  constructor(setup: SvmVcpuSetup) {
    this.#setup = setup;
    const vmcb = new Vmcb(setup.page);
    this.vmcb = vmcb;
    this.nmi = new NmiBlocking(vmcb);
    this.exit = {
      get code() {
        return vmcb.word(VmcbControl.EXITCODE);
      },
      get info1() {
        return vmcb.word(VmcbControl.EXITINFO1);
      },
      get info2() {
        return vmcb.number(VmcbControl.EXITINFO2);
      },
      get interruptInfo() {
        return vmcb.word(VmcbControl.EXITINTINFO);
      },
      get instructionLength() {
        return Number(BigInt.asUintN(32, vmcb.quad(VmcbControl.NEXT_RIP) - vmcb.quad(VmcbSave.RIP)));
      },
    };
  }

  /** Of the VMCB. */
  get address(): Hpa {
    return this.#setup.address;
  }

  // Registers that VMLOAD and VMSAVE move

  #read(): void {
    if (this.#inMemory) return;
    this.#setup.cpu.svm.vmsave(this.#setup.address);
    this.#inMemory = true;
  }
  #written(): void {
    this.#onCpu = false;
  }
  segment(register: number): SegmentState {
    if (register >= SegmentRegister.FS) this.#read();
    return this.vmcb.segment(register);
  }
  setSegment(register: number, state: SegmentState): void {
    if (register >= SegmentRegister.FS) {
      this.#read();
      this.#written();
    }
    this.vmcb.setSegment(register, state);
  }
  /** undefined: not in the VMCB. */
  msr(index: number): bigint | undefined {
    const plain = LOADED_BY_VMRUN.get(index);
    if (plain !== undefined) return this.vmcb.quad(plain);
    const offset = LOADED_BY_VMLOAD.get(index);
    if (offset === undefined) return undefined;
    this.#read();
    return this.vmcb.quad(offset);
  }
  setMsr(index: number, value: bigint): boolean | undefined {
    const stored = index === Msr.IA32_SYSENTER_CS ? BigInt.asUintN(32, value) : value;
    const plain = LOADED_BY_VMRUN.get(index);
    if (plain !== undefined) {
      this.vmcb.setQuad(plain, stored);
      return true;
    }
    const offset = LOADED_BY_VMLOAD.get(index);
    if (offset === undefined) return undefined;
    this.#read();
    this.#written();
    this.vmcb.setQuad(offset, stored);
    return true;
  }

  // Registers of the VMCB with more to them than their field

  get efer(): bigint {
    return this.vmcb.quad(VmcbSave.EFER) & ~EFER_SVME;
  }
  /** VMRUN demands SVME. */
  set efer(value: bigint) {
    this.vmcb.setQuad(VmcbSave.EFER, value | EFER_SVME);
  }
  get rflags(): bigint {
    return this.nmi.withoutStep(this.vmcb.quad(VmcbSave.RFLAGS));
  }
  set rflags(value: bigint) {
    this.nmi.endStep();
    this.vmcb.setQuad(VmcbSave.RFLAGS, value);
  }
  table(name: "gdtr" | "idtr"): { base: bigint; limit: number } {
    const at = name === "gdtr" ? VmcbSave.GDTR : VmcbSave.IDTR;
    return { base: this.vmcb.quad(at + 8), limit: this.vmcb.word(at + 4) & 0xffff };
  }
  setTable(name: "gdtr" | "idtr", { base, limit }: { base: bigint; limit: number }): void {
    const at = name === "gdtr" ? VmcbSave.GDTR : VmcbSave.IDTR;
    this.vmcb.setWord(at + 4, limit);
    this.vmcb.setQuad(at + 8, base);
  }
  /** SVM has one shadow: both bits of the uapi. */
  get interruptShadow(): number {
    return (this.vmcb.word(VmcbControl.INTERRUPT_SHADOW) & 1) !== 0 ? SHADOW_OF_BOTH : 0;
  }
  set interruptShadow(shadow: number) {
    this.vmcb.setWord(VmcbControl.INTERRUPT_SHADOW, shadow === 0 ? 0 : 1);
  }
  get interruptAllowed(): boolean {
    return (this.rflags & Rflags.IF) !== 0n && this.interruptShadow === 0;
  }
  get nmiAllowed(): boolean {
    return this.interruptShadow === 0 && !this.nmi.masked;
  }

  // Events

  inject(event: SvmInjection): void {
    const { vmcb } = this;
    const software = event.kind === "software-exception" || event.kind === "software-interrupt";
    const isException = event.kind === "exception" || event.kind === "software-exception";
    const protectedMode = (vmcb.word(VmcbSave.CR0) & 1) !== 0;
    const withError = isException && event.errorCode !== undefined && protectedMode && exceptionHasErrorCode(event.vector);
    const type =
      event.kind === "nmi"
        ? SvmEvent.nmi
        : isException
          ? SvmEvent.exception
          : software
            ? SvmEvent.softwareInterrupt
            : SvmEvent.interrupt;
    this.#injectedLength = event.kind === "software-exception" ? event.instructionLength : 0;
    if (event.kind === "nmi") this.nmi.masked = true;
    // #BP and #OF go back to nRIP even when they are no instruction's
    const back = vmcb.quad(VmcbSave.RIP) + BigInt(software ? event.instructionLength : 0);
    vmcb.setQuad(VmcbControl.NEXT_RIP, BigInt.asUintN(64, back));
    vmcb.setWord(VmcbControl.EVENTINJ + 4, withError ? event.errorCode! : 0);
    vmcb.setWord(
      VmcbControl.EVENTINJ,
      event.vector | (type << SvmEvent.typeShift) | (withError ? SvmEvent.errorCodeValid : 0) | SvmEvent.valid,
    );
  }
  /** INT n, INT3 and INTO of the guest are left out: RIP is at the instruction, which runs again. */
  cutShort(): CutShort | undefined {
    const info = this.exit.interruptInfo;
    const instructionLength = this.#injectedLength;
    this.#injectedLength = 0;
    if ((info & SvmEvent.valid) === 0) return undefined;
    const vector = info & SvmEvent.vectorMask;
    const hasError = (info & SvmEvent.errorCodeValid) !== 0;
    switch ((info & SvmEvent.typeMask) >>> SvmEvent.typeShift) {
      case SvmEvent.interrupt:
        return { kind: "interrupt", vector, errorCode: undefined, instructionLength: 0 };
      case SvmEvent.nmi:
        // Its own delivery must not block the NMI
        this.nmi.masked = false;
        return { kind: "nmi", vector, errorCode: undefined, instructionLength: 0 };
      case SvmEvent.exception:
        if (vector === BP || vector === OF)
          return instructionLength === 0 ? undefined : { kind: "exception", vector, errorCode: undefined, instructionLength };
        return {
          kind: "exception",
          vector,
          errorCode: hasError ? this.vmcb.word(VmcbControl.EXITINTINFO + 4) : undefined,
          instructionLength: 0,
        };
      default:
        return undefined;
    }
  }
  /** A virtual interrupt that exits as soon as the guest could take one. */
  watchInterruptWindow(watch: boolean): void {
    const { vmcb } = this;
    const request = VirtualInterrupt.request | VirtualInterrupt.priority15 | VirtualInterrupt.ignoreTpr;
    vmcb.setBit(VmcbControl.VIRTUAL_INTERRUPT, request, watch);
    vmcb.setBit(VmcbControl.INTERCEPTS_1, Intercept1.VINTR, watch);
  }

  /** Each PAUSE exits: the filter's count is 0. */
  watchPauses(watch: boolean): void {
    this.vmcb.setBit(VmcbControl.INTERCEPTS_1, Intercept1.PAUSE, watch);
  }
  /** What exits for a debugger. */
  interceptDebug(wanted: DebugIntercepts): void {
    this.nmi.interceptsTraps = wanted.traps;
    this.vmcb.setBit(VmcbControl.EXCEPTION_INTERCEPTS, INTERCEPT_BP, wanted.breakpoints);
    this.vmcb.setWord(VmcbControl.DR_INTERCEPTS, wanted.moves ? ALL_ONES : 0);
  }

  // On and off the CPU

  load(): void {
    this.#setup.cpu.svm.vmsave(this.#setup.hostState);
    this.#setup.vac.setTscRatio(this.#setup.owner, 1n << 32n);
  }
  put(): void {
    this.#read();
    this.#onCpu = false;
    this.#setup.cpu.svm.vmload(this.#setup.hostState);
  }
  /** The CPU's SVM goes off under the vCPU: what the CPU holds of it is brought home, and its ASID means nothing any more. */
  emergency(): void {
    this.#read();
    this.#onCpu = false;
    this.#tag.generation = 0;
  }
  requestFlush(): void {
    this.#flushRequested = true;
  }

  /** VMRUN. False: the processor does not take the VMCB, and nothing was delivered. */
  enter(): boolean {
    const { vmcb } = this;
    const { cpu, vac, owner, address, capabilities } = this.#setup;
    if (!this.#onCpu) cpu.svm.vmload(address);
    this.#onCpu = true;
    vmcb.setQuad(VmcbSave.RAX, cpu.gpr(Gpr.RAX));
    vmcb.setQuad(VmcbSave.CR2, cpu.cr2);
    vmcb.setQuad(VmcbSave.DR6, cpu.readDr(6));
    const { generation } = this.#tag;
    const flushAll = vac.assignAsid(owner, this.#tag);
    vmcb.setWord(VmcbControl.GUEST_ASID, this.#tag.asid);
    const flushOne = capabilities.flushByAsid ? TlbControl.flushGuest : TlbControl.flushAll;
    vmcb.setWord(
      VmcbControl.TLB_CONTROL,
      flushAll ? TlbControl.flushAll : this.#flushRequested ? flushOne : TlbControl.nothing,
    );
    // A new generation of ASIDs comes with power or SVM that was off in between, too
    vmcb.tellClean(!capabilities.cleanBits || this.#tag.generation !== generation);
    // Interrupts between the last look at them and VMRUN must not be lost
    cpu.svm.clgi();
    const status = cpu.svm.vmrun(address);
    cpu.svm.stgi();
    this.#inMemory = false;
    vmcb.setWord(VmcbControl.EVENTINJ, 0);
    if (status !== SUCCEED) throw new Error(`VMRUN of the VMCB at 0x${address.toString(16)} raised status ${status}`);
    if (this.exit.code === SvmExitCode.INVALID) return false;
    vmcb.exited();
    if (flushAll) vac.asidsFlushed(owner);
    this.#flushRequested = false;
    cpu.setGpr(Gpr.RAX, vmcb.quad(VmcbSave.RAX));
    cpu.cr2 = vmcb.quad(VmcbSave.CR2);
    cpu.writeDr(6, vmcb.quad(VmcbSave.DR6));
    this.nmi.exited();
    return true;
  }
}
