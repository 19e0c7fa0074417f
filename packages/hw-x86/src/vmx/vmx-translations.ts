/**
 * What names the translations that a CPU caches for guests, by VPID and EPT pointer, and makes them stale. Source: Intel SDM Vol. 3C,
 * Caching Translation Information; Vol. 3D, INVEPT; INVVPID.
 */
import { bankOf, type Hpa } from "../addresses.ts";
import type { BankEngine, RootCpu } from "../root-interface.ts";
import { TagOwners } from "../sanitizer/tag-owners.ts";
import { Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";
import type { VmxGuest } from "./vmx-guest.ts";

interface EptContext {
  bank: number;
  low: number;
  tag: number;
}

export class VmxTranslations {
  readonly #cpu: RootCpu;
  #eptContexts: EptContext[] = [];
  #lastEptTag = 0;
  readonly #vpidOwners = new TagOwners();

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  /** Turns the guest, which is to run on `current`, to those of its VMCS. */
  select(guest: VmxGuest, vmcs: Vmcs, current: BankEngine): void {
    let eptTag = 0;
    if (guest.usesEpt) {
      const low = vmcs.low(slot.EPT_POINTER);
      const bank = bankOf(vmcs.number(slot.EPT_POINTER) as Hpa);
      eptTag = this.#eptTag(bank, low);
      if (bank === current.bank.id) guest.ept.use(current.bank, low, eptTag);
      else guest.ept.useNothing(eptTag);
    }
    const hasVpid = (guest.secondary & Secondary.enableVpid) !== 0;
    if (hasVpid) this.#reportShared(vmcs.low(slot.VPID), vmcs.address);
    guest.translationTag = hasVpid ? current.tags.tagFor(vmcs.low(slot.VPID), eptTag) : current.tags.fresh();
  }

  #reportShared(vpid: number, now: number): void {
    const before = this.#vpidOwners.use(vpid, now);
    if (before === undefined) return;
    const owners = `VMCS ${now.toString(16)} after VMCS ${before.toString(16)}`;
    this.#cpu.log(`sanitizer: VPID ${vpid} used on CPU ${this.#cpu.id} by ${owners}, without INVVPID between`);
  }

  /** Name of what is cached under an EPT pointer. */
  #eptTag(bank: number, low: number): number {
    const contexts = this.#eptContexts;
    for (let i = 0; i < contexts.length; i++) {
      const context = contexts[i] as EptContext;
      if (context.low === low && context.bank === bank) return context.tag;
    }
    const tag = ++this.#lastEptTag;
    contexts.push({ bank, low, tag });
    return tag;
  }

  /** INVEPT. `pointer`: undefined for all contexts. */
  invalidateEpt(pointer: { readonly bank: number; readonly low: number } | undefined): void {
    const kept: EptContext[] = [];
    for (const context of this.#eptContexts) {
      // Contexts are told apart by the address of their tables only
      const isMeant =
        pointer === undefined || (context.bank === pointer.bank && (context.low & 0xffff_f000) === (pointer.low & 0xffff_f000));
      if (!isMeant) kept.push(context);
      else for (const { tags } of this.#cpu.engines()) tags.retireEpt(context.tag);
    }
    this.#eptContexts = kept;
  }
  /** INVVPID of a VPID, or of all. `isWhole`: no address and no global translations were left out. */
  invalidateVpid(vpid: number | undefined, isWhole: boolean): void {
    if (vpid === undefined) this.#vpidOwners.allFlushed();
    else if (isWhole) this.#vpidOwners.flushed(vpid);
    // Dropping more than asked is allowed, so single addresses and kept globals are not told apart
    for (const { tags } of this.#cpu.engines()) {
      if (vpid === undefined) tags.retireAll();
      else tags.retireVpid(vpid);
    }
  }

  /** The end of VMX operation. */
  forgetAll(): void {
    this.invalidateVpid(undefined, true);
    this.#eptContexts = [];
  }
  bankReleased(id: number): void {
    this.#eptContexts = this.#eptContexts.filter((context) => context.bank !== id);
  }
}
