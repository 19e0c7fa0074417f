import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/index.ts", "src/probe.ts"],
  format: ["esm"],
  target: "es2024",
  dts: { entry: "src/index.ts", compilerOptions: { ignoreDeprecations: "6.0" } },
  // The probe's package.json, and the schemas of plans and results.
  publicDir: "public",
  clean: true,
});
