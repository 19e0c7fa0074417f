/**
 * WebAssembly instructions by name, with their encoding (WebAssembly Core Specification, Binary Format, Instructions): the core
 * set as one byte, the others as prefix and number. Types of operands follow from the name, as `resultType` shows.
 */
export type ValueType = "i32" | "i64" | "f32" | "f64" | "v128";

export const VALUE_TYPE_CODES: Readonly<Record<ValueType, number>> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

/** Opcode, or prefix + 256 * (number + 1). */
export const OPCODES: ReadonlyMap<string, number> = buildOpcodes();

function buildOpcodes(): Map<string, number> {
  const table = new Map<string, number>();
  const core = (first: number, names: string): void => {
    let code = first;
    for (const name of names.trim().split(/\s+/)) table.set(name, code++);
  };
  const prefixed = (prefix: number, first: number, names: string): void => {
    let code = first;
    for (const name of names.trim().split(/\s+/)) {
      if (name !== "-") table.set(name, prefix + 256 * (code + 1));
      code++;
    }
  };
  const each = (type: string, names: string): string =>
    names
      .trim()
      .split(/\s+/)
      .map((name) => (name === "-" ? "-" : `${type}.${name}`))
      .join(" ");
  const integerCompare = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u";
  const floatCompare = "eq ne lt gt le ge";
  const integerArithmetic = "clz ctz popcnt add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u rotl rotr";
  const floatArithmetic = "abs neg ceil floor trunc nearest sqrt add sub mul div min max copysign";

  core(0x00, "unreachable nop");
  core(0x1a, "drop select");
  core(
    0x28,
    `i32.load i64.load f32.load f64.load i32.load8_s i32.load8_u i32.load16_s i32.load16_u i64.load8_s i64.load8_u i64.load16_s
     i64.load16_u i64.load32_s i64.load32_u i32.store i64.store f32.store f64.store i32.store8 i32.store16 i64.store8 i64.store16
     i64.store32`,
  );
  core(0x45, each("i32", `eqz ${integerCompare}`));
  core(0x50, each("i64", `eqz ${integerCompare}`));
  core(0x5b, each("f32", floatCompare));
  core(0x61, each("f64", floatCompare));
  core(0x67, each("i32", integerArithmetic));
  core(0x79, each("i64", integerArithmetic));
  core(0x8b, each("f32", floatArithmetic));
  core(0x99, each("f64", floatArithmetic));
  core(
    0xa7,
    `i32.wrap_i64 i32.trunc_f32_s i32.trunc_f32_u i32.trunc_f64_s i32.trunc_f64_u i64.extend_i32_s i64.extend_i32_u i64.trunc_f32_s
     i64.trunc_f32_u i64.trunc_f64_s i64.trunc_f64_u f32.convert_i32_s f32.convert_i32_u f32.convert_i64_s f32.convert_i64_u
     f32.demote_f64 f64.convert_i32_s f64.convert_i32_u f64.convert_i64_s f64.convert_i64_u f64.promote_f32 i32.reinterpret_f32
     i64.reinterpret_f64 f32.reinterpret_i32 f64.reinterpret_i64 i32.extend8_s i32.extend16_s i64.extend8_s i64.extend16_s
     i64.extend32_s`,
  );
  prefixed(
    0xfc,
    0,
    `i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.trunc_sat_f64_s i32.trunc_sat_f64_u i64.trunc_sat_f32_s i64.trunc_sat_f32_u
     i64.trunc_sat_f64_s i64.trunc_sat_f64_u`,
  );
  prefixed(
    0xfd,
    0,
    `v128.load v128.load8x8_s v128.load8x8_u v128.load16x4_s v128.load16x4_u v128.load32x2_s v128.load32x2_u v128.load8_splat
     v128.load16_splat v128.load32_splat v128.load64_splat v128.store v128.const i8x16.shuffle i8x16.swizzle i8x16.splat i16x8.splat
     i32x4.splat i64x2.splat f32x4.splat f64x2.splat i8x16.extract_lane_s i8x16.extract_lane_u i8x16.replace_lane
     i16x8.extract_lane_s i16x8.extract_lane_u i16x8.replace_lane i32x4.extract_lane i32x4.replace_lane i64x2.extract_lane
     i64x2.replace_lane f32x4.extract_lane f32x4.replace_lane f64x2.extract_lane f64x2.replace_lane`,
  );
  prefixed(0xfd, 35, each("i8x16", integerCompare));
  prefixed(0xfd, 45, each("i16x8", integerCompare));
  prefixed(0xfd, 55, each("i32x4", integerCompare));
  prefixed(0xfd, 65, each("f32x4", floatCompare));
  prefixed(0xfd, 71, each("f64x2", floatCompare));
  prefixed(
    0xfd,
    77,
    `v128.not v128.and v128.andnot v128.or v128.xor v128.bitselect v128.any_true v128.load8_lane v128.load16_lane v128.load32_lane
     v128.load64_lane v128.store8_lane v128.store16_lane v128.store32_lane v128.store64_lane v128.load32_zero v128.load64_zero
     f32x4.demote_f64x2_zero f64x2.promote_low_f32x4`,
  );
  prefixed(
    0xfd,
    96,
    `i8x16.abs i8x16.neg i8x16.popcnt i8x16.all_true i8x16.bitmask i8x16.narrow_i16x8_s i8x16.narrow_i16x8_u f32x4.ceil f32x4.floor
     f32x4.trunc f32x4.nearest i8x16.shl i8x16.shr_s i8x16.shr_u i8x16.add i8x16.add_sat_s i8x16.add_sat_u i8x16.sub
     i8x16.sub_sat_s i8x16.sub_sat_u f64x2.ceil f64x2.floor i8x16.min_s i8x16.min_u i8x16.max_s i8x16.max_u f64x2.trunc
     i8x16.avgr_u i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u i32x4.extadd_pairwise_i16x8_s
     i32x4.extadd_pairwise_i16x8_u`,
  );
  prefixed(
    0xfd,
    128,
    `${each("i16x8", "abs neg q15mulr_sat_s all_true bitmask narrow_i32x4_s narrow_i32x4_u extend_low_i8x16_s extend_high_i8x16_s extend_low_i8x16_u extend_high_i8x16_u shl shr_s shr_u add add_sat_s add_sat_u sub sub_sat_s sub_sat_u")}
     f64x2.nearest ${each("i16x8", "mul min_s min_u max_s max_u - avgr_u extmul_low_i8x16_s extmul_high_i8x16_s extmul_low_i8x16_u extmul_high_i8x16_u")}`,
  );
  prefixed(
    0xfd,
    160,
    each(
      "i32x4",
      `abs neg - all_true bitmask - - extend_low_i16x8_s extend_high_i16x8_s extend_low_i16x8_u extend_high_i16x8_u shl shr_s shr_u
       add - - sub - - - mul min_s min_u max_s max_u dot_i16x8_s - extmul_low_i16x8_s extmul_high_i16x8_s extmul_low_i16x8_u
       extmul_high_i16x8_u`,
    ),
  );
  prefixed(
    0xfd,
    192,
    each(
      "i64x2",
      `abs neg - all_true bitmask - - extend_low_i32x4_s extend_high_i32x4_s extend_low_i32x4_u extend_high_i32x4_u shl shr_s shr_u
       add - - sub - - - mul eq ne lt_s gt_s le_s ge_s extmul_low_i32x4_s extmul_high_i32x4_s extmul_low_i32x4_u
       extmul_high_i32x4_u`,
    ),
  );
  prefixed(0xfd, 224, each("f32x4", "abs neg - sqrt add sub mul div min max pmin pmax"));
  prefixed(0xfd, 236, each("f64x2", "abs neg - sqrt add sub mul div min max pmin pmax"));
  prefixed(
    0xfd,
    248,
    `i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u f32x4.convert_i32x4_s f32x4.convert_i32x4_u i32x4.trunc_sat_f64x2_s_zero
     i32x4.trunc_sat_f64x2_u_zero f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u`,
  );
  return table;
}

const resultTypes = new Map<string, ValueType>();

/** Type of the value that an instruction of that name leaves. */
export function resultType(name: string): ValueType {
  let type = resultTypes.get(name);
  if (type === undefined) {
    type = resultTypeOf(name);
    resultTypes.set(name, type);
  }
  return type;
}

function resultTypeOf(name: string): ValueType {
  const [type, operation] = name.split(".") as [string, string | undefined];
  if (operation === undefined) throw new Error(`${name} has no result type`);
  if (/^(i8x16|i16x8|i32x4|i64x2|f32x4|f64x2|v128)$/.test(type)) {
    if (operation.startsWith("extract_lane")) {
      if (type === "f32x4") return "f32";
      if (type === "f64x2") return "f64";
      return type === "i64x2" ? "i64" : "i32";
    }
    return /^(all_true|any_true|bitmask)$/.test(operation) ? "i32" : "v128";
  }
  if (/^(eqz|eq|ne|lt|gt|le|ge)(_[su])?$/.test(operation)) return "i32";
  return type as ValueType;
}
