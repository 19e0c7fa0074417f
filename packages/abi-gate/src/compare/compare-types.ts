/**
 * Compares two types where one takes the place of the other. `madeBy` says who makes its values: what the package makes may become
 * less, what users make may become more, and what both make must stay what it is. The compiler's own assignability decides, in both
 * directions; members and parameters are looked at one by one, so that a finding names the place.
 */
import ts from "typescript";
import { opposite } from "../report/makers.ts";
import type { MadeBy } from "../report/schema.ts";
import type { Findings, RuleId } from "../rules/rule-table.ts";

export class TypeComparison {
  readonly #checker: ts.TypeChecker;
  readonly #place: ts.Node;
  readonly #findings: Findings;
  /** Pairs under comparison: types may contain themselves. */
  readonly #open = new Set<string>();

  constructor(checker: ts.TypeChecker, place: ts.Node, findings: Findings) {
    this.#checker = checker;
    this.#place = place;
    this.#findings = findings;
  }

  /** A declared type: an interface, a class's instances, what an alias stands for. */
  declared(old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    if (isPlainObject(old) && isPlainObject(now)) this.#members(old, now, madeBy, subject);
    else this.slot(old, now, madeBy, subject);
  }

  /** One place that holds a value: a parameter, a result, a member, a constant. */
  slot(old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    if (old === now) return;
    const key = `${(old as { id?: number }).id} ${(now as { id?: number }).id} ${madeBy}`;
    if (this.#open.has(key)) return;
    this.#open.add(key);
    const oldCalls = old.getCallSignatures();
    const nowCalls = now.getCallSignatures();
    if (oldCalls.length > 0 && nowCalls.length > 0) this.#callable(old, now, madeBy, subject);
    else if (isAnonymousObject(old) && isAnonymousObject(now) && old.getConstructSignatures().length === 0)
      this.#members(old, now, madeBy, subject);
    else if (isUnit(old) && isUnit(now) && this.#differ(old, now)) this.#add("constant-type-changed", subject, old, now);
    else this.#assignable(old, now, madeBy, subject);
    this.#open.delete(key);
  }

  /** A class as a value: how it is constructed, and its static members. */
  constructors(old: ts.Type, now: ts.Type, subject: string): void {
    const [was, ...moreWas] = old.getConstructSignatures();
    const [is, ...moreIs] = now.getConstructSignatures();
    if (was && is && moreWas.length === 0 && moreIs.length === 0) this.#parameters(was, is, "package", `new ${subject}`);
    else if (Boolean(was) !== Boolean(is)) this.#add(was ? "overload-removed" : "overload-added", `new ${subject}`, old, now);
    else if (moreWas.length > moreIs.length) this.#add("overload-removed", `new ${subject}`, old, now);
    else if (moreWas.length < moreIs.length) this.#add("overload-added", `new ${subject}`, old, now);
    const statics = (type: ts.Type) => this.#checker.getPropertiesOfType(type).filter(({ name }) => name !== "prototype");
    this.#memberLists(statics(old), statics(now), "package", subject);
  }

  #members(old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    this.#memberLists(this.#checker.getPropertiesOfType(old), this.#checker.getPropertiesOfType(now), madeBy, subject);
    for (const kind of [ts.IndexKind.String, ts.IndexKind.Number]) {
      const was = this.#checker.getIndexInfoOfType(old, kind);
      const is = this.#checker.getIndexInfoOfType(now, kind);
      if (was && is) this.slot(was.type, is.type, madeBy, `${subject}[]`);
      else if (was) this.#add("member-removed", `${subject}[]`, was.type);
      else if (is)
        this.#add(madeBy === "package" ? "member-added" : "member-added-optional", `${subject}[]`, undefined, is.type);
    }
    if (old.getCallSignatures().length > 0 !== now.getCallSignatures().length > 0) this.#add("type-changed", subject, old, now);
  }

  #memberLists(old: readonly ts.Symbol[], now: readonly ts.Symbol[], madeBy: MadeBy, subject: string): void {
    const after = new Map(now.map((symbol) => [symbol.name, symbol]));
    const before = new Map(old.map((symbol) => [symbol.name, symbol]));
    for (const was of old) {
      const path = `${subject}.${memberName(was)}`;
      const is = after.get(was.name);
      if (!is) this.#add("member-removed", path, this.#typeOf(was));
      else this.#member(was, is, madeBy, path);
    }
    for (const is of now) {
      if (before.has(is.name)) continue;
      const rule: RuleId =
        madeBy === "package" ? "member-added" : isOptional(is) ? "member-added-optional" : "member-added-required";
      this.#add(rule, `${subject}.${memberName(is)}`, undefined, this.#typeOf(is));
    }
  }

  #member(was: ts.Symbol, is: ts.Symbol, madeBy: MadeBy, path: string): void {
    const [old, now] = [this.#typeOf(was), this.#typeOf(is)];
    if (!isOptional(was) && isOptional(is))
      this.#add(madeBy === "users" ? "member-relaxed" : "member-made-optional", path, old, now);
    if (isOptional(was) && !isOptional(is))
      this.#add(madeBy === "package" ? "member-guaranteed" : "member-made-required", path, old, now);
    // Who makes a value may assign to it as it likes: readonly binds the reader
    if (madeBy !== "users") {
      if (!isReadonly(was) && isReadonly(is)) this.#add("member-made-readonly", path, old, now);
      if (isReadonly(was) && !isReadonly(is)) this.#add("member-made-writable", path, old, now);
    }
    this.slot(this.#present(old, was), this.#present(now, is), madeBy, path);
  }

  /** The type of an optional member when it is there: that it may be absent is said by its own rules. */
  #present(type: ts.Type, symbol: ts.Symbol): ts.Type {
    if (!isOptional(symbol) || !type.isUnion()) return type;
    return this.#withoutUndefined(type);
  }

  #callable(old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    const [was, ...moreWas] = old.getCallSignatures();
    const [is, ...moreIs] = now.getCallSignatures();
    const generic = Boolean(was!.typeParameters?.length || is!.typeParameters?.length);
    if (moreWas.length === 0 && moreIs.length === 0) {
      if (!generic) {
        this.#parameters(was!, is!, madeBy, subject);
        return;
      }
      if (this.#arity(was!, is!, madeBy, subject)) return;
    }
    const forward = this.#checker.isTypeAssignableTo(old, now);
    const back = this.#checker.isTypeAssignableTo(now, old);
    if (moreWas.length === 0 && moreIs.length === 0) {
      this.#verdict(forward, back, old, now, madeBy, subject);
      return;
    }
    if (forward && back) {
      if (moreWas.length !== moreIs.length)
        this.#add(moreWas.length > moreIs.length ? "overload-removed" : "overload-added", subject, old, now);
    } else if (madeBy === "both" || (madeBy === "package" ? !back : !forward)) this.#add("overload-removed", subject, old, now);
    else this.#add("overload-added", subject, old, now);
  }

  /** Findings about how many arguments there are; true when there were any. `madeBy`: who makes the function. */
  #arity(was: ts.Signature, is: ts.Signature, madeBy: MadeBy, subject: string): boolean {
    const before = this.#findings.all.length;
    const count = Math.max(was.parameters.length, is.parameters.length);
    for (let i = 0; i < count; i++) {
      const [old, now] = [was.parameters[i], is.parameters[i]];
      const at = `${subject}(${(now ?? old)!.name})`;
      if (!now) this.#add("parameter-removed", at, this.#typeOf(old!));
      else if (!old) {
        const free = madeBy === "users" || (madeBy === "package" && isOptionalParameter(now));
        this.#add(free ? "parameter-added-optional" : "parameter-added-required", at, undefined, this.#typeOf(now));
      } else if (isOptionalParameter(old) !== isOptionalParameter(now)) {
        const mayMiss = isOptionalParameter(now);
        if (madeBy === "package")
          this.#add(mayMiss ? "parameter-made-optional" : "parameter-made-required", at, this.#typeOf(old), this.#typeOf(now));
        else if (madeBy === "users")
          this.#add(
            mayMiss ? "implemented-parameter-made-optional" : "implemented-parameter-guaranteed",
            at,
            this.#typeOf(old),
            this.#typeOf(now),
          );
        else
          this.#add(
            mayMiss ? "implemented-parameter-made-optional" : "parameter-made-required",
            at,
            this.#typeOf(old),
            this.#typeOf(now),
          );
      }
    }
    return this.#findings.all.length > before;
  }

  #parameters(was: ts.Signature, is: ts.Signature, madeBy: MadeBy, subject: string): void {
    this.#arity(was, is, madeBy, subject);
    for (let i = 0; i < Math.min(was.parameters.length, is.parameters.length); i++) {
      const [old, now] = [was.parameters[i]!, is.parameters[i]!];
      const presentOld = isOptionalParameter(old) ? this.#withoutUndefined(this.#typeOf(old)) : this.#typeOf(old);
      const presentNow = isOptionalParameter(now) ? this.#withoutUndefined(this.#typeOf(now)) : this.#typeOf(now);
      this.slot(presentOld, presentNow, opposite(madeBy), `${subject}(${now.name})`);
    }
    this.slot(was.getReturnType(), is.getReturnType(), madeBy, `${subject}()`);
  }

  #withoutUndefined(type: ts.Type): ts.Type {
    if (!type.isUnion()) return type;
    const stays = type.types.filter((part) => !(part.flags & ts.TypeFlags.Undefined));
    return stays.length === 1 ? stays[0]! : this.#checker.getNonNullableType(type);
  }

  #assignable(old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    // `any` is assignable both ways and `void` takes every result: both stand above all other types here
    const top = (type: ts.Type) => (type.flags & (ts.TypeFlags.Any | ts.TypeFlags.Void)) !== 0;
    const forward = top(now) || (!top(old) && this.#checker.isTypeAssignableTo(old, now));
    const back = top(old) || (!top(now) && this.#checker.isTypeAssignableTo(now, old));
    this.#verdict(forward, back, old, now, madeBy, subject);
  }

  #verdict(forward: boolean, back: boolean, old: ts.Type, now: ts.Type, madeBy: MadeBy, subject: string): void {
    if (forward && back) return;
    if ((!forward && !back) || madeBy === "both") this.#add("type-changed", subject, old, now);
    else if (forward) this.#add(madeBy === "package" ? "output-widened" : "input-widened", subject, old, now);
    else this.#add(madeBy === "package" ? "output-narrowed" : "input-narrowed", subject, old, now);
  }

  #differ(old: ts.Type, now: ts.Type): boolean {
    return !this.#checker.isTypeAssignableTo(old, now) && !this.#checker.isTypeAssignableTo(now, old);
  }

  #typeOf(symbol: ts.Symbol): ts.Type {
    return this.#checker.getTypeOfSymbolAtLocation(symbol, this.#place);
  }

  #text(type: ts.Type | undefined): string {
    if (!type) return "-";
    const text = this.#checker.typeToString(type, this.#place, ts.TypeFormatFlags.None);
    return text.replaceAll(/__old\d+\./g, "").replaceAll(/\s+/g, " ");
  }

  #add(rule: RuleId, subject: string, old?: ts.Type, now?: ts.Type): void {
    this.#findings.add(rule, subject, `${this.#text(old)} -> ${this.#text(now)}`);
  }
}

const isOptional = (symbol: ts.Symbol): boolean => (symbol.flags & ts.SymbolFlags.Optional) !== 0;

function isReadonly(symbol: ts.Symbol): boolean {
  if (symbol.flags & ts.SymbolFlags.Method) return false;
  const declarations = symbol.declarations ?? [];
  const onlyGetter = declarations.some(ts.isGetAccessor) && !declarations.some(ts.isSetAccessor);
  return onlyGetter || declarations.some((node) => (ts.getCombinedModifierFlags(node) & ts.ModifierFlags.Readonly) !== 0);
}

function isOptionalParameter(symbol: ts.Symbol): boolean {
  const node = symbol.valueDeclaration;
  return node !== undefined && ts.isParameter(node) && Boolean(node.questionToken || node.initializer || node.dotDotDotToken);
}

function isUnit(type: ts.Type): boolean {
  return (type.flags & ts.TypeFlags.Unit) !== 0 && (type.flags & (ts.TypeFlags.Undefined | ts.TypeFlags.Null)) === 0;
}

/** An interface, a class's instances or an object literal type: compared member by member. */
function isPlainObject(type: ts.Type): boolean {
  return (
    (type.flags & ts.TypeFlags.Object) !== 0 &&
    type.getCallSignatures().length === 0 &&
    type.getConstructSignatures().length === 0
  );
}

/** A type that is written where it is used, so nothing else compares it. */
function isAnonymousObject(type: ts.Type): boolean {
  return isPlainObject(type) && ((type as ts.ObjectType).objectFlags & ts.ObjectFlags.Anonymous) !== 0 && !type.aliasSymbol;
}

/** Members named by unique symbols have the compiler's own names. */
function memberName(symbol: ts.Symbol): string {
  return symbol.name.startsWith("__@") ? `[${symbol.name.slice(3).replace(/@\d+$/, "")}]` : symbol.name;
}
