/**
 * The SVM instructions of one logical CPU. Source: AMD64 APM Vol. 2, Secure Virtual Machine. A broken rule has the outcome that the
 * manual says; the hardware's log names the rule, which silicon does not.
 */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import { Cr4, Efer, FLAGS_DEFINED, FLAGS_FIXED } from "../engine/system/bits.ts";
import { type SvmInstructions, SvmStatus } from "../logical-cpu.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { BankEngine, GuestEngine, RootCpu } from "../root-interface.ts";
import { Root } from "../root-msrs.ts";
import { EntryCheck } from "../sanitizer/entry-check.ts";
import type { SanitizedUnit } from "../sanitizer/sanitizer.ts";
import { ShadowTables } from "../sanitizer/shadow-tables.ts";
import { TagOwners } from "../sanitizer/tag-owners.ts";
import type { StateBlock } from "../state-block.ts";
import { BranchRecords } from "./branch-records.ts";
import { CleanBits } from "./clean-bits.ts";
import { GuestRun } from "./guest-run.ts";
import { loadGuestState, loadHiddenState, saveGuestState, saveHiddenState } from "./guest-state.ts";
import { namedPages, pagingRegisters } from "./named-pages.ts";
import { SvmGuest } from "./svm-guest.ts";
import { Control, Event, ExitCode, Save, TlbControl } from "./vmcb.ts";
import { Vmcb } from "./vmcb-access.ts";
import { refusal } from "./vmrun-checks.ts";

/** Guest instruction bytes of an exit. */
const MOST_BYTES = 15;

export interface SvmCpu extends RootCpu {
  readonly block: StateBlock;
}

export class SvmInstructionSet implements SvmInstructions, SanitizedUnit {
  gif = true;
  readonly #cpu: SvmCpu;
  readonly #vmcb = new Vmcb();
  /** The VMCB of VMLOAD and VMSAVE, which need not be that of VMRUN. */
  readonly #other = new Vmcb();
  readonly #guest: SvmGuest;
  readonly #run: GuestRun;
  readonly #branches = new BranchRecords();
  #saveAreaReported = false;
  readonly #asidOwners = new TagOwners();
  readonly #cleanBits: CleanBits;
  readonly #entryCheck: EntryCheck;
  readonly #shadowTables: ShadowTables;
  readonly #namedPages = () => namedPages(this.#vmcb, this.#address, this.#guest.apic.isEnabled);
  /** Of the VMCB that VMRUN runs. */
  #address = 0;

  constructor(cpu: SvmCpu) {
    this.#cpu = cpu;
    this.#guest = new SvmGuest(cpu, this.#vmcb);
    this.#run = new GuestRun(cpu, this.#vmcb, this.#guest);
    this.#entryCheck = new EntryCheck(cpu, { structure: "VMCB", flush: "a flush between" });
    this.#shadowTables = new ShadowTables(
      cpu.memory,
      () => bankOf(this.#address as Hpa),
      () => pagingRegisters(this.#vmcb),
    );
    this.#cleanBits = new CleanBits((finding) => cpu.log(`sanitizer: on CPU ${cpu.id} ${finding}`));
  }

  /** For engines to be made with. */
  get guestMode(): SvmGuest {
    return this.#guest;
  }

  /** SVM went off with EFER's contents; interrupts are let through as after power-up. */
  losePower(): void {
    this.gif = true;
    this.#asidOwners.allFlushed();
    this.#cleanBits.forget();
  }

  get lastUsed(): string {
    return this.#address === 0 ? "no VMCB" : `VMCB ${this.#address.toString(16)}`;
  }
  pagesFreed(bank: MemoryBank, offset: number, count: number): void {
    this.#guest.npt.pagesFreed(bank, offset, count);
    const area = Number(this.#cpu.msrs.values[Root.hostSaveArea]);
    const isFreed =
      bankOf(area as Hpa) === bank.id && offsetOf(area as Hpa) >= offset && offsetOf(area as Hpa) < offset + count * 4096;
    if (this.#isOn() && isFreed)
      this.#cpu.log(`sanitizer: host save area ${area.toString(16)} freed, with SVM on at CPU ${this.#cpu.id}`);
  }
  bankReleased(id: number): void {
    this.#guest.npt.forgetBank(id);
  }
  /** EFER or VM_HSAVE_PA was written; what they held before. */
  registerWritten(efer: bigint, saveArea: bigint): void {
    if ((efer & BigInt(Efer.SVME)) === 0n) return;
    const { id, msrs } = this.#cpu;
    // Without SVM there is no STGI
    if (!this.#isOn() && !this.gif)
      this.#cpu.log(`sanitizer: SVM goes off at CPU ${id} with GIF clear: no interrupt comes through any more`);
    const now = msrs.values[Root.hostSaveArea] as bigint;
    if (saveArea !== 0n && now !== 0n && now !== saveArea)
      this.#cpu.log(
        `sanitizer: host save area ${now.toString(16)} set at CPU ${id}, with SVM on and ${saveArea.toString(16)} in use`,
      );
  }

  #isOn(): boolean {
    return ((this.#cpu.msrs.halves[2 * Root.efer] as number) & Efer.SVME) !== 0;
  }
  #isVmcbAddress(address: number): boolean {
    return (
      Number.isInteger(address) && address >= 0 && address % 4096 === 0 && address < 2 ** this.#cpu.model.physicalAddressBits
    );
  }
  /** Status of an instruction with a VMCB operand before it does anything. */
  #check(address: number): SvmStatus {
    if (!this.#isOn()) return SvmStatus.undefinedOpcode;
    return this.#isVmcbAddress(address) ? SvmStatus.succeed : SvmStatus.generalProtection;
  }
  #bankOf(address: Hpa, mnemonic: string): MemoryBank | undefined {
    const bank = this.#cpu.memory.holding(address, 4096);
    if (bank === undefined) this.#cpu.log(`${mnemonic} of a VMCB at ${address.toString(16)}, where no memory is`);
    return bank;
  }

  vmload(address: Hpa): SvmStatus {
    const status = this.#check(address);
    const bank = status === SvmStatus.succeed ? this.#bankOf(address, "VMLOAD") : undefined;
    if (bank === undefined) return status;
    this.#other.point(bank, offsetOf(address));
    loadHiddenState(this.#cpu.block, this.#other);
    return status;
  }
  vmsave(address: Hpa): SvmStatus {
    const status = this.#check(address);
    const bank = status === SvmStatus.succeed ? this.#bankOf(address, "VMSAVE") : undefined;
    if (bank === undefined) return status;
    this.#other.point(bank, offsetOf(address));
    saveHiddenState(this.#cpu.block, this.#other);
    return status;
  }

  stgi(): SvmStatus {
    if (!this.#isOn()) return SvmStatus.undefinedOpcode;
    this.gif = true;
    // What waited for that comes now
    if (this.#cpu.lines.isNmiRaised()) this.#cpu.takeNmi();
    return SvmStatus.succeed;
  }
  clgi(): SvmStatus {
    if (!this.#isOn()) return SvmStatus.undefinedOpcode;
    this.gif = false;
    return SvmStatus.succeed;
  }

  /** Dropping more than asked is allowed, so single addresses are not told apart. */
  invlpga(_linear: bigint, asid: number): SvmStatus {
    if (!this.#isOn()) return SvmStatus.undefinedOpcode;
    for (const { tags } of this.#cpu.engines()) tags.retireVpid(asid >>> 0);
    return SvmStatus.succeed;
  }

  vmrun(address: Hpa): SvmStatus {
    const status = this.#check(address);
    if (status !== SvmStatus.succeed) return status;
    this.gif = false;
    const bank = this.#bankOf(address, "VMRUN");
    // All ones are no VMCB, and where there is no memory nothing can be told of it
    if (bank === undefined) return status;
    this.#touchHostSaveArea();
    const vmcb = this.#vmcb;
    vmcb.point(bank, offsetOf(address));
    this.#address = address;
    this.#cleanBits.entered(vmcb, address);
    const rule = refusal(vmcb, this.#cpu.model);
    if (rule !== undefined) {
      this.#cpu.log(`VMRUN: ${rule}`);
      this.#refuse();
      return status;
    }
    const guest = this.#guest;
    guest.bank = bank.id;
    guest.useControls();
    const current = this.#selectEngine(bank);
    const { engine } = current;
    this.#selectTranslations(current);
    this.#entryCheck.entering(address, guest.usesNpt ? guest.npt : this.#shadowTables, this.#namedPages);
    this.#load(engine);
    this.#run.run(engine);
    this.#exit(engine);
    return status;
  }

  #refuse(): void {
    const vmcb = this.#vmcb;
    vmcb.setPair(Control.EXIT_CODE, 0xffff_ffff, 0xffff_ffff);
    vmcb.setPair(Control.EXIT_INFO_1, 0, 0);
    vmcb.setPair(Control.EXIT_INFO_2, 0, 0);
    vmcb.setPair(Control.EXIT_INTERRUPT_INFO, 0, 0);
  }

  /**
   * Silicon keeps the host's registers there in a form of its own. Here they are kept elsewhere, but what lies in the area is lost all
   * the same, and an area that nobody has set up is told of.
   */
  #touchHostSaveArea(): void {
    const { msrs, memory } = this.#cpu;
    const area = Number(msrs.values[Root.hostSaveArea]);
    const bank = area === 0 ? undefined : memory.holding(area, 4096);
    if (bank === undefined) {
      if (!this.#saveAreaReported)
        this.#cpu.log(`sanitizer: VMRUN with VM_HSAVE_PA ${area.toString(16)}, where no memory is the CPU's to write`);
      this.#saveAreaReported = true;
      return;
    }
    const at = (area % 0x1_0000_0000) + Save.ES;
    for (let i = 0; i < 4; i++) bank.u32[(at >>> 2) + i] = msrs.halves[2 * Root.cr0 + 2 * i] as number;
  }

  /** The engine of the bank that the guest lives in: that of its nested page tables, or of the VMCB without them. */
  #selectEngine(bank: MemoryBank): BankEngine {
    const guest = this.#guest;
    let home: MemoryBank | undefined = bank;
    if (guest.usesNpt) {
      const root = this.#vmcb.number(Control.NESTED_CR3);
      home = this.#cpu.memory.find(bankOf(root as Hpa));
      if (home === undefined) this.#cpu.log(`nested CR3 ${root.toString(16)}: no such bank on this CPU`);
    }
    const turned = this.#cpu.turnTo(home ?? bank);
    guest.useEngine(turned.engine);
    return turned;
  }

  #selectTranslations(current: BankEngine): void {
    const vmcb = this.#vmcb;
    const guest = this.#guest;
    const asid = vmcb.low(Control.ASID);
    const flush = vmcb.byte(Control.TLB_CONTROL);
    if (flush === TlbControl.flushAll) for (const { tags } of this.#cpu.engines()) tags.retireAll();
    else if (flush !== TlbControl.nothing) for (const { tags } of this.#cpu.engines()) tags.retireVpid(asid);
    this.#reportShared(asid, flush);
    if (!guest.usesNpt) {
      guest.translationTag = current.tags.tagFor(asid, 0);
      return;
    }
    const root = vmcb.number(Control.NESTED_CR3);
    const table = root - (root % 4096);
    // Translations know where the registers of the local APIC are
    const tag = current.tags.tagFor(asid, table + (guest.apic.isEnabled ? 1 : 0));
    guest.translationTag = tag;
    const { halves } = this.#cpu.msrs;
    const levels = ((halves[2 * Root.cr4] as number) & Cr4.LA57) !== 0 ? 5 : 4;
    const noExecute = ((halves[2 * Root.efer] as number) & Efer.NXE) !== 0;
    const offset = table % 0x1_0000_0000;
    if (bankOf(root as Hpa) === current.bank.id && offset < current.bank.sizeBytes)
      guest.npt.use(current.bank, offset, tag, { levels, noExecute });
    else guest.npt.useNothing(tag);
  }

  #reportShared(asid: number, flush: number): void {
    const owners = this.#asidOwners;
    if (flush === TlbControl.flushAll) owners.allFlushed();
    else if (flush === TlbControl.flushAsid) owners.flushed(asid);
    const now = this.#address;
    const before = owners.use(asid, now);
    if (before === undefined) return;
    const both = `VMCB ${now.toString(16)} after VMCB ${before.toString(16)}`;
    this.#cpu.log(`sanitizer: ASID ${asid} used on CPU ${this.#cpu.id} by ${both}, without a flush between`);
  }

  #load(engine: GuestEngine): void {
    const vmcb = this.#vmcb;
    const guest = this.#guest;
    const s = engine.u32;
    loadGuestState(engine, vmcb);
    s[state.activity >>> 2] = 0;
    const pat = state.pat >>> 2;
    const { halves } = this.#cpu.msrs;
    s[pat] = guest.usesNpt ? vmcb.low(Save.G_PAT) : (halves[2 * Root.pat] as number);
    s[pat + 1] = guest.usesNpt ? vmcb.high(Save.G_PAT) : (halves[2 * Root.pat + 1] as number);
    guest.interrupts.enter(vmcb);
    guest.apic.enter();
    guest.exits.isTrapDue = false;
    s[state.pushfIntercepted >>> 2] = guest.interceptsFlagAccess ? 1 : 0;
    engine.setFlags((vmcb.low(Save.RFLAGS) & FLAGS_DEFINED) | FLAGS_FIXED);
    engine.pendingTrap = 0;
    engine.holdsTraps = false;
    if (guest.virtualizesBranchRecords) this.#branches.load(engine.u32, vmcb);
    else {
      s[state.debugctl >>> 2] = halves[2 * Root.debugctl] as number;
      s[(state.debugctl >>> 2) + 1] = halves[2 * Root.debugctl + 1] as number;
    }
    engine.debugStateChanged();
    engine.updateSegments();
    // Outside 64-bit mode there is no upper half of RIP
    if (s[state.codeSize >>> 2] !== 64) s[(state.rip >>> 2) + 1] = 0;
  }

  #exit(engine: GuestEngine): void {
    const vmcb = this.#vmcb;
    const guest = this.#guest;
    const { exit } = guest;
    saveGuestState(engine, vmcb);
    // Without virtual branch records the register is guest's and host's at once
    if (guest.virtualizesBranchRecords) this.#branches.save(engine.u32, vmcb);
    else this.#cpu.msrs.halves[2 * Root.debugctl] = engine.u32[state.debugctl >>> 2] as number;
    if (guest.usesNpt) {
      const pat = state.pat >>> 2;
      vmcb.setPair(Save.G_PAT, engine.u32[pat] as number, engine.u32[pat + 1] as number);
    }
    guest.interrupts.save(vmcb);
    // A shutdown that was intercepted, and HLT that an interrupt ended, leave nothing behind in the processor
    engine.u32[state.activity >>> 2] = 0;
    vmcb.setPair(Control.EXIT_CODE, exit.code >>> 0, exit.code === ExitCode.invalid ? 0xffff_ffff : 0);
    vmcb.setPair(Control.EXIT_INFO_1, exit.info1Low, exit.info1High);
    vmcb.setPair(Control.EXIT_INFO_2, exit.info2Low, exit.info2High);
    vmcb.setPair(Control.EXIT_INTERRUPT_INFO, exit.interruptInfo, exit.interruptError);
    vmcb.setLow(Control.EVENT_INJECTION, vmcb.low(Control.EVENT_INJECTION) & ~Event.valid);
    vmcb.u64[(vmcb.base + Control.NEXT_RIP) >>> 3] = exit.nextRip;
    this.#saveBytes(engine);
    this.#cleanBits.exited(vmcb, this.#address);
  }

  /** As many bytes of the instruction as lie in its page, 15 at most. */
  #saveBytes(engine: GuestEngine): void {
    const vmcb = this.#vmcb;
    const guest = this.#guest;
    const from = guest.exit.hasBytes ? guest.instructionOffset() : undefined;
    const count = from === undefined ? 0 : Math.min(MOST_BYTES, 4096 - (from & 0xfff));
    vmcb.setByte(Control.BYTES_FETCHED, count);
    for (let i = 0; i < count; i++) vmcb.setByte(Control.INSTRUCTION_BYTES + i, engine.u8[(from as number) + i] as number);
  }
}
