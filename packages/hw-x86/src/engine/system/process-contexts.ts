/**
 * Process-context identifiers (Intel SDM Vol. 3A, Process-Context Identifiers; Operations that Invalidate TLBs and Paging-Structure
 * Caches). An identifier's translations lie in the same caches as all others, told apart by tags and generations (translation-caches.ts),
 * so that a lookup costs the same; what an identifier has of these is put aside while another one is in use.
 */
import type { Cpu } from "../cpu.ts";
import {
  cachesOf,
  closeUserPages,
  flushTlb,
  identifierOf,
  keepContext,
  keyRights,
  noteMode,
  renewBlocks,
  takeSystemTag,
  takeTags,
} from "./translation-caches.ts";

/** MOV to CR3 with CR4.PCIDE, CR3 being written: to another identifier or to the same one. `keeps`: bit 63 of the operand. */
export function switchProcessContext(cpu: Cpu, keeps: boolean): void {
  const caches = cachesOf(cpu);
  const identifier = identifierOf(cpu);
  if (identifier === caches.identifier) {
    if (keeps) noteMode(cpu, caches);
    else flushTlb(cpu, true);
    return;
  }
  closeUserPages(cpu);
  keepContext(caches, false);
  const context = keeps ? caches.contexts.of(caches.translationTag, identifier) : undefined;
  if (context === undefined) {
    flushTlb(cpu, true);
    return;
  }
  // Supervisor code from global pages is the same for all identifiers, and so is its data
  const { systemEpoch, supervisorTag, systemDataIsPrivate } = caches;
  const isPrivate = caches.systemIsPrivate || context.systemIsPrivate;
  Object.assign(caches, context, { systemEpoch, supervisorTag, systemDataIsPrivate });
  if (systemDataIsPrivate) takeSystemTag(cpu, caches);
  if (keyRights(cpu) !== context.pkru || cpu.breakpoints.version !== context.breakpoints) takeTags(cpu, caches);
  noteMode(cpu, caches);
  renewBlocks(cpu, caches, context.userEpoch === 0, isPrivate);
}

/** Translations of another identifier than the one in use: all of them, whichever are meant. */
export function forgetProcessContext(cpu: Cpu, identifier: number): void {
  const caches = cachesOf(cpu);
  caches.contexts.forget(caches.translationTag, identifier);
}

/** Translations of all identifiers that are not global. */
export function forgetProcessContexts(cpu: Cpu): void {
  const caches = cachesOf(cpu);
  caches.contexts.forget(caches.translationTag);
  flushTlb(cpu, true);
}
