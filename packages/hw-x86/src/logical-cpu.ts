/**
 * What software in root mode (the kernel and its KVM modules) sees of a logical CPU. The class that implements it is made by
 * `createLogicalCpu` (machine.ts).
 */
import type { Hpa } from "./addresses.ts";
import type { EngineStatistics } from "./engine/engine-statistics.ts";
import type { DeviceAccess } from "./host-bus.ts";
import type { PhysicalMemory } from "./physical-memory.ts";

/** Outcome of a VMX instruction, as RFLAGS tells it on silicon, or the exception it raised. */
export const VmxStatus = { succeed: 0, failInvalid: 1, failValid: 2, undefinedOpcode: 3, generalProtection: 4 } as const;
export type VmxStatus = (typeof VmxStatus)[keyof typeof VmxStatus];

/** VMX instructions. Each returns its status; VMfailValid leaves its error number in the VM-instruction error field. */
export interface VmxInstructions {
  vmxon(region: Hpa): VmxStatus;
  vmxoff(): VmxStatus;
  vmclear(vmcs: Hpa): VmxStatus;
  vmptrld(vmcs: Hpa): VmxStatus;
  /** Address of the current VMCS, undefined when there is none. */
  vmptrst(): Hpa | undefined;
  /** Field of the current VMCS by its encoding; 0n after a failure, which `status` tells. */
  vmread(field: number): bigint;
  /** Low 32 bits as an unsigned number. */
  vmread32(field: number): number;
  /** The field as a number: for addresses and other values below 2^53. */
  vmreadNumber(field: number): number;
  vmwrite(field: number, value: bigint | number): VmxStatus;
  /** Enters guest mode and returns after the VM exit (or the failed entry, exit reason bit 31): `succeed` means that exit
   *  fields are valid. */
  vmlaunch(): VmxStatus;
  vmresume(): VmxStatus;
  invept(type: number, eptp: bigint): VmxStatus;
  invvpid(type: number, vpid: number, linear: bigint): VmxStatus;
  /** Status of the last instruction. */
  readonly status: VmxStatus;
}

/** Outcome of an SVM instruction: done, or the exception it raised. Numbered as `VmxStatus`. */
export const SvmStatus = { succeed: 0, undefinedOpcode: 3, generalProtection: 4 } as const;
export type SvmStatus = (typeof SvmStatus)[keyof typeof SvmStatus];

/**
 * SVM instructions. The VMCB is a page of physical memory that software reads and writes as memory. Source: AMD64 APM Vol. 2,
 * Secure Virtual Machine; Layout of VMCB.
 */
export interface SvmInstructions {
  /** Enters guest mode and returns after the #VMEXIT, with GIF clear: RAX, RSP, RIP, RFLAGS and the exit code are in the VMCB
   *  then, the other general registers on the CPU. */
  vmrun(vmcb: Hpa): SvmStatus;
  /** FS, GS, TR and LDTR with their hidden parts, KernelGsBase, STAR, LSTAR, CSTAR, SFMASK and SYSENTER_* from the VMCB. */
  vmload(vmcb: Hpa): SvmStatus;
  /** The same registers to the VMCB. */
  vmsave(vmcb: Hpa): SvmStatus;
  stgi(): SvmStatus;
  clgi(): SvmStatus;
  invlpga(linear: bigint, asid: number): SvmStatus;
  /** Global interrupt flag. */
  readonly gif: boolean;
}

/**
 * What software tells the hardware sanitizer, which looks for mistakes that silicon lets slip: what the kernel alone knows. Findings are
 * lines of the CPU's log that begin with "sanitizer:", each told once.
 */
export interface HardwareSanitizer {
  /** What the registers of root mode hold now is the kernel's own: so they have to be whenever user code runs. */
  keepHostRegisters(): void;
  /** User code runs next. */
  returnsToUser(): void;
  /** Pages are given back to the kernel's allocator: until they are handed out again nothing that a guest runs with may lead to them. */
  pagesFreed(address: Hpa, count: number): void;
  pagesAllocated(address: Hpa, count: number): void;
}

export interface LogicalCpu {
  readonly id: number;
  readonly vendor: "intel" | "amd";
  readonly memory: PhysicalMemory;
  /** The machine's PCI bus: ports and memory-mapped registers. */
  readonly devices: DeviceAccess;
  /** On a machine of the other vendor each of its instructions is an undefined opcode; so with `svm`. */
  readonly vmx: VmxInstructions;
  readonly svm: SvmInstructions;
  readonly sanitizer: HardwareSanitizer;

  cpuid(leaf: number, subleaf: number): { eax: number; ebx: number; ecx: number; edx: number };
  /** undefined: #GP(0). */
  rdmsr(index: number): bigint | undefined;
  /** false: #GP(0). */
  wrmsr(index: number, value: bigint): boolean;
  /** RDPMC with ECX `counter`, at CPL 0; undefined: #GP(0). */
  rdpmc(counter: number): bigint | undefined;
  /** CR4 of root mode; VMXE must be set before VMXON. */
  cr4: bigint;

  // Registers that VM entry and exit leave alone: whoever runs a guest loads and saves them
  /** 16 general registers in encoding order; RSP (4) is in the VMCS or VMCB and ignored here, and so RAX (0) is under SVM. */
  loadGprs(from: BigUint64Array): void;
  saveGprs(to: BigUint64Array): void;
  /** One general register. */
  gpr(index: number): bigint;
  setGpr(index: number, value: bigint): void;
  /** Its low 32 bits; setting them clears the upper half. */
  gpr32(index: number): number;
  setGpr32(index: number, value: number): void;
  cr2: bigint;
  xcr0: bigint;
  /** DR0 to DR3 and DR6 (DR7 is in the VMCS). */
  readDr(index: number): bigint;
  writeDr(index: number, value: bigint): void;
  /** 512 bytes, FXSAVE64 layout. */
  fxsave(to: Uint8Array): void;
  fxrstor(from: Uint8Array): void;
  /** All of the x87, SSE and extended state in the standard XSAVE format with 64-bit pointers; 4096 bytes. Equal state gives equal bytes. */
  xsave(to: Uint8Array): void;
  /** Components that XSTATE_BV leaves out are initialized. */
  xrstor(from: Uint8Array): void;

  // Time
  /** Time-stamp counter in ticks since power-on: a whole number below 2^53. Under `icount` it advances with retired guest instructions. */
  rdtsc(): number;
  readonly tscKhz: number;
  /** The local APIC timer in TSC-deadline mode: from that TSC on an external interrupt is pending. Infinity: off. */
  setTimerDeadline(tsc: number): void;
  /** True when the timer is due or another CPU sent an IPI. A guest then exits with "external interrupt". */
  interruptPending(): boolean;
  /** Ends the IPI part of `interruptPending`; the timer's ends by a new deadline. */
  acknowledgeInterrupt(): void;
  /**
   * Sends an IPI; may be called on the thread of any CPU. `vector`: that of this machine's own IPIs unless given; another one is told
   * from it by a guest's posted interrupts.
   */
  sendIpi(cpu: number, vector?: number): void;
  /** Sends a nonmaskable interrupt; may be called on the thread of any CPU. */
  sendNmi(cpu: number): void;
  /** One waits. A guest exits for it, or takes it, as its hypervisor has it; in root mode software asks, and takes it. */
  nmiPending(): boolean;
  /** Takes it: the handler is called. False when none waited. On an AMD machine STGI does so too. */
  takeNmi(): boolean;
  /** What vector 2 of root mode's IDT leads to. */
  nmiHandler: (() => void) | undefined;
  /** Called at each VM entry, when nothing but the guest's instructions is left to do. */
  atGuestEntry: (() => void) | undefined;
  /**
   * A register of the local APIC by its offset in the APIC's page: id (20h), version (30h), interrupt command (300h, 310h), LVT performance
   * counter entry (340h). One that the machine has not reads as 0, and the log says so.
   */
  readApic(register: number): number;
  writeApic(register: number, value: number): void;
  /** HLT in root mode, for `icount` only: the TSC jumps to the timer deadline, if there is one. In `wall` time does nothing. */
  idle(): void;
  /**
   * The CPU is without power for a while, as in a sleep of the machine (ACPI S3): memory keeps its contents and the TSC counts on;
   * registers, MSRs, VMX operation with the VMCSs that are active, GIF, translations, the timer and waiting interrupts are lost, and with
   * CPU 0 what the functions on the PCI bus hold. As after power-up then, with firmware's work done: in 64-bit mode, IA32_FEATURE_CONTROL not locked.
   */
  losePower(): void;
  /** Guest instructions retired on this CPU since power-on. */
  retiredInstructions(): number;
  /** What the engine of that bank has done; undefined before there is one. */
  engineStatistics(bank: number): EngineStatistics | undefined;
}
