import type { ParameterSpec, ParameterValues } from "@mkvm/kvm-abi";
import { HostError } from "../errors.ts";

/**
 * Complete values for a module's parameters: `given` (values, or their text as the command line has them) over the defaults.
 * @throws HostError EINVAL naming the parameter, what it was given and what it takes
 */
export function checkParameters(
  module: string,
  specs: Readonly<Record<string, ParameterSpec>>,
  given: Readonly<Record<string, unknown>>,
): ParameterValues {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(specs, name)) {
      const known = Object.keys(specs);
      const there = known.length > 0 ? `it has ${known.join(", ")}` : "it has none";
      throw new HostError("EINVAL", `${module} has no parameter '${name}': ${there}`);
    }
  }
  const values: Record<string, number | boolean | string> = {};
  for (const [name, spec] of Object.entries(specs)) {
    values[name] = Object.hasOwn(given, name) ? checkValue(module, name, spec, given[name]) : spec.default;
  }
  return values;
}

function checkValue(module: string, name: string, spec: ParameterSpec, value: unknown): number | boolean | string {
  const refuse = (takes: string): never => {
    throw new HostError("EINVAL", `${module}: parameter ${name}=${String(value)} is refused: it takes ${takes}`);
  };
  switch (spec.type) {
    case "int": {
      const text = String(value).trim();
      const number = typeof value === "number" ? value : /^[+-]?(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : Number.NaN;
      if (!Number.isSafeInteger(number) || number < spec.minimum || number > spec.maximum) {
        return refuse(`a whole number from ${spec.minimum} to ${spec.maximum}`);
      }
      return number;
    }
    case "bool": {
      if (typeof value === "boolean") return value;
      const text = String(value).toLowerCase();
      if (["1", "y", "yes", "on", "true"].includes(text)) return true;
      if (["0", "n", "no", "off", "false"].includes(text)) return false;
      return refuse("true or false");
    }
    case "choice":
      return typeof value === "string" && spec.choices.includes(value) ? value : refuse(`one of ${spec.choices.join(", ")}`);
  }
}

/** `name=value` words of a command line. */
export function parseParameterWords(words: readonly string[]): Record<string, string> {
  const values: Record<string, string> = {};
  for (const word of words) {
    const at = word.indexOf("=");
    if (at < 1) throw new HostError("EINVAL", `'${word}' is no parameter: write name=value`);
    values[word.slice(0, at)] = word.slice(at + 1);
  }
  return values;
}
