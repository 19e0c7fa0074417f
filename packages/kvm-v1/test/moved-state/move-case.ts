import type { TestVmOptions } from "../test-vm.ts";
import type { MovingVm } from "./moving-vm.ts";

/**
 * A test of state on its way from version 1 to version 2 and back. It sets values through the uapi, moves the VM, and reads them
 * back through the uapi, or sees what the guest makes of them.
 */
export interface MoveCase {
  /** "what moves". */
  readonly name: string;
  /** Fields of sections that have a value of their own while they cross: "vcpu.tsc.offset"; `.*` for all below. */
  readonly moves: readonly string[];
  /** Default: a VM with interrupt controllers and PIT. */
  readonly vm?: TestVmOptions;
  /** Default: both. */
  readonly vendors?: readonly ("intel" | "amd")[];
  run(vm: MovingVm): Promise<void>;
}
