/**
 * The VMX instructions of one logical CPU. Source: Intel SDM Vol. 3D, VMX Instruction Reference. A broken rule is a VMX failure as
 * the manual says; the hardware's log names the rule, which silicon does not.
 */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import { isLinearAddress } from "../engine/system/linear-address.ts";
import { type VmxInstructions, VmxStatus } from "../logical-cpu.ts";
import type { IntelCounters } from "../performance/intel-counters.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { BankEngine, GuestEngine, RootCpu } from "../root-interface.ts";
import { Root } from "../root-msrs.ts";
import { EntryCheck } from "../sanitizer/entry-check.ts";
import type { SanitizedUnit } from "../sanitizer/sanitizer.ts";
import { ShadowTables } from "../sanitizer/shadow-tables.ts";
import { CR4_FIXED0 } from "./capabilities.ts";
import { makesStale } from "./checked-state.ts";
import { checkControls, checkHostState, checkInjection, isEptPointer } from "./control-checks.ts";
import {
  ENTRY_FAILURE,
  EntryControl,
  ExitControl,
  ExitReason,
  Interruption,
  Primary,
  Secondary,
  VmxError,
} from "./controls.ts";
import { FieldKind, FieldWidth, kindOfEncoding, slot, slotOfEncoding } from "./fields.ts";
import { checkGuestNow, checkGuestState, type GuestStateError } from "./guest-checks.ts";
import { GuestRun } from "./guest-run.ts";
import { loadFullState, loadHostState, loadMovingState, saveField, saveGuestState, saveMovingState } from "./guest-state.ts";
import { loadOnEntry, loadOnExit, storeOnExit } from "./msr-lists.ts";
import { namedPages, pagingRegisters } from "./named-pages.ts";
import { CHECKED_CONTROLS, CHECKED_GUEST, CHECKED_HOST, clearRegion, DIRTY_GUEST, VMCS_ABORT_WORD, Vmcs } from "./vmcs.ts";
import { VmxGuest } from "./vmx-guest.ts";
import { VmxRegions } from "./vmx-regions.ts";
import { VmxTranslations } from "./vmx-translations.ts";

const CHECKED_ALL = CHECKED_CONTROLS | CHECKED_HOST | CHECKED_GUEST;
const NONE = -1;
/** A VMWRITE's bigint in halves. */
const halves64 = new BigUint64Array(1);
const halves32 = new Uint32Array(halves64.buffer);

export interface VmxCpu extends RootCpu {
  readonly counters: IntelCounters;
}

export class VmxInstructionSet implements VmxInstructions, SanitizedUnit {
  status: VmxStatus = VmxStatus.succeed;
  readonly #cpu: VmxCpu;
  readonly #vmcs = new Vmcs();
  readonly #guest: VmxGuest;
  readonly #run: GuestRun;
  readonly #regions: VmxRegions;
  readonly #translations: VmxTranslations;
  /** VMCS whose guest state the CPU state block still holds from its last exit. */
  #resident = NONE;
  /** Guest state of the current VMCS that is in the CPU only; see `#fetchField` and `#save`. */
  #isUnsaved = false;
  /** An exit saves the preemption timer. */
  #savesTimer = false;
  /** Entries load and exits save every guest register, so that what an exit leaves in the CPU state block is the guest's alone. */
  #isSwitchedWhole = false;
  /** Controls of the current VMCS are such that an exit may leave guest state unsaved and the next entry need not look at them. */
  #mayStay = false;
  /**
   * All stands as the last exit from the current VMCS left it, so that VMRESUME has only those fields to look at that change from
   * entry to entry: nobody has written others, nor a register of the host-state area, nor invalidated translations.
   */
  #isReady = false;
  /** VMCS whose controls `#guest` has copied. */
  #controlled = NONE;
  #engine: BankEngine | undefined;
  readonly #entryCheck: EntryCheck;
  readonly #shadowTables: ShadowTables;
  readonly #namedPages = () => namedPages(this.#vmcs);
  #lastUsed = "no VMCS";

  constructor(cpu: VmxCpu) {
    this.#cpu = cpu;
    this.#guest = new VmxGuest(cpu, this.#vmcs);
    this.#run = new GuestRun(cpu, this.#vmcs, this.#guest);
    this.#regions = new VmxRegions(cpu);
    this.#translations = new VmxTranslations(cpu);
    this.#entryCheck = new EntryCheck(cpu, { structure: "VMCS", flush: "INVEPT between" });
    this.#shadowTables = new ShadowTables(
      cpu.memory,
      () => this.#vmcs.bank,
      () => pagingRegisters(this.#vmcs),
    );
  }

  /** Software in root mode has written a register that VM exits load. */
  hostRegisterWritten(): void {
    this.#isReady = false;
  }

  get lastUsed(): string {
    return this.#vmcs.isValid ? `VMCS ${this.#vmcs.address.toString(16)}` : this.#lastUsed;
  }
  pagesFreed(bank: MemoryBank, offset: number, count: number): void {
    this.hostRegisterWritten();
    this.#guest.ept.pagesFreed(bank, offset, count);
    this.#regions.pagesFreed(bank, offset, count);
  }

  /** Guest state goes from the CPU to the VMCS field by field when somebody asks, or all at once before anything else happens. */
  #fetchField(where: number): void {
    if (this.#isUnsaved) saveField((this.#engine as BankEngine).engine, this.#vmcs, where);
  }
  #save(): void {
    if (!this.#isUnsaved) return;
    this.#isUnsaved = false;
    saveGuestState((this.#engine as BankEngine).engine, this.#vmcs);
  }
  /** What is current changes, or what its entry has found: the next one looks at everything. */
  #settle(): void {
    this.#save();
    this.#isReady = false;
  }

  /** For engines to be made with. */
  get guestMode(): VmxGuest {
    return this.#guest;
  }

  get isInOperation(): boolean {
    return this.#regions.isInOperation;
  }

  /** The CPU's registers went to another bank, or the bank goes away: nothing may be taken for still loaded. */
  forgetResident(): void {
    this.#settle();
    this.#resident = NONE;
    this.#engine = undefined;
  }

  /** A bank goes away with whatever lies in it. */
  bankReleased(id: number): void {
    this.forgetResident();
    if (this.#vmcs.bank === id) {
      this.#cpu.log(`bank ${id} released with the current VMCS in it`);
      this.#vmcs.invalidate();
    }
    this.#translations.bankReleased(id);
    this.#regions.bankReleased(id);
    this.#guest.ept.forgetBank(id);
    this.#controlled = NONE;
  }

  // Results

  #result(status: VmxStatus): VmxStatus {
    this.status = status;
    return status;
  }
  #succeed(): VmxStatus {
    return this.#result(VmxStatus.succeed);
  }
  /** VMfail: VMfailValid with an error number if there is a current VMCS, else VMfailInvalid. */
  #fail(error: number, rule?: string): VmxStatus {
    if (rule !== undefined) this.#cpu.log(`VMX error ${error}: ${rule}`);
    if (!this.#vmcs.isValid) return this.#result(VmxStatus.failInvalid);
    this.#vmcs.set(slot.INSTRUCTION_ERROR, error);
    return this.#result(VmxStatus.failValid);
  }

  // VMX operation

  vmxon(region: Hpa): VmxStatus {
    const { msrs } = this.#cpu;
    if (((msrs.halves[2 * Root.cr4] as number) & CR4_FIXED0) === 0) return this.#result(VmxStatus.undefinedOpcode);
    if (this.isInOperation) {
      this.#regions.reportSecond(region);
      return this.#fail(VmxError.vmxonInRootOperation);
    }
    const regions = this.#regions;
    if (!regions.isAddress(region) || !regions.hasRevision(region)) return this.#result(VmxStatus.failInvalid);
    regions.enter(region);
    this.#vmcs.invalidate();
    return this.#succeed();
  }

  vmxoff(): VmxStatus {
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    this.#settle();
    this.#regions.checkVmxon();
    this.#leave("VMXOFF on");
    return this.#succeed();
  }

  /** VMX operation ends with the CPU's power: what it holds of active VMCSs is lost. */
  losePower(): void {
    this.#isUnsaved = false;
    this.#isReady = false;
    this.#engine = undefined;
    this.#controlled = NONE;
    this.#leave("power goes off at");
  }

  #leave(how: string): void {
    this.#regions.leave(how);
    this.#lastUsed = this.lastUsed;
    this.#vmcs.invalidate();
    this.#resident = NONE;
    this.#translations.forgetAll();
  }

  vmclear(address: Hpa): VmxStatus {
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    const regions = this.#regions;
    if (!regions.isAddress(address)) return this.#fail(VmxError.vmclearInvalidAddress);
    if (regions.isVmxon(address)) return this.#fail(VmxError.vmclearVmxonPointer);
    if (this.#vmcs.address === address) this.#settle();
    const bank = regions.bank(address);
    if (bank === undefined) this.#cpu.log(`VMCLEAR of ${address.toString(16)}, where no memory is`);
    else clearRegion(bank, offsetOf(address));
    regions.deactivate(address);
    if (this.#resident === address) this.#resident = NONE;
    if (this.#controlled === address) this.#controlled = NONE;
    if (this.#vmcs.address === address) {
      this.#lastUsed = this.lastUsed;
      this.#vmcs.invalidate();
    }
    return this.#succeed();
  }

  vmptrld(address: Hpa): VmxStatus {
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    const regions = this.#regions;
    if (!regions.isAddress(address)) return this.#fail(VmxError.vmptrldInvalidAddress);
    if (regions.isVmxon(address)) return this.#fail(VmxError.vmptrldVmxonPointer);
    const bank = regions.bank(address);
    if (bank === undefined || !regions.hasRevision(address)) return this.#fail(VmxError.vmptrldWrongRevision);
    regions.checkVmxon();
    regions.activate(address, bank);
    if (this.#vmcs.address !== address) this.#settle();
    this.#vmcs.point(address, bank, offsetOf(address));
    return this.#succeed();
  }

  vmptrst(): Hpa | undefined {
    if (!this.isInOperation) {
      this.status = VmxStatus.undefinedOpcode;
      return undefined;
    }
    this.status = VmxStatus.succeed;
    return this.#vmcs.isValid ? (this.#vmcs.address as Hpa) : undefined;
  }

  // Fields

  /** Slot of a field for an access to it; 0 after a failure. */
  #fieldSlot(field: number): number {
    if (!this.isInOperation) {
      this.status = VmxStatus.undefinedOpcode;
      return 0;
    }
    if (!this.#vmcs.isValid) {
      this.status = VmxStatus.failInvalid;
      return 0;
    }
    const where = slotOfEncoding(field);
    if (where === 0) this.#fail(VmxError.unsupportedField, `no VMCS field ${field.toString(16)}`);
    else {
      this.status = VmxStatus.succeed;
      this.#fetchField(where);
    }
    return where;
  }

  vmread(field: number): bigint {
    const where = this.#fieldSlot(field);
    if (where === 0) return 0n;
    return (field & 1) !== 0 ? BigInt(this.#vmcs.high(where)) : this.#vmcs.big(where);
  }

  vmread32(field: number): number {
    const where = this.#fieldSlot(field);
    if (where === 0) return 0;
    return (field & 1) !== 0 ? this.#vmcs.high(where) : this.#vmcs.low(where);
  }

  vmreadNumber(field: number): number {
    const where = this.#fieldSlot(field);
    if (where === 0) return 0;
    return (field & 1) !== 0 ? this.#vmcs.high(where) : this.#vmcs.number(where);
  }

  vmwrite(field: number, value: bigint | number): VmxStatus {
    const where = this.#fieldSlot(field);
    if (where === 0) return this.status;
    const kind = kindOfEncoding(field);
    if (kind === FieldKind.readOnly) return this.#fail(VmxError.readOnlyField, `VMCS field ${field.toString(16)} is read-only`);
    const vmcs = this.#vmcs;
    const beforeLow = vmcs.low(where);
    const beforeHigh = vmcs.high(where);
    const width = (field >> 13) & 3;
    let low: number;
    let high: number;
    if (typeof value === "number") {
      low = value >>> 0;
      high = Math.floor(value / 0x1_0000_0000) >>> 0;
    } else {
      // Through memory: to take a bigint apart would allocate
      halves64[0] = value;
      low = halves32[0] as number;
      high = halves32[1] as number;
    }
    if (width === FieldWidth.word) low &= 0xffff;
    if (width === FieldWidth.word || width === FieldWidth.long) high = 0;
    if ((field & 1) !== 0) {
      high = low;
      low = beforeLow;
    }
    if (beforeLow === low && beforeHigh === high) return this.status;
    const changed = (beforeLow ^ low) >>> 0;
    // Windows open and close with every interrupt
    if (where === slot.PRIMARY_CONTROLS && this.#isReady && changed === Primary.interruptWindowExiting) {
      vmcs.setPair(where, low, high);
      this.#guest.primary = low | 0;
      return this.status;
    }
    if (kind !== FieldKind.guestEveryEntry && kind !== FieldKind.injection) this.#settle();
    vmcs.setPair(where, low, high);
    if (makesStale(vmcs, kind, where, changed)) this.#settle();
    return this.status;
  }

  // VM entry and exit

  vmlaunch(): VmxStatus {
    return this.#enter(true);
  }
  vmresume(): VmxStatus {
    return this.#enter(false);
  }

  #enter(isLaunch: boolean): VmxStatus {
    if (this.#isReady && !isLaunch) return this.#enterAgain();
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    const vmcs = this.#vmcs;
    if (!vmcs.isValid) return this.#result(VmxStatus.failInvalid);
    this.#settle();
    if (vmcs.isLaunched === isLaunch) return this.#fail(isLaunch ? VmxError.vmlaunchNotClear : VmxError.vmresumeNotLaunched);
    const { model } = this.#cpu;
    const checked = vmcs.checked;
    if (checked !== CHECKED_ALL) {
      const rule = (checked & CHECKED_CONTROLS) === 0 ? checkControls(vmcs, model) : undefined;
      if (rule !== undefined) return this.#fail(VmxError.entryInvalidControls, rule);
    }
    if ((vmcs.low(slot.ENTRY_INTERRUPTION_INFO) & Interruption.valid) !== 0) {
      const rule = checkInjection(vmcs);
      if (rule !== undefined) return this.#fail(VmxError.entryInvalidControls, rule);
    }
    if ((checked & CHECKED_HOST) === 0) {
      const rule = checkHostState(vmcs, model);
      if (rule !== undefined) return this.#fail(VmxError.entryInvalidHostState, rule);
    }
    const threshold = this.#thresholdRule();
    if (threshold !== undefined) return this.#fail(VmxError.entryInvalidControls, threshold);
    const error =
      ((checked & CHECKED_GUEST) === 0 ? checkGuestState(vmcs, model) : undefined) ?? checkGuestNow(vmcs, this.#cpu.model);
    if (error !== undefined) return this.#entryFailed(error);
    return this.#enterChecked(isLaunch);
  }

  /** The one check of controls that looks at memory, which changes as it likes. */
  #thresholdRule(): string | undefined {
    const vmcs = this.#vmcs;
    if ((vmcs.low(slot.PRIMARY_CONTROLS) & Primary.useTprShadow) === 0) return undefined;
    this.#useControls();
    return this.#guest.apic.checkTprThreshold();
  }
  #useControls(): void {
    const vmcs = this.#vmcs;
    if ((vmcs.checked & CHECKED_CONTROLS) !== 0 && this.#controlled === vmcs.address) return;
    this.#guest.useControls();
    this.#controlled = vmcs.address;
    vmcs.checked |= CHECKED_CONTROLS;
  }

  /** VM entry where nothing has changed since the last exit but what changes every time. */
  #enterAgain(): VmxStatus {
    const vmcs = this.#vmcs;
    if ((vmcs.low(slot.ENTRY_INTERRUPTION_INFO) & Interruption.valid) !== 0) {
      const rule = checkInjection(vmcs);
      if (rule !== undefined) return this.#fail(VmxError.entryInvalidControls, rule);
    }
    const threshold = this.#guest.apic.usesShadow ? this.#guest.apic.checkTprThreshold() : undefined;
    if (threshold !== undefined) {
      this.#settle();
      return this.#fail(VmxError.entryInvalidControls, threshold);
    }
    const error = checkGuestNow(vmcs, this.#cpu.model);
    if (error !== undefined) return this.#entryFailed(error);
    const { engine } = this.#engine as BankEngine;
    this.#isReady = false;
    this.#isUnsaved = false;
    loadMovingState(engine, vmcs);
    engine.setFlags(vmcs.low(slot.GUEST_RFLAGS));
    engine.debugStateChanged();
    this.#run.run(engine);
    this.#guest.exit.store(this.#vmcs);
    saveMovingState(engine, vmcs, this.#guest.savedFlags(), this.#guest.exit.reason === ExitReason.monitorTrapFlag);
    if (this.#savesTimer) vmcs.set(slot.GUEST_PREEMPTION_TIMER, this.#run.preemptionTimerLeft());
    // Host state is still what the exit before this one has loaded
    this.#isUnsaved = true;
    this.#isReady = true;
    return this.#succeed();
  }

  #enterChecked(isLaunch: boolean): VmxStatus {
    const vmcs = this.#vmcs;
    const cpu = this.#cpu;
    this.#useControls();
    vmcs.checked = CHECKED_ALL;
    const current = this.#selectEngine();
    const { engine } = current;
    this.#translations.select(this.#guest, vmcs, current);
    this.#entryCheck.entering(vmcs.address, this.#guest.usesEpt ? this.#guest.ept : this.#shadowTables, this.#namedPages);
    const isWhole = this.#resident !== vmcs.address || (vmcs.dirty & DIRTY_GUEST) !== 0;
    this.#resident = NONE;
    if (isWhole) loadFullState(engine, vmcs, cpu.msrs);
    loadMovingState(engine, vmcs);
    const msrs = vmcs.low(slot.ENTRY_MSR_LOAD_COUNT);
    if (msrs !== 0) {
      const refused = loadOnEntry(cpu, engine, vmcs.number(slot.ENTRY_MSR_LOAD_ADDRESS), msrs);
      if (refused !== 0)
        return this.#entryFailed(
          { qualification: refused, rule: `VM-entry MSR-load entry ${refused}` },
          ExitReason.entryFailureMsrLoad,
        );
    }
    engine.setFlags(vmcs.low(slot.GUEST_RFLAGS));
    if (isWhole) engine.updateSegments();
    engine.debugStateChanged();
    engine.updateTags();
    if (isLaunch) vmcs.markLaunched();
    if ((vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.loadPerfGlobalCtrl) !== 0)
      cpu.counters.globalControl = vmcs.big(slot.GUEST_PERF_GLOBAL_CTRL);
    this.#noteControls();
    this.#run.run(engine);
    this.#exit(engine);
    return this.#succeed();
  }

  #noteControls(): void {
    const vmcs = this.#vmcs;
    const guest = this.#guest;
    const exit = vmcs.low(slot.EXIT_CONTROLS);
    this.#savesTimer = (exit & ExitControl.savePreemptionTimer) !== 0;
    // With EFER or PAT not switched by entry the guest's register is still root mode's, so later entries must load them anew
    const switched = EntryControl.loadEfer | EntryControl.loadPat | EntryControl.loadDebugControls;
    const saved = ExitControl.saveEfer | ExitControl.savePat | ExitControl.saveDebugControls;
    this.#isSwitchedWhole = (vmcs.low(slot.ENTRY_CONTROLS) & switched) === switched && (exit & saved) === saved;
    const hostSwitched = ExitControl.loadEfer | ExitControl.loadPat;
    this.#mayStay =
      this.#isSwitchedWhole &&
      (exit & hostSwitched) === hostSwitched &&
      (exit & ExitControl.loadPerfGlobalCtrl) === 0 &&
      (vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.loadPerfGlobalCtrl) === 0 &&
      guest.usesEpt &&
      (guest.secondary & Secondary.enableVpid) !== 0 &&
      vmcs.low(slot.ENTRY_MSR_LOAD_COUNT) === 0 &&
      vmcs.low(slot.EXIT_MSR_STORE_COUNT) === 0 &&
      vmcs.low(slot.EXIT_MSR_LOAD_COUNT) === 0;
  }

  /** The engine of the bank that the guest lives in: that of its EPT, or of the VMCS without EPT. */
  #selectEngine(): BankEngine {
    const vmcs = this.#vmcs;
    const bankId = this.#guest.usesEpt ? bankOf(vmcs.number(slot.EPT_POINTER) as Hpa) : vmcs.bank;
    if (this.#engine?.bank.id === bankId) return this.#engine;
    const bank = this.#cpu.memory.find(bankId);
    // An EPT where no memory answers would be all ones: the first fetch misconfigures. The registers need some bank to live in
    const turned = this.#cpu.turnTo(bank ?? this.#cpu.memory.bank(vmcs.bank));
    if (bank === undefined)
      this.#cpu.log(`EPT pointer ${vmcs.number(slot.EPT_POINTER).toString(16)}: no bank ${bankId} on this CPU`);
    this.#resident = NONE;
    this.#engine = turned;
    this.#guest.useEngine(turned.engine);
    return turned;
  }

  #exit(engine: GuestEngine): void {
    const vmcs = this.#vmcs;
    this.#guest.exit.store(this.#vmcs);
    saveMovingState(engine, vmcs, this.#guest.savedFlags(), this.#guest.exit.reason === ExitReason.monitorTrapFlag);
    if (this.#mayStay) this.#isUnsaved = true;
    else saveGuestState(engine, vmcs);
    if (this.#savesTimer) vmcs.set(slot.GUEST_PREEMPTION_TIMER, this.#run.preemptionTimerLeft());
    const stored = vmcs.low(slot.EXIT_MSR_STORE_COUNT);
    if (stored !== 0 && !storeOnExit(this.#cpu, engine, vmcs.number(slot.EXIT_MSR_STORE_ADDRESS), stored))
      this.#abort(1, "saving guest MSRs");
    this.#resident = this.#isSwitchedWhole ? vmcs.address : NONE;
    vmcs.dirty = 0;
    this.#loadHost(engine);
    this.#isReady = this.#mayStay;
  }

  #loadHost(engine: GuestEngine): void {
    const vmcs = this.#vmcs;
    const s = engine.u32;
    const pat = state.pat >>> 2;
    loadHostState(vmcs, this.#cpu.msrs, s[state.efer >>> 2] as number, s[pat] as number, s[pat + 1] as number);
    if ((vmcs.low(slot.EXIT_CONTROLS) & ExitControl.loadPerfGlobalCtrl) !== 0)
      this.#cpu.counters.globalControl = vmcs.big(slot.HOST_PERF_GLOBAL_CTRL);
    const count = vmcs.low(slot.EXIT_MSR_LOAD_COUNT);
    if (count !== 0 && !loadOnExit(this.#cpu, vmcs.number(slot.EXIT_MSR_LOAD_ADDRESS), count))
      this.#abort(4, "loading host MSRs");
  }

  /** VM entry failed after the host-state checks: an exit whose reason has bit 31 set. The launch state stays. */
  #entryFailed(error: GuestStateError, reason: number = ExitReason.entryFailureGuestState): VmxStatus {
    const vmcs = this.#vmcs;
    this.#cpu.log(`VM entry failed: ${error.rule}`);
    this.#settle();
    this.#resident = NONE;
    vmcs.checked &= CHECKED_CONTROLS | CHECKED_HOST;
    this.#controlled = NONE;
    vmcs.set(slot.EXIT_REASON, (reason | ENTRY_FAILURE) >>> 0);
    vmcs.set(slot.EXIT_QUALIFICATION, error.qualification);
    const { engine } = this.#selectEngine();
    if (reason === ExitReason.entryFailureGuestState) {
      // Nothing of the guest was loaded: what the exit does not load stays root mode's
      const { halves } = this.#cpu.msrs;
      engine.u32[state.efer >>> 2] = halves[2 * Root.efer] as number;
      engine.u32[state.pat >>> 2] = halves[2 * Root.pat] as number;
      engine.u32[(state.pat >>> 2) + 1] = halves[2 * Root.pat + 1] as number;
    }
    this.#loadHost(engine);
    return this.#succeed();
  }

  /** VMX abort puts the CPU into shutdown: nothing after it is defined, so the kernel is told in the only way left. */
  #abort(indicator: number, why: string): never {
    const vmcs = this.#vmcs;
    vmcs.u32[vmcs.base + VMCS_ABORT_WORD] = indicator;
    this.#cpu.log(`VMX abort ${indicator}: ${why}`);
    throw new Error(`VMX abort ${indicator}: ${why}`);
  }

  // Invalidation

  invept(type: number, eptp: bigint): VmxStatus {
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    if (type !== 1 && type !== 2) return this.#fail(VmxError.invalidInveptInvvpidOperand);
    this.#settle();
    const low = Number(BigInt.asUintN(32, eptp));
    const high = Number(BigInt.asUintN(32, eptp >> 32n));
    if (type === 1 && !isEptPointer(low, high, this.#cpu.model.physicalAddressBits))
      return this.#fail(VmxError.invalidInveptInvvpidOperand);
    this.#translations.invalidateEpt(type === 2 ? undefined : { bank: high & 0xf_ffff, low });
    return this.#succeed();
  }

  invvpid(type: number, vpid: number, linear: bigint): VmxStatus {
    if (!this.isInOperation) return this.#result(VmxStatus.undefinedOpcode);
    const isCanonical = isLinearAddress(this.#cpu.model, linear);
    if (type < 0 || type > 3 || vpid >>> 16 !== 0 || (type !== 2 && vpid === 0) || (type === 0 && !isCanonical))
      return this.#fail(VmxError.invalidInveptInvvpidOperand);
    this.#settle();
    this.#translations.invalidateVpid(type === 2 ? undefined : vpid, type === 1);
    return this.#succeed();
  }
}
