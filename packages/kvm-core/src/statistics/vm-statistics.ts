import { Statistics } from "./statistics.ts";
import { statisticsTable } from "./table.ts";
import { VM_ROWS } from "./vm-rows.ts";

export const VM_TABLE = statisticsTable<(typeof VM_ROWS)[number]["name"]>(VM_ROWS);
/** Place of each statistic of a VM in `words`. */
export const VmStat = VM_TABLE.word;

/** What a VM counts. */
export class VmCounters extends Statistics {
  /** `pid`: of the process that made it. */
  constructor(pid: number) {
    super(VM_TABLE, `kvm-${pid}`);
  }

  /** Cached translations of the VM were dropped, on the one CPU that it runs on. */
  flushed(): void {
    this.words[VmStat.remote_tlb_flush_requests]!++;
    this.words[VmStat.remote_tlb_flush]!++;
  }
}
