import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/index.ts"],
  format: ["esm"],
  target: "es2024",
  dts: { compilerOptions: { ignoreDeprecations: "6.0" } },
  clean: true,
  // A module imports nothing when it is loaded
  noExternal: ["@mkvm/kvm-v2"],
});
