/** Several vCPUs in one VM: what guests see of each other, and what user space sees of their start. */
import assert from "node:assert/strict";
import {
  Ioctl,
  KvmLapicState,
  KvmMpState,
  KvmMsi,
  KvmRegs,
  KvmSregs,
  KvmVcpuEvents,
  MpState,
  VcpuEventFlag,
} from "@mkvm/kvm-abi";
import { smpGuest } from "@mkvm/testkit";
import { type Calls, fails, ok } from "./bench-vm.ts";
import { SmpVm } from "./smp-vm.ts";

interface Check {
  name: string;
  run(calls: Calls): Promise<void>;
}

async function runGuest(calls: Calls, options: Parameters<typeof smpGuest>[0]): Promise<void> {
  const guest = smpGuest(options);
  const vm = await SmpVm.create(calls, guest.cpus, guest.memoryBytes);
  await vm.load(guest);
  assert.equal(guest.failure(await vm.run(guest.exitPort)), undefined);
}

const mpState = async (calls: Calls, fd: number) => (await calls.get(fd, Ioctl.KVM_GET_MP_STATE, KvmMpState)).mp_state;

export const smpChecks: readonly Check[] = [
  {
    name: "four vCPUs: start-up, interrupts in every form, NMIs, atomics, TLB shootdown, cross-modifying code",
    run: (calls) => runGuest(calls, { cpus: 4, interrupts: true }),
  },
  { name: "sixteen vCPUs start and share memory", run: (calls) => runGuest(calls, { cpus: 16, interrupts: false }) },
  {
    name: "vCPUs wait for INIT and SIPI, as KVM_GET_MP_STATE tells, and start where SIPI says",
    async run(calls) {
      const vm = await SmpVm.create(calls, 2);
      const [boot, other] = vm.vcpus.map(({ fd }) => fd) as [number, number];
      assert.equal(await mpState(calls, boot), MpState.KVM_MP_STATE_RUNNABLE);
      assert.equal(await mpState(calls, other), MpState.KVM_MP_STATE_UNINITIALIZED);
      const set = (mp_state: number) => calls.set(other, Ioctl.KVM_SET_MP_STATE, KvmMpState, { mp_state });
      fails(await set(MpState.KVM_MP_STATE_SIPI_RECEIVED + 1), "EINVAL");
      const events = await calls.get(other, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents);
      events.flags |= VcpuEventFlag.KVM_VCPUEVENT_VALID_SIPI_VECTOR;
      events.sipi_vector = 0x12;
      ok(await calls.set(other, Ioctl.KVM_SET_VCPU_EVENTS, KvmVcpuEvents, events));
      for (const state of [
        MpState.KVM_MP_STATE_HALTED,
        MpState.KVM_MP_STATE_UNINITIALIZED,
        MpState.KVM_MP_STATE_INIT_RECEIVED,
      ]) {
        ok(await set(state));
        assert.equal(await mpState(calls, other), state);
      }
      ok(await set(MpState.KVM_MP_STATE_SIPI_RECEIVED));
      assert.equal(await mpState(calls, other), MpState.KVM_MP_STATE_RUNNABLE);
      const { cs } = await calls.get(other, Ioctl.KVM_GET_SREGS, KvmSregs);
      assert.deepEqual([cs.selector, cs.base], [0x1200, 0x1_2000n]);
      assert.equal((await calls.get(other, Ioctl.KVM_GET_REGS, KvmRegs)).rip, 0n);
    },
  },
  {
    name: "a message-signalled interrupt reaches the vCPU that it names",
    async run(calls) {
      const vm = await SmpVm.create(calls, 3);
      for (const { fd } of vm.vcpus) {
        const lapic = await calls.get(fd, Ioctl.KVM_GET_LAPIC, KvmLapicState);
        new DataView(lapic.regs.buffer, lapic.regs.byteOffset).setUint32(0xf0, 0x1ff, true);
        ok(await calls.set(fd, Ioctl.KVM_SET_LAPIC, KvmLapicState, lapic));
      }
      const requested = async () => {
        const bits: boolean[] = [];
        for (const { fd } of vm.vcpus) {
          const { regs } = await calls.get(fd, Ioctl.KVM_GET_LAPIC, KvmLapicState);
          bits.push((new DataView(regs.buffer, regs.byteOffset).getUint32(0x210, true) & (1 << 5)) !== 0);
        }
        return bits;
      };
      const signal = (address_lo: number) => calls.set(vm.vmFd, Ioctl.KVM_SIGNAL_MSI, KvmMsi, { address_lo, data: 0x25 });
      assert.equal(await signal(0xfee0_2000), 1);
      assert.deepEqual(await requested(), [false, false, true]);
      assert.equal(await signal(0xfee0_2000), 0); // pending already
      assert.equal(await signal(0xfeef_f000), 2); // everybody: two have it as new
      assert.deepEqual(await requested(), [true, true, true]);
    },
  },
];
