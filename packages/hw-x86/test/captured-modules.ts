/** The bytes of the WebAssembly modules that are compiled meanwhile: those of regions are seen by nobody but the engine's compiler. */
export function captureModules(run: () => void): Uint8Array[] {
  const modules: Uint8Array[] = [];
  const { Module } = WebAssembly;
  WebAssembly.Module = class extends Module {
    constructor(bytes: BufferSource) {
      super(bytes);
      modules.push(new Uint8Array(bytes as Uint8Array));
    }
  };
  try {
    run();
  } finally {
    WebAssembly.Module = Module;
  }
  return modules;
}
