/** What the vCPUs of a VM share under SVM: the permission maps, and the page for the host's state while one of them is on the CPU. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel, Process } from "@mkvm/kvm-abi";
import type { Vac } from "@mkvm/vac";
import { fillMsrMap, IO_MAP_PAGES, MSR_MAP_PAGES } from "./vmcb-setup.ts";

const PAGE = 4096;
const PAGES = IO_MAP_PAGES + MSR_MAP_PAGES + 1;

export interface SvmVmPages {
  readonly ioMap: Hpa;
  readonly msrMap: Hpa;
  readonly hostState: Hpa;
  free(): void;
}

/** The pages, or a negative errno. */
export function allocateSvmVmPages(kernel: Kernel<Vac, LogicalCpu>, process: Process): SvmVmPages | number {
  const first = kernel.memory.allocatePages(process, PAGES);
  if (first < 0) return first;
  const msrMap = first + IO_MAP_PAGES * PAGE;
  // Every port exits
  kernel.memory.bytes(first, IO_MAP_PAGES * PAGE).fill(0xff);
  fillMsrMap(kernel.memory.bytes(msrMap, MSR_MAP_PAGES * PAGE));
  return {
    ioMap: first as Hpa,
    msrMap: msrMap as Hpa,
    hostState: (msrMap + MSR_MAP_PAGES * PAGE) as Hpa,
    free: () => kernel.memory.freePages(first, PAGES),
  };
}
