/**
 * What both vendors' event-select registers have in common: the low half but for its event. Source: Intel SDM Vol. 3B, Architectural
 * Performance Monitoring; AMD64 APM Vol. 2, Core Performance Event-Select Registers.
 */
import type { CountedEvent, EventSelection } from "./counter.ts";

export const EventSelect = {
  user: 1 << 16,
  supervisor: 1 << 17,
  edge: 1 << 18,
  interrupt: 1 << 20,
  enable: 1 << 22,
  invert: 1 << 23,
} as const;

/** `low`: the register's low half. */
export function selectionOf(low: number, event: CountedEvent | undefined): EventSelection {
  return {
    event,
    supervisor: (low & EventSelect.supervisor) !== 0,
    user: (low & EventSelect.user) !== 0,
    threshold: low >>> 24,
    isInverted: (low & EventSelect.invert) !== 0,
    isEdge: (low & EventSelect.edge) !== 0,
  };
}
