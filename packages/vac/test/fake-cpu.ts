import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";

/** A logical CPU that records what is done to it. */
export interface FakeCpu extends LogicalCpu {
  readonly log: string[];
  readonly msrs: Map<number, bigint>;
  readonly pages: Map<number, Uint8Array>;
  vmxonFails: boolean;
}

export function fakeCpu(id: number): FakeCpu {
  const log: string[] = [];
  const msrs = new Map<number, bigint>([
    [0x3a, 0n],
    [0x480, 0x12n | (1n << 54n)],
    [0xc000_0081, 0x11n],
    [0xc000_0082, 0x22n],
  ]);
  const pages = new Map<number, Uint8Array>();
  const hex = (value: number | bigint) => `0x${value.toString(16)}`;
  const cpu = {
    id,
    vendor: "intel",
    log,
    msrs,
    pages,
    vmxonFails: false,
    cr4: 0n,
    rdmsr: (index: number) => msrs.get(index),
    wrmsr(index: number, value: bigint) {
      if (!msrs.has(index) || value === 0xbadn) return false;
      log.push(`wrmsr ${hex(index)} ${hex(value)}`);
      msrs.set(index, value);
      return true;
    },
    memory: {
      bytes(address: Hpa, length: number) {
        let page = pages.get(address);
        if (!page) {
          page = new Uint8Array(4096);
          pages.set(address, page);
        }
        log.push(`bytes ${hex(address)}`);
        return page.subarray(0, length);
      },
    },
    vmx: {
      vmxon(region: Hpa) {
        log.push(`vmxon ${hex(region)}`);
        return cpu.vmxonFails ? 1 : 0;
      },
      vmxoff() {
        log.push("vmxoff");
        return 0;
      },
      vmptrld(vmcs: Hpa) {
        log.push(`vmptrld ${hex(vmcs)}`);
        return vmcs === 0xbad000 ? 2 : 0;
      },
      vmclear(vmcs: Hpa) {
        log.push(`vmclear ${hex(vmcs)}`);
        return 0;
      },
      invvpid(type: number) {
        log.push(`invvpid ${type}`);
        return 0;
      },
    },
  };
  return cpu as unknown as FakeCpu;
}
