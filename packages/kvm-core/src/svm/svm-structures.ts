/**
 * What VMs and vCPUs have in memory under SVM: a VM's permission maps, the page for the host's state while one of its vCPUs is on the
 * CPU, and each vCPU's VMCB.
 */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel, Process } from "@mkvm/kvm-abi";
import type { OwnerId, Vac } from "@mkvm/vac";
import type { MsrFilter } from "../guest/msr-filter.ts";
import type { SvmCapabilities } from "./capabilities.ts";
import { SvmVcpu } from "./svm-vcpu.ts";
import { fillMsrMap, IO_MAP_PAGES, MSR_MAP_PAGES, setUpVmcb } from "./vmcb-setup.ts";

const PAGE = 4096;
const VM_PAGES = IO_MAP_PAGES + MSR_MAP_PAGES + 1;

/** A VM as its module knows it. */
interface SvmVm {
  readonly process: Process;
  readonly mmu: { readonly rootPointer: bigint };
  readonly settings: { readonly msrFilter: MsrFilter | undefined };
}

export class SvmStructures {
  readonly #kernel: Kernel<Vac, LogicalCpu>;
  readonly #owner: OwnerId;
  readonly #capabilities: SvmCapabilities;
  /** First of the VM's pages: I/O map, MSR map, host state. */
  readonly #pages = new Map<SvmVm, number>();

  constructor(kernel: Kernel<Vac, LogicalCpu>, owner: OwnerId, capabilities: SvmCapabilities) {
    this.#kernel = kernel;
    this.#owner = owner;
    this.#capabilities = capabilities;
  }

  /** 0 or a negative errno. */
  createVm(vm: SvmVm): number {
    const { memory } = this.#kernel;
    const first = memory.allocatePages(vm.process, VM_PAGES);
    if (first < 0) return first;
    // Every port exits
    memory.bytes(first, IO_MAP_PAGES * PAGE).fill(0xff);
    this.#pages.set(vm, first);
    this.msrFilterChanged(vm);
    return 0;
  }
  /** A VMCB's clean bit is about where its maps are: what is in them counts at once. */
  msrFilterChanged(vm: SvmVm): void {
    const map = this.#pages.get(vm)! + IO_MAP_PAGES * PAGE;
    fillMsrMap(this.#kernel.memory.bytes(map, MSR_MAP_PAGES * PAGE), vm.settings.msrFilter);
  }
  destroyVm(vm: SvmVm): void {
    const first = this.#pages.get(vm);
    if (first !== undefined) this.#kernel.memory.freePages(first, VM_PAGES);
    this.#pages.delete(vm);
  }

  /** A vCPU with a VMCB that is set up, or a negative errno. */
  createVcpu(vm: SvmVm): SvmVcpu | number {
    const { memory, cpu, vac } = this.#kernel;
    const address = memory.allocatePages(vm.process, 1);
    if (address < 0) return address;
    const ioMap = this.#pages.get(vm)!;
    const msrMap = ioMap + IO_MAP_PAGES * PAGE;
    const svm = new SvmVcpu({
      cpu,
      vac,
      owner: this.#owner,
      capabilities: this.#capabilities,
      address: address as Hpa,
      page: memory.bytes(address, PAGE),
      hostState: (msrMap + MSR_MAP_PAGES * PAGE) as Hpa,
    });
    setUpVmcb(svm.vmcb, { ioMap, msrMap, nestedCr3: vm.mmu.rootPointer, branchRecords: this.#capabilities.branchRecords });
    return svm;
  }
  freeVcpu(svm: SvmVcpu): void {
    this.#kernel.memory.freePages(svm.address, 1);
  }
}
