/**
 * What guest mode adds to an instruction: the vendor's virtualization extension (vmx/, svm/) implements this interface, and the
 * engine's system code calls it at the point in the instruction's order of checks that the manual gives. A method that decides
 * for a VM exit records its exit information and throws `VM_EXIT`; returning means: go on. The instructions that kernels exit by
 * most often end their blocks, and an exception through generated code costs more than all else of an exit: their methods return
 * true instead, after which the caller changes nothing and returns, and the engine takes the rest from there.
 */
import type { Gpa, Gva, Hpa } from "../addresses.ts";
import type { ApicAccess } from "./apic-access.ts";
import type { TscReading } from "./tsc-reading.ts";

/** Thrown through generated code to leave guest mode. RIP is that of the current instruction. */
export const VM_EXIT = Symbol("VM exit");
/** Thrown through generated code to deliver the exception recorded in `state.faultVector`. */
export const GUEST_FAULT = Symbol("guest fault");

/** Result of a second-level translation. */
export interface SecondLevelPage {
  hpa: Hpa;
  /** Bit 0 read, bit 1 write, bit 2 execute, as an EPT entry has them. */
  rights: number;
  /** Bytes of the page that maps it: 4096, 2 MiB or 1 GiB. */
  pageBytes: number;
  /** Accesses to the page go to `GuestMode.apic`, every one of them: the translation is not to be cached. */
  isApic: boolean;
}

/** Performance counters as the guest's RDMSR, WRMSR and RDPMC reach them where they are not intercepted. */
export interface CounterAccess {
  /** undefined: no MSR of theirs. */
  readMsr(index: number): bigint | undefined;
  /** undefined: no MSR of theirs; false: #GP(0). */
  writeMsr(index: number, value: bigint): boolean | undefined;
  /** By ECX of RDPMC; undefined: #GP(0). */
  readCounter(selector: number): bigint | undefined;
}

/** Instructions that a guest may be without though its processor has them. XSAVES stands for XRSTORS too. */
export type OptionalInstruction = "RDTSCP" | "RDPID" | "INVPCID" | "XSAVES";

export interface GuestMode {
  /** Tag of this guest's translations: changes when VPID, EPTP or an invalidation make old ones unusable. Small integer. */
  readonly translationTag: number;
  readonly apic: ApicAccess;
  /** Absent: a processor without performance counters. */
  readonly counters?: CounterAccess;
  /** Host offset in the bank of guest physical `gpa`, for `access` (1 read, 2 write, 4 fetch); exits on violation or
   *  misconfiguration. `linear` is the guest linear address when there is one, and `walk` says the access is to a paging
   *  structure. Sets accessed and dirty bits of the second level when on. The result object is reused: copy what you keep. */
  translate(gpa: Gpa, access: number, linear: Gva | undefined, walk: boolean): SecondLevelPage;

  /**
   * Between two instructions: makes an access of the processor's own, which is given up where it would fault or exit. False: it was, and what
   * is recorded of an exit is as before. Absent where the processor makes none.
   */
  attempt?(access: () => void): boolean;

  /** Exception about to be delivered; exits if intercepted. `cr2` for #PF, `dr6` for #DB. `software`: INT3/INTO (6), INT n (4), else 3: the VMX interruption type. */
  exception(vector: number, type: number, errorCode: number | undefined, payload: bigint): void;
  tripleFault(): void;
  /** Called while an event is being delivered (true) and after (false): an exit meanwhile records vectoring information. */
  vectoring(
    event: { vector: number; type: number; errorCode: number | undefined; instructionLength: number } | undefined,
  ): void;

  /** #UD where a control takes the instruction away from the guest, which comes before all its other exceptions. */
  requireEnabled(instruction: OptionalInstruction): void;
  /** The methods with a boolean result: true when the instruction exits and nothing of it may happen. */
  cpuid(): boolean;
  hlt(): boolean;
  pause(): boolean;
  rdtsc(): boolean;
  rdtscp(): boolean;
  rdpmc(): boolean;
  invd(): boolean;
  wbinvd(): boolean;
  invlpg(linear: Gva): void;
  invpcid(type: bigint, descriptor: Gva): void;
  monitor(): boolean;
  mwait(): boolean;
  /** RDRAND, or RDSEED. */
  rdrand(isSeed: boolean): void;
  xsetbv(): boolean;
  /** XSAVES or XRSTORS of these components. */
  xsaves(restores: boolean, components: bigint): void;
  /** VMCALL, VMLAUNCH, ... in guest mode: name as the manual's mnemonic. Always exits. */
  vmxInstruction(mnemonic: string): boolean;
  /** VMRUN, VMMCALL, ... in guest mode, after the checks that come before interception. */
  svmInstruction(mnemonic: string): "exit" | "done" | "undefined";
  /** RSM, which is undefined where it does not exit: this machine has no system-management mode. */
  rsm(): boolean;
  /** MOV from CR: `cr` 0, 2, 3, 4 or 8, and SMSW with -1 for the register. Returns what the guest sees. Exits where configured. */
  readCr(cr: number, gpr: number, value: bigint): bigint;
  /** MOV to CR. Returns the value to load into the register after masks; exits where configured. */
  writeCr(cr: number, gpr: number, value: bigint): bigint;
  /** A write of CR0, CR4, CR8, CR3 or EFER is done. */
  registerWritten(register: "efer" | number, value: bigint): void;
  /** False: the host owns TS and the guest sees it clear, so the instruction changes nothing. */
  clts(): boolean;
  /** LMSW; `memory` operand's linear address or undefined. Returns CR0 to load. */
  lmsw(value: number, memory: Gva | undefined): bigint;
  moveDr(dr: number, gpr: number, isRead: boolean): void;
  /** SGDT SIDT SLDT STR LGDT LIDT LLDT LTR, before their memory access. */
  descriptorTable(mnemonic: string): void;
  /** INT n, before anything of it; true when it exits. IRET too. */
  softwareInterrupt(vector: number): boolean;
  iret(): boolean;
  /** PUSHF, where `state.pushfIntercepted` is set, and POPF: before they change anything. */
  pushf(): void;
  popf(): void;
  /** `flags`: RFLAGS as the old task keeps them, RF set for an exception that is a fault. */
  taskSwitch(selector: number, source: "call" | "iret" | "jmp" | "interrupt", flags: number): void;
  /** `bytes` 1, 2 or 4. For string forms `linear` is the memory operand's address, `rep` the prefix; INS/OUTS only, which
   *  exit by throwing. */
  io(port: number, bytes: number, isIn: boolean, immediate: boolean, string?: { linear: Gva; rep: boolean }): boolean;
  /** An I/O that was not intercepted goes to the (absent) host bus: reads as all ones. */
  rdmsr(index: number): boolean;
  wrmsr(index: number): boolean;

  /** TSC as the guest reads it: host TSC with offset and scaling. The one object is filled anew by each call. */
  guestTsc(): TscReading;
  /** 64 bits that nobody can foretell, for random numbers; 0 where a run is to be a function of its inputs. */
  entropy?(): bigint;
  /** RFLAGS.IF, interruptibility or activity may have changed: true when `run` must stop after this instruction (window exits). */
  windowOpened(): boolean;
}
