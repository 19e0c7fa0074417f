/** Changes of declarations, as text, with the class and the rule that they must get. */
import type { ChangeClass } from "../../src/index.ts";
import type { RuleId } from "../../src/rules/rule-table.ts";

export interface TypeMutation {
  readonly name: string;
  readonly package: string;
  /** Replaced on both sides, where the packages have nothing to change in this way. */
  readonly given?: readonly (readonly [was: string, is: string])[];
  /** What is replaced in the built declarations; must occur. Pairs are replaced one after the other. */
  readonly edits: readonly (readonly [was: string, is: string])[];
  readonly class: ChangeClass | undefined;
  readonly rule: RuleId | undefined;
  /** Where the finding must be. */
  readonly subject?: string;
}

const abi = "@mkvm/kvm-abi";
const hw = "@mkvm/hw-x86";
const vac = "@mkvm/vac";
const host = "@mkvm/host";
const vmm = "@mkvm/vmm";

export const typeMutations: readonly TypeMutation[] = [
  // Exports
  {
    name: "an exported function is no longer exported",
    package: hw,
    edits: [["VmxStatus, bankOf,", "VmxStatus,"]],
    class: "major",
    rule: "export-removed",
    subject: "bankOf",
  },
  {
    name: "a function is exported that was not",
    package: hw,
    edits: [["export { CPU_MODELS,", "declare function isBank(id: number): boolean;\nexport { isBank, CPU_MODELS,"]],
    class: "minor",
    rule: "export-added",
  },
  {
    name: "a function is exported under another name",
    package: hw,
    edits: [
      ["declare function bankOf(", "declare function bankOfAddress("],
      ["VmxStatus, bankOf,", "VmxStatus, bankOfAddress,"],
    ],
    class: "major",
    rule: "export-renamed",
  },
  {
    name: "a value becomes a type only",
    package: hw,
    edits: [["SvmStatus, VmxStatus, ", "SvmStatus, type VmxStatus, "]],
    class: "major",
    rule: "export-became-type-only",
  },
  {
    name: "a type is exported as a value too",
    package: host,
    edits: [
      ["ExitStatus, Host,", "Host,"],
      ["export { HostError", "declare const ExitStatus: { readonly killed: 137 };\nexport { ExitStatus, HostError"],
    ],
    class: "minor",
    rule: "export-gained-value",
  },
  {
    name: "an interface is written as an alias",
    package: vac,
    edits: [
      [
        "interface LoadedVmcs {\n    readonly vmcs: Hpa;\n    readonly owner: OwnerId;\n}",
        "type LoadedVmcs = {\n    readonly vmcs: Hpa;\n    readonly owner: OwnerId;\n};",
      ],
    ],
    class: "patch",
    rule: "declaration-rewritten",
  },
  {
    name: "a class becomes an interface",
    package: host,
    edits: [
      ["declare class HostError extends Error {", "/** @implementedBy package */\ninterface HostError extends Error {"],
      ["constructor(code: string, message: string);", ""],
    ],
    class: "major",
    rule: "export-kind-changed",
  },
  {
    name: "a function is marked deprecated",
    package: hw,
    edits: [["/** Offset in the bank, in bytes. */", "/** @deprecated */"]],
    class: "minor",
    rule: "export-deprecated",
  },
  // What the package makes
  {
    name: "what the kernel gives gains a method",
    package: abi,
    edits: [["interface Clock {", "interface Clock {\n    bootNs(): number;"]],
    class: "minor",
    rule: "member-added",
    subject: "Clock.bootNs",
  },
  {
    name: "what the kernel gives loses a method",
    package: abi,
    edits: [["    needResched(): boolean;", ""]],
    class: "major",
    rule: "member-removed",
    subject: "Scheduler.needResched",
  },
  {
    name: "what the kernel gives may lack a member",
    package: abi,
    edits: [["readonly tid: number;", "readonly tid?: number;"]],
    class: "major",
    rule: "member-made-optional",
    subject: "Task.tid",
  },
  {
    name: "what the kernel gives always has a member that could be undefined",
    package: abi,
    edits: [["readonly deadlineNs: number | undefined;", "readonly deadlineNs: number;"]],
    class: "minor",
    rule: "output-narrowed",
    subject: "Timer.deadlineNs",
  },
  {
    name: "what the kernel gives may be undefined",
    package: abi,
    edits: [["    createWaitQueue(): WaitQueue;", "    createWaitQueue(): WaitQueue | undefined;"]],
    class: "major",
    rule: "output-widened",
    subject: "Scheduler.createWaitQueue()",
  },
  {
    name: "a function that the kernel gives takes more",
    package: abi,
    edits: [["    arm(deadlineNs: number): void;", "    arm(deadlineNs: number | bigint): void;"]],
    class: "minor",
    rule: "input-widened",
    subject: "Timer.arm(deadlineNs)",
  },
  {
    name: "a function that the kernel gives takes less",
    package: abi,
    edits: [['level: "err" | "warn" | "info" | "debug"', 'level: "err" | "warn" | "info"']],
    class: "major",
    rule: "input-narrowed",
    subject: "Kernel.log(level)",
  },
  {
    name: "a function that the kernel gives takes something else",
    package: abi,
    edits: [["    arm(deadlineNs: number): void;", "    arm(deadlineNs: bigint): void;"]],
    class: "major",
    rule: "type-changed",
    subject: "Timer.arm(deadlineNs)",
  },
  {
    name: "a member can no longer be assigned to",
    package: abi,
    edits: [
      [
        "    operations: FileOperations;\n    privateData: unknown;\n}",
        "    readonly operations: FileOperations;\n    privateData: unknown;\n}",
      ],
    ],
    class: "major",
    rule: "member-made-readonly",
    subject: "File.operations",
  },
  {
    name: "a member can be assigned to",
    package: abi,
    edits: [["    readonly moduleName: string;", "    moduleName: string;"]],
    class: "minor",
    rule: "member-made-writable",
  },
  {
    name: "VAC gains a method",
    package: vac,
    edits: [
      [
        "    freeVpid(owner: OwnerId, vpid: number): void;",
        "    freeVpid(owner: OwnerId, vpid: number): void;\n    vpidsInUse(): number;",
      ],
    ],
    class: "minor",
    rule: "member-added",
  },
  {
    name: "VAC loses a method",
    package: vac,
    edits: [["    emergencyDisable(): void;", ""]],
    class: "major",
    rule: "member-removed",
    subject: "Vac.emergencyDisable",
  },
  // What modules, programs and callers make
  {
    name: "modules must provide one more function",
    package: abi,
    edits: [["    /** Called once no file of the module is open. Gives back everything. */", "    suspend(): void;"]],
    class: "major",
    rule: "member-added-required",
    subject: "ModuleInstance.suspend",
  },
  {
    name: "modules may provide one more function",
    package: abi,
    edits: [["    /** Called once no file of the module is open. Gives back everything. */", "    suspend?(): void;"]],
    class: "minor",
    rule: "member-added-optional",
    subject: "ModuleInstance.suspend",
  },
  {
    name: "modules need no longer provide a function",
    package: abi,
    edits: [["    abort(): void;", "    abort?(): void;"]],
    class: "minor",
    rule: "member-relaxed",
    subject: "IncomingVm.abort",
  },
  {
    name: "modules must provide what they could leave out",
    package: abi,
    edits: [["    release?(file: File): void;", "    release(file: File): void;"]],
    class: "major",
    rule: "member-made-required",
    subject: "FileOperations.release",
  },
  {
    name: "modules may answer more",
    package: abi,
    edits: [["    open?(file: File): number;", "    open?(file: File): number | Promise<number>;"]],
    class: "minor",
    rule: "input-widened",
    subject: "FileOperations.open()",
  },
  {
    name: "modules may answer less",
    package: abi,
    edits: [["task: Task): number | Promise<number>;", "task: Task): number;"]],
    class: "major",
    rule: "input-narrowed",
    subject: "FileOperations.ioctl()",
  },
  {
    name: "modules are called with one argument more",
    package: abi,
    edits: [["    release?(file: File): void;", "    release?(file: File, task: Task): void;"]],
    class: "minor",
    rule: "parameter-added-optional",
    subject: "FileOperations.release(task)",
  },
  {
    name: "modules are called with one argument less",
    package: abi,
    edits: [["lengthBytes: number, offsetBytes: number): PhysicalAddress;", "lengthBytes: number): PhysicalAddress;"]],
    class: "major",
    rule: "parameter-removed",
    subject: "FileOperations.mmap(offsetBytes)",
  },
  {
    name: "modules are called with more kinds of argument",
    package: abi,
    edits: [["    open?(file: File): number;", "    open?(file: File | undefined): number;"]],
    class: "major",
    rule: "output-widened",
    subject: "FileOperations.open(file)",
  },
  {
    name: "modules may be called without an argument",
    package: abi,
    edits: [["    open?(file: File): number;", "    open?(file?: File): number;"]],
    class: "major",
    rule: "implemented-parameter-made-optional",
  },
  {
    name: "programs get one more system call",
    package: abi,
    edits: [["    closeInput(): void;", "    closeInput(): void;\n    getpid(): number;"]],
    class: "minor",
    rule: "member-added",
    subject: "SystemCalls.getpid",
  },
  {
    name: "callers may give one more option",
    package: host,
    edits: [["interface InsmodOptions {", "interface InsmodOptions {\n    force?: boolean;"]],
    class: "minor",
    rule: "member-added-optional",
  },
  {
    name: "callers must give one more option",
    package: host,
    edits: [["interface InsmodOptions {", "interface InsmodOptions {\n    force: boolean;"]],
    class: "major",
    rule: "member-added-required",
  },
  {
    name: "an option takes one value more",
    package: host,
    edits: [['vendor?: "intel" | "amd";', 'vendor?: "intel" | "amd" | "zhaoxin";']],
    class: "minor",
    rule: "input-widened",
  },
  {
    name: "an option takes one value less",
    package: host,
    edits: [['vendor?: "intel" | "amd";', 'vendor?: "intel";']],
    class: "major",
    rule: "input-narrowed",
    subject: "HostOptions.vendor",
  },
  {
    name: "a result has one state more",
    package: host,
    edits: [
      [
        'state: "running" | "waiting" | "frozen" | "ending";',
        'state: "running" | "waiting" | "frozen" | "ending" | "stopped";',
      ],
    ],
    class: "major",
    rule: "output-widened",
    subject: "ProcessInfo.state",
  },
  {
    name: "what goes both ways gains a required member",
    package: abi,
    edits: [["interface SectionSupport {", "interface SectionSupport {\n    readonly flags: number;"]],
    class: "major",
    rule: "member-added-required",
  },
  {
    name: "what goes both ways becomes wider",
    package: abi,
    edits: [["readonly maxVersion: number;", "readonly maxVersion: number | undefined;"]],
    class: "major",
    rule: "type-changed",
    subject: "SectionSupport.maxVersion",
  },
  // Functions and constants
  {
    name: "a function needs one more argument",
    package: hw,
    edits: [
      [
        "declare function hpa(bank: number, offset: number): Hpa;",
        "declare function hpa(bank: number, offset: number, cpu: number): Hpa;",
      ],
    ],
    class: "major",
    rule: "parameter-added-required",
    subject: "hpa(cpu)",
  },
  {
    name: "a function takes one more argument",
    package: hw,
    edits: [
      [
        "declare function hpa(bank: number, offset: number): Hpa;",
        "declare function hpa(bank: number, offset: number, cpu?: number): Hpa;",
      ],
    ],
    class: "minor",
    rule: "parameter-added-optional",
  },
  {
    name: "an argument can be left out",
    package: hw,
    edits: [
      ["declare function hpa(bank: number, offset: number): Hpa;", "declare function hpa(bank: number, offset?: number): Hpa;"],
    ],
    class: "minor",
    rule: "parameter-made-optional",
  },
  {
    name: "an argument can no longer be left out",
    package: host,
    edits: [["declare function createHost(options?: HostOptions)", "declare function createHost(options: HostOptions)"]],
    class: "major",
    rule: "parameter-made-required",
  },
  {
    name: "a function takes one argument less",
    package: hw,
    edits: [["declare function hpa(bank: number, offset: number): Hpa;", "declare function hpa(bank: number): Hpa;"]],
    class: "major",
    rule: "parameter-removed",
  },
  {
    name: "a function answers less",
    package: vac,
    edits: [["registerOwner(moduleName: string): OwnerId | number;", "registerOwner(moduleName: string): OwnerId;"]],
    class: "minor",
    rule: "output-narrowed",
  },
  {
    name: "an argument has another name",
    package: hw,
    edits: [["declare function bankOf(address: Hpa)", "declare function bankOf(where: Hpa)"]],
    class: "patch",
    rule: "declaration-rewritten",
  },
  {
    name: "a constant has another value",
    package: vmm,
    edits: [["readonly tripleFault: 4;", "readonly tripleFault: 5;"]],
    class: "major",
    rule: "constant-type-changed",
    subject: "ExitStatus.tripleFault",
  },
  {
    name: "a constant has one value more",
    package: vmm,
    edits: [["readonly tripleFault: 4;", "readonly tripleFault: 4;\n    readonly watchdog: 14;"]],
    class: "minor",
    rule: "member-added",
  },
  {
    name: "a constant has one value less",
    package: vmm,
    edits: [["    readonly reset: 10;\n", ""]],
    class: "major",
    rule: "member-removed",
  },
  {
    name: "a function gains an overload",
    package: hw,
    edits: [
      [
        "declare function bankOf(address: Hpa): number;",
        "declare function bankOf(address: Hpa): number;\ndeclare function bankOf(address: string): string;",
      ],
    ],
    class: "minor",
    rule: "overload-added",
  },
  {
    name: "a constructor needs one more argument",
    package: host,
    edits: [["constructor(code: string, message: string);", "constructor(code: string, message: string, status: number);"]],
    class: "major",
    rule: "parameter-added-required",
  },
  {
    name: "what a result could lack is always there",
    package: host,
    edits: [["message?: string;", "message: string;"]],
    class: "minor",
    rule: "member-guaranteed",
    subject: "ExitStatus.message",
  },
  {
    name: "modules are always called with an argument that could be missing",
    package: abi,
    given: [["open?(file: File): number;", "open?(file?: File): number;"]],
    edits: [["open?(file?: File): number;", "open?(file: File): number;"]],
    class: "minor",
    rule: "implemented-parameter-guaranteed",
  },
  {
    name: "a function loses an overload",
    package: hw,
    given: [
      [
        "declare function bankOf(address: Hpa): number;",
        "declare function bankOf(address: Hpa): number;\ndeclare function bankOf(address: string): string;",
      ],
    ],
    edits: [["declare function bankOf(address: string): string;", ""]],
    class: "major",
    rule: "overload-removed",
  },
  // Type parameters
  {
    name: "an argument of a type may be anything",
    package: abi,
    given: [["interface Kernel<Vac = unknown,", "interface Kernel<Vac extends object = object,"]],
    edits: [["interface Kernel<Vac extends object = object,", "interface Kernel<Vac = unknown,"]],
    class: "minor",
    rule: "type-parameter-widened",
  },
  {
    name: "a type takes one more argument with a default",
    package: abi,
    edits: [
      [
        "interface Kernel<Vac = unknown, Cpu = unknown> {",
        "interface Kernel<Vac = unknown, Cpu = unknown, Perf = unknown> {\n    readonly perf?: Perf;",
      ],
    ],
    class: "minor",
    rule: "type-parameter-added-with-default",
  },
  {
    name: "a type takes one more argument",
    package: abi,
    edits: [["interface Field<T> {", "interface Field<T, Raw> {\n    readonly raw?: Raw;"]],
    class: "major",
    rule: "type-parameter-added",
  },
  {
    name: "a type takes one argument less",
    package: abi,
    edits: [
      ["interface Kernel<Vac = unknown, Cpu = unknown> {", "interface Kernel<Vac = unknown> {"],
      ["readonly cpu: Cpu;", "readonly cpu: unknown;"],
    ],
    class: "major",
    rule: "type-parameter-removed",
  },
  {
    name: "an argument of a type has no default any more",
    package: abi,
    edits: [["interface Kernel<Vac = unknown, Cpu = unknown> {", "interface Kernel<Vac, Cpu> {"]],
    class: "major",
    rule: "type-parameter-narrowed",
  },
  {
    name: "an argument of a type must be less",
    package: abi,
    edits: [
      ["interface Kernel<Vac = unknown, Cpu = unknown> {", "interface Kernel<Vac = unknown, Cpu extends object = object> {"],
    ],
    class: "major",
    rule: "type-parameter-narrowed",
  },
  {
    name: "a member of a generic type gains an optional member",
    package: abi,
    edits: [
      ["    readonly sizeNegotiatedBy?: string;", "    readonly sizeNegotiatedBy?: string;\n    readonly since?: string;"],
    ],
    class: "minor",
    rule: "member-added-optional",
    subject: "Struct.since",
  },
  // Nothing
  {
    name: "documentation changes",
    package: hw,
    edits: [["/** Offset in the bank, in bytes. */", "/** Bytes from the bank's start. */"]],
    class: undefined,
    rule: undefined,
  },
  {
    name: "declarations are in another order",
    package: vmm,
    edits: [["export { ExitStatus, main };", "export { main, ExitStatus };"]],
    class: undefined,
    rule: undefined,
  },
];
