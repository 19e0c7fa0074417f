/** State that neither the control structure nor the register cache holds: on the CPU while the vCPU is loaded, here otherwise. */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { Gpr, Msr, resetXsave } from "@mkvm/kvm-core";

const DEBUG_REGISTERS = [0, 1, 2, 3, 6] as const;

/** MSRs that VAC exchanges for the module; `set` by index. */
export interface UserReturnMsrs {
  readonly msrs: readonly number[];
  set(index: number, value: bigint): boolean;
}

export class HardwareContext {
  readonly #cpu: LogicalCpu;
  readonly #userReturnMsrs: UserReturnMsrs;
  readonly #gprs = new BigUint64Array(16);
  readonly #debug = new BigUint64Array(8);
  readonly #xsave = resetXsave();
  readonly #userReturn: BigUint64Array;
  #cr2 = 0n;
  #xcr0 = 1n;
  #kernelGsBase = 0n;
  #host: { xcr0: bigint; kernelGsBase: bigint } | undefined;

  constructor(cpu: LogicalCpu, userReturnMsrs: UserReturnMsrs) {
    this.#cpu = cpu;
    this.#userReturnMsrs = userReturnMsrs;
    this.#userReturn = new BigUint64Array(userReturnMsrs.msrs.length);
  }

  get loaded(): boolean {
    return this.#host !== undefined;
  }

  load(): void {
    if (this.#host !== undefined) return;
    const cpu = this.#cpu;
    this.#host = { xcr0: cpu.xcr0, kernelGsBase: cpu.rdmsr(Msr.IA32_KERNEL_GS_BASE) ?? 0n };
    cpu.loadGprs(this.#gprs);
    // Under SVM it is in the control structure while the guest runs
    cpu.setGpr(Gpr.RAX, this.#gprs[Gpr.RAX]!);
    for (const index of DEBUG_REGISTERS) cpu.writeDr(index, this.#debug[index]!);
    cpu.xrstor(this.#xsave);
    cpu.cr2 = this.#cr2;
    cpu.xcr0 = this.#xcr0;
    cpu.wrmsr(Msr.IA32_KERNEL_GS_BASE, this.#kernelGsBase);
    for (let index = 0; index < this.#userReturn.length; index++) this.#userReturnMsrs.set(index, this.#userReturn[index]!);
  }
  put(): void {
    if (this.#host === undefined) return;
    const cpu = this.#cpu;
    cpu.saveGprs(this.#gprs);
    this.#gprs[Gpr.RAX] = cpu.gpr(Gpr.RAX);
    for (const index of DEBUG_REGISTERS) this.#debug[index] = cpu.readDr(index);
    cpu.xsave(this.#xsave);
    this.#cr2 = cpu.cr2;
    this.#xcr0 = cpu.xcr0;
    this.#kernelGsBase = cpu.rdmsr(Msr.IA32_KERNEL_GS_BASE) ?? 0n;
    cpu.xcr0 = this.#host.xcr0;
    cpu.wrmsr(Msr.IA32_KERNEL_GS_BASE, this.#host.kernelGsBase);
    this.#host = undefined;
  }

  /** Not RSP, which the control structure has. */
  gpr(index: number): bigint {
    if (index === Gpr.RSP) throw new RangeError("RSP is not part of the hardware context");
    return this.loaded ? this.#cpu.gpr(index) : this.#gprs[index]!;
  }
  setGpr(index: number, value: bigint): void {
    if (this.loaded) this.#cpu.setGpr(index, value);
    else this.#gprs[index] = value;
  }
  gpr32(index: number): number {
    return this.loaded ? this.#cpu.gpr32(index) : Number(this.#gprs[index]! & 0xffff_ffffn);
  }
  setGpr32(index: number, value: number): void {
    if (this.loaded) this.#cpu.setGpr32(index, value);
    else this.#gprs[index] = BigInt(value);
  }
  debugRegister(index: number): bigint {
    return this.loaded ? this.#cpu.readDr(index) : this.#debug[index]!;
  }
  setDebugRegister(index: number, value: bigint): void {
    if (this.loaded) this.#cpu.writeDr(index, value);
    else this.#debug[index] = value;
  }
  get cr2(): bigint {
    return this.loaded ? this.#cpu.cr2 : this.#cr2;
  }
  set cr2(value: bigint) {
    if (this.loaded) this.#cpu.cr2 = value;
    else this.#cr2 = value;
  }
  get xcr0(): bigint {
    return this.loaded ? this.#cpu.xcr0 : this.#xcr0;
  }
  set xcr0(value: bigint) {
    if (this.loaded) this.#cpu.xcr0 = value;
    else this.#xcr0 = value;
  }
  xsave(): Uint8Array {
    if (this.loaded) this.#cpu.xsave(this.#xsave);
    return this.#xsave.slice();
  }
  xrstor(image: Uint8Array): void {
    this.#xsave.set(image.subarray(0, this.#xsave.length));
    if (this.loaded) this.#cpu.xrstor(this.#xsave);
  }
  /** undefined: not one of the MSRs here. */
  msr(index: number): bigint | undefined {
    if (index === Msr.IA32_KERNEL_GS_BASE) return this.loaded ? this.#cpu.rdmsr(index) : this.#kernelGsBase;
    const slot = this.#userReturnMsrs.msrs.indexOf(index);
    return slot < 0 ? undefined : this.#userReturn[slot];
  }
  /** undefined: not one of the MSRs here; false: refused. */
  setMsr(index: number, value: bigint): boolean | undefined {
    if (index === Msr.IA32_KERNEL_GS_BASE) {
      if (this.loaded) return this.#cpu.wrmsr(index, value);
      this.#kernelGsBase = value;
      return true;
    }
    const slot = this.#userReturnMsrs.msrs.indexOf(index);
    if (slot < 0) return undefined;
    if (this.loaded && !this.#userReturnMsrs.set(slot, value)) return false;
    this.#userReturn[slot] = value;
    return true;
  }
}
