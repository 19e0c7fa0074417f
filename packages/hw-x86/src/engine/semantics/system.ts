/** Control and debug registers, MSRs, descriptor tables, flags that privilege guards, and the other instructions of kernels. */
import { GS, SEG_BASE, SEG_EFFECTIVE_BASE, segmentOffset, state } from "../cpu-state.ts";
import type { Emitter, Int } from "../emitter.ts";
import { type Form, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { op } from "../operation.ts";
import { SVM_MNEMONICS } from "../system/helpers-svm.ts";
import { VMX_MNEMONICS } from "../system/helpers-vmx.ts";
import { behaves, VendorBehaviour } from "../vendor-behaviour.ts";
import { pop, push } from "./stack-access.ts";

const IF = 1 << 9;
const VM_BIT = 17;
/** VM and RF read as 0 in the image that PUSHF pushes. */
const PUSHED_FLAGS = 0xfffc_ffff;

/** First 64-bit argument of the helper that follows: an effective address or a value. */
function argument(e: Emitter, value: Int): void {
  e.setState(state.helper, 64, value);
}
const result = (e: Emitter): Int => e.state(state.helper, 64);

/** CPL <= IOPL; in real mode CPL is 0. */
function mayChangeIf(e: Emitter) {
  const iopl = e.and(e.shr(e.state(state.systemFlags, 32), e.int(12)), e.int(3));
  return e.not1(e.ltu(iopl, e.state(state.cpl, 32)));
}

/** A row that is nothing but a call of its helper. */
function helperRow(mnemonic: string, source: string, forms: readonly Form[], helper: string, ...values: number[]): Instruction {
  return instruction(mnemonic, {
    source,
    forms,
    semantics(e) {
      e.helperThenEndBlock(helper, ...values);
    },
  });
}

export const CLI = instruction("CLI", {
  source: sdm("2A", "CLI - Clear Interrupt Flag"),
  forms: [form("FA", "")],
  semantics(e) {
    e.if(
      mayChangeIf(e),
      () => e.setState(state.systemFlags, 32, e.and(e.state(state.systemFlags, 32), e.int(0xffff_ffff & ~IF))),
      () => {
        e.helper("clearInterruptFlag");
      },
    );
  },
});

export const STI = instruction("STI", {
  source: sdm("2B", "STI - Set Interrupt Flag"),
  forms: [form("FB", "")],
  semantics(e) {
    e.helper("setInterruptFlag");
    e.endBlock();
  },
});

export const PUSHF = instruction("PUSHF/PUSHFD/PUSHFQ", {
  source: sdm("2B", "PUSHF/PUSHFD/PUSHFQ - Push EFLAGS Register Onto the Stack"),
  forms: [form("9C", "", "default64")],
  semantics(e) {
    const isChecked = e.or1(e.bit(e.state(state.systemFlags, 32), VM_BIT), e.ne(e.state(state.pushfIntercepted, 32), e.int(0)));
    const image = e.variable("i64", e.and(e.readFlags(), e.int(PUSHED_FLAGS)));
    e.if(isChecked, () => image.set(e.fromI32(e.helper("pushedFlags", e.low32(image.get()), e.size / 8))));
    push(e, e.truncate(image.get(), e.size));
  },
});

export const POPF = instruction("POPF/POPFD/POPFQ", {
  source: sdm("2B", "POPF/POPFD/POPFQ - Pop Stack Into EFLAGS Register"),
  forms: [form("9D", "", "default64")],
  semantics(e) {
    const { value, release } = pop(e);
    e.helper("loadFlags", e.low32(value), e.size / 8);
    release();
    e.endBlock();
  },
});

export const MOV_FROM_CR = instruction("MOV", {
  source: sdm("2B", "MOV - Move to/from Control Registers"),
  forms: [form("0F 20 /r", "rd64=rm, cr")],
  semantics(e, [target, register]) {
    e.helper("readControl", e.low32(e.read(register)), op.a);
    e.write(target, e.truncate(result(e), e.size));
  },
});

export const MOV_TO_CR = instruction("MOV", {
  source: sdm("2B", "MOV - Move to/from Control Registers"),
  forms: [form("0F 22 /r", "cr, rd64=rm")],
  semantics(e, [register, source]) {
    argument(e, e.read(source));
    e.helperThenEndBlock("writeControl", e.low32(e.read(register)), op.b);
  },
});

export const MOV_FROM_DR = instruction("MOV", {
  source: sdm("2B", "MOV - Move to/from Debug Registers"),
  forms: [form("0F 21 /r", "rd64=rm, dr")],
  semantics(e, [target, register]) {
    e.helper("readDebug", e.low32(e.read(register)), op.a);
    e.write(target, e.truncate(result(e), e.size));
  },
});

export const MOV_TO_DR = instruction("MOV", {
  source: sdm("2B", "MOV - Move to/from Debug Registers"),
  forms: [form("0F 23 /r", "dr, rd64=rm")],
  semantics(e, [register, source]) {
    argument(e, e.read(source));
    e.helperThenEndBlock("writeDebug", e.low32(e.read(register)), op.b);
  },
});

/** Bytes of base of a pseudo-descriptor: 8 in 64-bit mode, else 4; 3 stands for 24 bits (16-bit operand size, loads only). */
const baseBytes = (e: Emitter): number => (e.size === 64 ? 8 : e.size === 16 ? 3 : 4);

function tableRow(mnemonic: string, source: string, opcode: string, helper: string, isIdt: number): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(opcode, "m", "force64")],
    semantics(e, [memory]) {
      argument(e, e.address(memory));
      e.helperThenEndBlock(helper, isIdt, baseBytes(e));
    },
  });
}

export const SGDT = tableRow("SGDT", sdm("2B", "SGDT - Store Global Descriptor Table Register"), "0F 01 /0", "storeTable", 0);
export const SIDT = tableRow(
  "SIDT",
  sdm("2B", "SIDT - Store Interrupt Descriptor Table Register"),
  "0F 01 /1",
  "storeTable",
  1,
);
export const LGDT = tableRow(
  "LGDT",
  sdm("2A", "LGDT/LIDT - Load Global/Interrupt Descriptor Table Register"),
  "0F 01 /2",
  "loadTable",
  0,
);
export const LIDT = tableRow(
  "LIDT",
  sdm("2A", "LGDT/LIDT - Load Global/Interrupt Descriptor Table Register"),
  "0F 01 /3",
  "loadTable",
  1,
);

export const SMSW = instruction("SMSW", {
  source: sdm("2B", "SMSW - Store Machine Status Word"),
  forms: [form("0F 01 /4 mod=3", "rv=rm"), form("0F 01 /4 mod!=3", "m16")],
  semantics(e, [target]) {
    e.helper("storeMachineStatus");
    e.write(target, e.truncate(result(e), e.isMemory(target) ? 16 : e.size));
  },
});

export const LMSW = instruction("LMSW", {
  source: sdm("2A", "LMSW - Load Machine Status Word"),
  forms: [form("0F 01 /6", "r/m16")],
  requires: ["cpl0"],
  semantics(e, [source]) {
    const value = e.read(source);
    if (e.isMemory(source)) argument(e, e.address(source));
    e.helperThenEndBlock("loadMachineStatus", e.low32(value), e.isMemory(source) ? 1 : 0);
  },
});

export const CLTS = helperRow(
  "CLTS",
  sdm("2A", "CLTS - Clear Task-Switched Flag in CR0"),
  [form("0F 06", "")],
  "clearTaskSwitched",
);

export const INVLPG = instruction("INVLPG", {
  source: sdm("2A", "INVLPG - Invalidate TLB Entries"),
  forms: [form("0F 01 /7 mod!=3", "m")],
  semantics(e, [memory]) {
    argument(e, e.address(memory));
    e.helperThenEndBlock("invalidatePage");
  },
});

export const INVPCID = instruction("INVPCID", {
  source: sdm("2A", "INVPCID - Invalidate Process-Context Identifier"),
  forms: [form("66 0F 38 82 /r", "rd64, m128")],
  semantics(e, [type, descriptor]) {
    argument(e, e.address(descriptor));
    const given = e.read(type);
    // A type of more than 32 bits is as wrong as any other wrong one
    e.helperThenEndBlock("invalidateProcessContext", e.low32(e.select(e.ltu(e.int(3), given), e.int(4), given)));
  },
});

const AC = 1 << 18;
export const CLAC = instruction("CLAC", {
  source: sdm("2A", "CLAC - Clear AC Flag in EFLAGS Register"),
  forms: [form("NP 0F 01 CA", "")],
  semantics(e) {
    e.raiseIf(e.ne(e.state(state.cpl, 32), e.int(0)), "#UD");
    e.helper("clearAccessFlag");
  },
});
export const STAC = instruction("STAC", {
  source: sdm("2B", "STAC - Set AC Flag in EFLAGS Register"),
  forms: [form("NP 0F 01 CB", "")],
  semantics(e) {
    e.raiseIf(e.ne(e.state(state.cpl, 32), e.int(0)), "#UD");
    e.setState(state.systemFlags, 32, e.or(e.state(state.systemFlags, 32), e.int(AC)));
  },
});

export const RDPKRU = helperRow(
  "RDPKRU",
  sdm("2B", "RDPKRU - Read Protection Key Rights for User Pages"),
  [form("NP 0F 01 EE", "")],
  "readKeyRights",
  0,
);
export const WRPKRU = helperRow(
  "WRPKRU",
  sdm("2B", "WRPKRU - Write Data to User Page Key Register"),
  [form("NP 0F 01 EF", "")],
  "writeKeyRights",
  0,
);

export const SERIALIZE = instruction("SERIALIZE", {
  source: sdm("2B", "SERIALIZE - Serialize Instruction Execution"),
  forms: [form("NP 0F 01 E8", "")],
  semantics(e) {
    // Nothing is ever ahead: each instruction is done when the next begins, and code that was written is decoded anew
    e.raiseIf(e.not1(behaves(e, VendorBehaviour.hasSerialize)), "#UD");
  },
});

export const INVD = helperRow(
  "INVD",
  sdm("2A", "INVD - Invalidate Internal Caches"),
  [form("0F 08", "")],
  "invalidateCaches",
  0,
);
export const WBINVD = helperRow(
  "WBINVD",
  sdm("2D", "WBINVD - Write Back and Invalidate Cache"),
  [form("0F 09", "")],
  "invalidateCaches",
  1,
);
export const HLT = helperRow("HLT", sdm("2A", "HLT - Halt"), [form("F4", "")], "halt");
export const PAUSE = helperRow("PAUSE", sdm("2B", "PAUSE - Spin Loop Hint"), [form("F3 90", "")], "pause");
export const MONITOR = helperRow(
  "MONITOR",
  sdm("2B", "MONITOR - Set Up Monitor Address"),
  [form("NP 0F 01 C8", "")],
  "monitor",
);
export const MWAIT = helperRow("MWAIT", sdm("2B", "MWAIT - Monitor Wait"), [form("NP 0F 01 C9", "")], "mwait");
export const CPUID = helperRow("CPUID", sdm("2A", "CPUID - CPU Identification"), [form("0F A2", "")], "cpuid");
export const RDMSR = helperRow("RDMSR", sdm("2B", "RDMSR - Read From Model Specific Register"), [form("0F 32", "")], "readMsr");
export const WRMSR = helperRow("WRMSR", sdm("2D", "WRMSR - Write to Model Specific Register"), [form("0F 30", "")], "writeMsr");
export const RDTSC = helperRow("RDTSC", sdm("2B", "RDTSC - Read Time-Stamp Counter"), [form("0F 31", "")], "readTsc");
export const RDTSCP = helperRow(
  "RDTSCP",
  sdm("2B", "RDTSCP - Read Time-Stamp Counter and Processor ID"),
  [form("0F 01 F9", "")],
  "readTscAndAux",
);
export const RDPMC = helperRow(
  "RDPMC",
  sdm("2B", "RDPMC - Read Performance-Monitoring Counters"),
  [form("0F 33", "")],
  "readPerformanceCounter",
);

export const SWAPGS = instruction("SWAPGS", {
  source: sdm("2B", "SWAPGS - Swap GS Base Register"),
  forms: [form("0F 01 F8", "", "only64")],
  requires: ["cpl0"],
  semantics(e) {
    const slot = segmentOffset(GS);
    const kernel = e.state(state.kernelGsBase, 64);
    const current = e.state(slot + SEG_BASE, 64);
    e.setState(state.kernelGsBase, 64, current);
    e.setState(slot + SEG_BASE, 64, kernel);
    e.setState(slot + SEG_EFFECTIVE_BASE, 64, kernel);
  },
});

/** VMX instructions by opcode; their operands are the hypervisor's to decode. */
const VMX_FORMS: Readonly<Record<(typeof VMX_MNEMONICS)[number], Form>> = {
  VMCALL: form("NP 0F 01 C1", ""),
  VMLAUNCH: form("NP 0F 01 C2", ""),
  VMRESUME: form("NP 0F 01 C3", ""),
  VMXOFF: form("NP 0F 01 C4", ""),
  VMFUNC: form("NP 0F 01 D4", ""),
  VMPTRLD: form("NP 0F C7 /6", "m64"),
  VMCLEAR: form("66 0F C7 /6", "m64"),
  VMXON: form("F3 0F C7 /6", "m64"),
  VMPTRST: form("NP 0F C7 /7", "m64"),
  VMREAD: form("NP 0F 78 /r", "r/md64, rd64"),
  VMWRITE: form("NP 0F 79 /r", "rd64, r/md64"),
  INVEPT: form("66 0F 38 80 /r", "rd64, m128"),
  INVVPID: form("66 0F 38 81 /r", "rd64, m128"),
};

const vmxRows: readonly Instruction[] = VMX_MNEMONICS.map((mnemonic, index) =>
  instruction(mnemonic, {
    source: sdm("3C", `VMX Instruction Reference, ${mnemonic}`),
    forms: [VMX_FORMS[mnemonic]],
    semantics(e, operands: readonly FormOperand[]) {
      // The effective address is what the exit qualification needs of a memory operand.
      const memory = operands.find((operand) => e.isMemory(operand));
      if (memory !== undefined) argument(e, e.address(memory));
      e.helperThenEndBlock("vmxInstruction", index);
    },
  }),
);

/** SVM instructions by opcode. */
const SVM_FORMS: Readonly<Record<(typeof SVM_MNEMONICS)[number], Form>> = {
  VMRUN: form("0F 01 D8", ""),
  VMMCALL: form("0F 01 D9", ""),
  VMLOAD: form("0F 01 DA", ""),
  VMSAVE: form("0F 01 DB", ""),
  STGI: form("0F 01 DC", ""),
  CLGI: form("0F 01 DD", ""),
  SKINIT: form("0F 01 DE", ""),
  INVLPGA: form("0F 01 DF", ""),
};
const svmRows: readonly Instruction[] = SVM_MNEMONICS.map((mnemonic, index) =>
  helperRow(mnemonic, `AMD64 APM Vol. 3, ${mnemonic}`, [SVM_FORMS[mnemonic]], "svmInstruction", index),
);
export const RSM = helperRow("RSM", sdm("2B", "RSM - Resume From System Management Mode"), [form("0F AA", "")], "resume");

export const system: readonly Instruction[] = [
  CLI,
  STI,
  PUSHF,
  POPF,
  MOV_FROM_CR,
  MOV_TO_CR,
  MOV_FROM_DR,
  MOV_TO_DR,
  SGDT,
  SIDT,
  LGDT,
  LIDT,
  SMSW,
  LMSW,
  CLTS,
  INVLPG,
  INVPCID,
  CLAC,
  STAC,
  RDPKRU,
  WRPKRU,
  SERIALIZE,
  INVD,
  WBINVD,
  HLT,
  PAUSE,
  MONITOR,
  MWAIT,
  CPUID,
  RDMSR,
  WRMSR,
  RDTSC,
  RDTSCP,
  RDPMC,
  SWAPGS,
  ...vmxRows,
  ...svmRows,
  RSM,
];
