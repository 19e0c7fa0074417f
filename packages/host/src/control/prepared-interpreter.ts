/** The interpreter's code, made while CPUs start. */
import { setFlagsFromString } from "node:v8";
import { prepareInterpreter } from "@mkvm/hw-x86";

/**
 * Begins to compile the interpreter on V8's background threads. A CPU's thread loads for a tenth of a second before its first guest, which
 * is about what V8 needs to optimise the interpreter's main function; begun with the guest, it would compete with it. V8 heeds the priority that the
 * module asks for with its flag alone; without, the interpreter is optimised when it has run.
 */
export function beginInterpreter(): void {
  setFlagsFromString("--experimental-wasm-compilation-hints");
  // A CPU that cannot compile it says why
  prepareInterpreter().catch(() => {});
}
