import type { Clock, KvmPitState2, StructInput, StructValue, VmPit } from "@mkvm/kvm-abi";

export interface PitHost {
  readonly clock: Clock;
  /** Output of channel 0: IRQ line 0, source IrqSource.pit. Same result as Pic.setLine. */
  setIrq(level: boolean): number;
}

/** 8254 with three channels, and the speaker port. */
export interface Pit {
  /** True for 0x40 to 0x43, and 0x61 unless the VMM has the speaker (KVM_PIT_SPEAKER_DUMMY not set). */
  ownsPort(port: number): boolean;
  read(port: number): number;
  write(port: number, value: number): void;
  /** The guest ended IRQ 0 (PIC or IOAPIC pin 2 or 0). */
  acknowledged(): void;
  reinject: boolean;
  /** KVM_GET_PIT2, KVM_SET_PIT2; KVM_GET_PIT is the same without flags. */
  getState(): StructValue<(typeof KvmPitState2)["fields"]>;
  setState(state: StructInput<(typeof KvmPitState2)["fields"]>): void;
  /** Fixed part of section vm.pit. */
  save(): StructValue<(typeof VmPit)["fixed"]["fields"]>;
  restore(value: StructValue<(typeof VmPit)["fixed"]["fields"]>): void;
  reset(): void;
  dispose(): void;
}

export type CreatePit = (host: PitHost, options: { speaker: boolean }) => Pit;
