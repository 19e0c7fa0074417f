/** Register state of a vCPU as `<asm/kvm.h>` lays it out. Source: Linux, Documentation/virt/kvm/api.rst. */
import { array, bytes, nested, struct, structs, u8, u16, u32, u64 } from "../layout.ts";

/** KVM_GET_REGS, KVM_SET_REGS. Note the order: not the encoding order of the registers. */
export const KvmRegs = struct("kvm_regs", 144, {
  rax: u64(0),
  rbx: u64(8),
  rcx: u64(16),
  rdx: u64(24),
  rsi: u64(32),
  rdi: u64(40),
  rsp: u64(48),
  rbp: u64(56),
  r8: u64(64),
  r9: u64(72),
  r10: u64(80),
  r11: u64(88),
  r12: u64(96),
  r13: u64(104),
  r14: u64(112),
  r15: u64(120),
  rip: u64(128),
  rflags: u64(136),
});

export const KvmSegment = struct("kvm_segment", 24, {
  base: u64(0),
  limit: u32(8), // bytes, granularity applied
  selector: u16(12),
  type: u8(14),
  present: u8(15),
  dpl: u8(16),
  db: u8(17),
  s: u8(18),
  l: u8(19),
  g: u8(20),
  avl: u8(21),
  unusable: u8(22),
  padding: u8(23),
});

export const KvmDtable = struct("kvm_dtable", 16, {
  base: u64(0),
  limit: u16(8),
  padding: array(10, u16, 3),
});

const specialRegisters = {
  cs: nested(0, KvmSegment),
  ds: nested(24, KvmSegment),
  es: nested(48, KvmSegment),
  fs: nested(72, KvmSegment),
  gs: nested(96, KvmSegment),
  ss: nested(120, KvmSegment),
  tr: nested(144, KvmSegment),
  ldt: nested(168, KvmSegment),
  gdt: nested(192, KvmDtable),
  idt: nested(208, KvmDtable),
  cr0: u64(224),
  cr2: u64(232),
  cr3: u64(240),
  cr4: u64(248),
  cr8: u64(256),
  efer: u64(264),
  apic_base: u64(272),
};

export const KvmSregs = struct("kvm_sregs", 312, {
  ...specialRegisters,
  interrupt_bitmap: array(280, u64, 4), // at most one bit: an external interrupt taken but not yet delivered
});

export const KvmSregs2 = struct("kvm_sregs2", 320, {
  ...specialRegisters,
  flags: u64(280), // Sregs2Flag
  pdptrs: array(288, u64, 4),
});
export const Sregs2Flag = { KVM_SREGS2_FLAGS_PDPTRS_VALID: 1 } as const;

/** KVM_GET_FPU, KVM_SET_FPU. */
export const KvmFpu = struct("kvm_fpu", 416, {
  fpr: bytes(0, 128), // 8 registers of 16 bytes
  fcw: u16(128),
  fsw: u16(130),
  ftwx: u8(132), // abridged tag word, as FXSAVE has it
  pad1: u8(133),
  last_opcode: u16(134),
  last_ip: u64(136),
  last_dp: u64(144),
  xmm: bytes(152, 256), // 16 registers of 16 bytes
  mxcsr: u32(408),
  pad2: u32(412),
});

export const KvmDebugregs = struct("kvm_debugregs", 128, {
  db: array(0, u64, 4),
  dr6: u64(32),
  dr7: u64(40),
  flags: u64(48),
  reserved: array(56, u64, 9),
});

/** KVM_GET_XSAVE, KVM_SET_XSAVE: the standard (uncompacted) XSAVE format. */
export const KvmXsave = struct("kvm_xsave", 4096, { region: bytes(0, 4096) }, { name: "extra", strideBytes: 4 });

export const KvmXcr = struct("kvm_xcr", 16, { xcr: u32(0), reserved: u32(4), value: u64(8) });
export const KVM_MAX_XCRS = 16;
export const KvmXcrs = struct("kvm_xcrs", 392, {
  nr_xcrs: u32(0),
  flags: u32(4),
  xcrs: structs(8, KvmXcr, KVM_MAX_XCRS),
  padding: array(264, u64, 16),
});

/** KVM_TRANSLATE. */
export const KvmTranslation = struct("kvm_translation", 24, {
  linear_address: u64(0),
  physical_address: u64(8),
  valid: u8(16),
  writeable: u8(17),
  usermode: u8(18),
  pad: bytes(19, 5),
});
