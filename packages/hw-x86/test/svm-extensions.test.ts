/** Branch records and their virtualization, VMLOAD and VMSAVE of a guest itself. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { Control, ExitCode, Intercept4, Save, VIRTUAL_LBR, VIRTUAL_VMLOAD_VMSAVE } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { CODE, type HarnessOptions, SvmHarness } from "./svm-harness.ts";

const HLT = 0xf4;
const NOP = 0x90;
const CPUID = [0x0f, 0xa2];
const VMLOAD = [0x0f, 0x01, 0xda];
const VMSAVE = [0x0f, 0x01, 0xdb];
const TF = 0x100;
const LBR = 1;
const BTF = 2;

function guest(code: readonly number[], extensions: number, mode: HarnessOptions["mode"] = "long"): SvmHarness {
  const h = new SvmHarness({
    mode,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  h.set32(Control.VIRTUAL_EXTENSIONS, extensions);
  return h;
}
const EXCEPTIONS_DB = 1 << 1;

describe("virtual branch records", () => {
  // mov ecx, 3; L: nop; dec ecx; jnz L; nop; cpuid
  const LOOP = [0xb9, 3, 0, 0, 0, NOP, 0xff, 0xc9, 0x75, 0xfb, NOP, ...CPUID];
  const JNZ = BigInt(CODE + 8);
  it("tell the last branch that was taken, and stop with LBR", () => {
    const h = guest(LOOP, VIRTUAL_LBR);
    h.set64(Save.DBGCTL, LBR);
    expect(h.run().code).toBe(ExitCode.cpuid);
    expect([h.get64(Save.BR_FROM), h.get64(Save.BR_TO)]).toEqual([JNZ, BigInt(CODE + 5)]);
    expect(h.get64(Save.DBGCTL)).toBe(1n);
    h.set64(Save.DBGCTL, 0);
    h.set64(Save.BR_FROM, 0x1234);
    h.set64(Save.RIP, CODE);
    h.run();
    expect(h.get64(Save.BR_FROM)).toBe(0x1234n);
  });
  it("are the guest's alone: the host's registers stay", () => {
    const h = guest(LOOP, VIRTUAL_LBR);
    h.set64(Save.DBGCTL, LBR | BTF);
    h.run();
    expect([0x1d9, 0x1db, 0x1dc, 0x1dd, 0x1de].map((index) => h.cpu.rdmsr(index))).toEqual([0n, 0n, 0n, 0n, 0n]);
    expect(h.cpu.wrmsr(0x1db, 1n)).toBe(false);
  });
  it("are one register of guest and host without the virtualization", () => {
    const h = guest(LOOP, 0);
    h.set64(Save.DBGCTL, 0);
    expect(h.cpu.wrmsr(0x1d9, 1n)).toBe(true);
    h.run();
    expect([h.cpu.rdmsr(0x1d9), h.cpu.rdmsr(0x1db), h.get64(Save.BR_FROM)]).toEqual([1n, JNZ, 0n]);
  });
  it("keep the branch before an exception, whose delivery is one itself", () => {
    // jmp over a nop; ud2
    const h = guest([0xeb, 1, NOP, 0x0f, 0x0b], VIRTUAL_LBR);
    const gate = (h.guestMemory + 0x6000 + 6 * 16) >>> 2;
    h.bank.u32[gate] = (0x10 << 16) | 0x9000;
    h.bank.u32[gate + 1] = 0x8e00;
    h.bank.view.setBigUint64(h.guestMemory + 0x5010, 0x00af_9b00_0000_ffffn, true);
    h.setSegment(Save.IDTR, 0, 0, 0xfff, 0x6000);
    h.setSegment(Save.GDTR, 0, 0, 0x1f, 0x5000);
    h.load(CPUID, 0x9000);
    h.set64(Save.DBGCTL, LBR);
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid, rip: 0x9000 });
    const records = [Save.BR_FROM, Save.BR_TO, Save.LAST_EXCEPTION_FROM, Save.LAST_EXCEPTION_TO].map((at) =>
      Number(h.get64(at)),
    );
    expect(records).toEqual([CODE + 3, 0x9000, CODE, CODE + 3]);
  });
  it("come with single steps on branches, which are the guest's", () => {
    const h = guest(LOOP, VIRTUAL_LBR);
    h.set64(Save.DBGCTL, BTF);
    h.set64(Save.RFLAGS, 2 | TF);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, EXCEPTIONS_DB);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 1, rip: CODE + 5 });
    const plain = guest(LOOP, 0);
    plain.set64(Save.DBGCTL, BTF);
    plain.set64(Save.RFLAGS, 2 | TF);
    plain.setBits(Control.INTERCEPT_EXCEPTIONS, EXCEPTIONS_DB);
    // Without the virtualization nothing reads the field: every instruction is a step
    plain.set64(Save.RIP, CODE + 5);
    expect(plain.run()).toMatchObject({ code: ExitCode.exception + 1, rip: CODE + 6 });
  });
});

describe("VMLOAD and VMSAVE of a guest", () => {
  const GUEST_VMCB = 0x10_0000;
  const at = (h: SvmHarness, field: number): number => h.guestMemory + GUEST_VMCB + field;
  function own(code: readonly number[], mode: HarnessOptions["mode"] = "long", extensions = VIRTUAL_VMLOAD_VMSAVE): SvmHarness {
    const h = guest(code, extensions, mode);
    h.set64(Save.RAX, GUEST_VMCB);
    return h;
  }
  it("move its hidden state to and from its own memory", () => {
    // vmload; mov eax, fs:[0]; mov [0x4000], eax; mov eax, GUEST_VMCB; vmsave; cpuid
    const h = own([
      ...VMLOAD,
      ...[0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
      ...[0x89, 0x04, 0x25, 0, 0x40, 0, 0],
      ...[0xb8, 0, 0, 0x10, 0],
      ...VMSAVE,
      ...CPUID,
    ]);
    h.bank.view.setBigUint64(at(h, Save.FS) + 8, 0x20_0000n, true);
    h.bank.view.setUint32(at(h, Save.FS), 0x18 | (0xc93 << 16), true);
    h.bank.view.setUint32(at(h, Save.FS) + 4, 0xffff_ffff, true);
    h.bank.view.setBigUint64(at(h, Save.STAR), 0x1122_3344_5566_7788n, true);
    h.bank.view.setUint32(h.guestMemory + 0x20_0000, 0xcafe, true);
    expect(h.run().code).toBe(ExitCode.cpuid);
    expect(h.guestU32(0x4000)).toBe(0xcafe);
    expect(h.cpu.rdmsr(0xc000_0081)).toBe(0x1122_3344_5566_7788n);
    h.cpu.wrmsr(0xc000_0082, 0xffff_8000_0000_0000n);
    h.set64(Save.RIP, CODE + 3 + 8 + 7);
    h.run();
    expect(h.bank.view.getBigUint64(at(h, Save.LSTAR), true)).toBe(0xffff_8000_0000_0000n);
  });
  it("exit where they are intercepted, and where the nested tables do not reach", () => {
    const intercepted = own(VMLOAD);
    intercepted.setBits(Control.INTERCEPT_4, Intercept4.vmload);
    expect(intercepted.run()).toMatchObject({ code: ExitCode.vmload, rip: CODE });
    const far = own(VMSAVE);
    far.set64(Save.RAX, 0x4000_0000);
    expect(far.run()).toMatchObject({ code: ExitCode.nestedPageFault, info2: 0x4000_0000n, rip: CODE });
  });
  it("are #GP for an address that is not a page's, and #UD without the virtualization", () => {
    for (const [rax, extensions, vector] of [
      [GUEST_VMCB + 8, VIRTUAL_VMLOAD_VMSAVE, 13],
      [2 ** 52, VIRTUAL_VMLOAD_VMSAVE, 13],
      [GUEST_VMCB, 0, 6],
    ] as const) {
      const h = own(VMLOAD, "long", extensions);
      h.set64(Save.RAX, rax);
      h.setBits(Control.INTERCEPT_EXCEPTIONS, (1 << 13) | (1 << 6));
      expect(h.run()).toMatchObject({ code: ExitCode.exception + vector, rip: CODE });
    }
  });
  it("need nested paging", () => {
    const h = own([HLT]);
    h.set32(Control.NESTED, 0);
    expect(h.run().code).toBe(ExitCode.invalid);
    expect(h.log.at(-1)).toContain("virtual VMLOAD and VMSAVE without nested paging");
  });
});
