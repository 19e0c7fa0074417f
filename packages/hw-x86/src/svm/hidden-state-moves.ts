/** VMLOAD and VMSAVE of the guest itself. Source: AMD64 APM Vol. 2, VMLOAD and VMSAVE Virtualization. */
import { bankOf, type Gpa, offsetOf } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import { Efer } from "../engine/system/bits.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import type { GuestExits } from "./guest-exits.ts";
import type { GuestMemory } from "./guest-memory.ts";
import { loadHiddenState, saveHiddenState } from "./guest-state.ts";
import { ExitCode } from "./vmcb.ts";
import { Vmcb } from "./vmcb-access.ts";

const GP = 13;
const PAGE = 4096;
const READ = 1;
const WRITE = 2;

export class HiddenStateMoves {
  readonly #cpu: RootCpu;
  readonly #guest: { readonly engine: GuestEngine; readonly exits: GuestExits };
  readonly #memory: GuestMemory;
  /** What the guest named. */
  readonly #vmcb = new Vmcb();

  constructor(cpu: RootCpu, guest: { readonly engine: GuestEngine; readonly exits: GuestExits }, memory: GuestMemory) {
    this.#cpu = cpu;
    this.#guest = guest;
    this.#memory = memory;
  }

  /** With RAX a guest-physical address. Outside long mode they exit all the same. */
  move(mnemonic: "VMLOAD" | "VMSAVE"): "exit" | "done" {
    const { engine, exits } = this.#guest;
    if (((engine.u32[state.efer >>> 2] as number) & Efer.LMA) === 0) {
      exits.afterInstruction(mnemonic === "VMLOAD" ? ExitCode.vmload : ExitCode.vmsave);
      return "exit";
    }
    const isStore = mnemonic === "VMSAVE";
    const bits = engine.u32[state.codeSize >>> 2] === 64 ? 64 : 32;
    const address = BigInt.asUintN(bits, engine.get64(state.gpr));
    if ((address & 0xfffn) !== 0n || address >> BigInt(this.#cpu.model.physicalAddressBits) !== 0n) engine.raise(GP, 0);
    const { hpa } = this.#memory.translate(Number(address) as Gpa, isStore ? WRITE : READ, false);
    const bank = this.#cpu.memory.bank(bankOf(hpa));
    this.#vmcb.point(bank, offsetOf(hpa));
    if (isStore) {
      saveHiddenState(engine, this.#vmcb);
      if (engine.holdsCode(offsetOf(hpa))) engine.codeWritten(offsetOf(hpa), PAGE);
    } else {
      loadHiddenState(engine, this.#vmcb);
      engine.updateSegments();
    }
    return "done";
  }
}
