import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/index.ts"],
  format: ["esm"],
  target: "es2024",
  dts: { compilerOptions: { ignoreDeprecations: "6.0" } },
  clean: true,
  // A module imports nothing at run time. "dependencies" has kvm-abi for the types that the declarations name.
  noExternal: ["@mkvm/kvm-core", "@mkvm/kvm-abi"],
});
