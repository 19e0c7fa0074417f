/** Every helper that rows may call, by name; a name that two subjects claim is a mistake. */
import { fpuHelpers } from "./fpu/helpers.ts";
import type { Helper, HelperTable } from "./helpers.ts";
import { cryptoHelpers } from "./semantics/crypto-helpers.ts";
import { integerExtensionHelpers } from "./semantics/integer-extension-helpers.ts";
import { integerHelpers } from "./semantics/integer-helpers.ts";
import { maskedHelpers } from "./semantics/masked-helpers.ts";
import { stringHelpers } from "./semantics/string-helpers.ts";
import { vectorHelpers } from "./semantics/vector-helpers.ts";
import { vendorHelpers } from "./semantics/vendor-helpers.ts";
import { systemHelpers } from "./system/index.ts";

function join(...tables: HelperTable[]): HelperTable {
  const joined: Record<string, Helper> = {};
  for (const table of tables) {
    for (const [name, helper] of Object.entries(table)) {
      if (name in joined) throw new Error(`two helpers are called ${name}`);
      joined[name] = helper;
    }
  }
  return joined;
}

export const helperTable: HelperTable = join(
  integerHelpers,
  stringHelpers,
  systemHelpers,
  fpuHelpers,
  vendorHelpers,
  integerExtensionHelpers,
  vectorHelpers,
  cryptoHelpers,
  maskedHelpers,
);
