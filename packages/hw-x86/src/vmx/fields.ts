/**
 * Fields of the VMCS: the encoding by which VMREAD and VMWRITE name them, and where this machine keeps them in the VMCS region.
 * A field of a feature that the capability MSRs do not offer does not exist here, as on silicon.
 * Source: Intel SDM Vol. 3D, Field Encoding in VMCS.
 */
export const VmcsField = {
  GUEST_ES_SELECTOR: 0x0800,
  GUEST_CS_SELECTOR: 0x0802,
  GUEST_SS_SELECTOR: 0x0804,
  GUEST_DS_SELECTOR: 0x0806,
  GUEST_FS_SELECTOR: 0x0808,
  GUEST_GS_SELECTOR: 0x080a,
  GUEST_LDTR_SELECTOR: 0x080c,
  GUEST_TR_SELECTOR: 0x080e,
  GUEST_ES_BASE: 0x6806,
  GUEST_CS_BASE: 0x6808,
  GUEST_SS_BASE: 0x680a,
  GUEST_DS_BASE: 0x680c,
  GUEST_FS_BASE: 0x680e,
  GUEST_GS_BASE: 0x6810,
  GUEST_LDTR_BASE: 0x6812,
  GUEST_TR_BASE: 0x6814,
  GUEST_ES_LIMIT: 0x4800,
  GUEST_CS_LIMIT: 0x4802,
  GUEST_SS_LIMIT: 0x4804,
  GUEST_DS_LIMIT: 0x4806,
  GUEST_FS_LIMIT: 0x4808,
  GUEST_GS_LIMIT: 0x480a,
  GUEST_LDTR_LIMIT: 0x480c,
  GUEST_TR_LIMIT: 0x480e,
  GUEST_ES_ACCESS: 0x4814,
  GUEST_CS_ACCESS: 0x4816,
  GUEST_SS_ACCESS: 0x4818,
  GUEST_DS_ACCESS: 0x481a,
  GUEST_FS_ACCESS: 0x481c,
  GUEST_GS_ACCESS: 0x481e,
  GUEST_LDTR_ACCESS: 0x4820,
  GUEST_TR_ACCESS: 0x4822,
  GUEST_GDTR_BASE: 0x6816,
  GUEST_IDTR_BASE: 0x6818,
  GUEST_GDTR_LIMIT: 0x4810,
  GUEST_IDTR_LIMIT: 0x4812,
  GUEST_CR0: 0x6800,
  GUEST_CR3: 0x6802,
  GUEST_CR4: 0x6804,
  GUEST_DR7: 0x681a,
  GUEST_RSP: 0x681c,
  GUEST_RIP: 0x681e,
  GUEST_RFLAGS: 0x6820,
  GUEST_PENDING_DEBUG: 0x6822,
  GUEST_SYSENTER_ESP: 0x6824,
  GUEST_SYSENTER_EIP: 0x6826,
  GUEST_SYSENTER_CS: 0x482a,
  GUEST_INTERRUPTIBILITY: 0x4824,
  GUEST_ACTIVITY: 0x4826,
  GUEST_SMBASE: 0x4828,
  GUEST_PREEMPTION_TIMER: 0x482e,
  VMCS_LINK_POINTER: 0x2800,
  GUEST_DEBUGCTL: 0x2802,
  GUEST_PAT: 0x2804,
  GUEST_EFER: 0x2806,
  GUEST_PDPTE0: 0x280a,
  GUEST_PDPTE1: 0x280c,
  GUEST_PDPTE2: 0x280e,
  GUEST_PDPTE3: 0x2810,
  HOST_ES_SELECTOR: 0x0c00,
  HOST_CS_SELECTOR: 0x0c02,
  HOST_SS_SELECTOR: 0x0c04,
  HOST_DS_SELECTOR: 0x0c06,
  HOST_FS_SELECTOR: 0x0c08,
  HOST_GS_SELECTOR: 0x0c0a,
  HOST_TR_SELECTOR: 0x0c0c,
  HOST_PAT: 0x2c00,
  HOST_EFER: 0x2c02,
  HOST_SYSENTER_CS: 0x4c00,
  HOST_CR0: 0x6c00,
  HOST_CR3: 0x6c02,
  HOST_CR4: 0x6c04,
  HOST_FS_BASE: 0x6c06,
  HOST_GS_BASE: 0x6c08,
  HOST_TR_BASE: 0x6c0a,
  HOST_GDTR_BASE: 0x6c0c,
  HOST_IDTR_BASE: 0x6c0e,
  HOST_SYSENTER_ESP: 0x6c10,
  HOST_SYSENTER_EIP: 0x6c12,
  HOST_RSP: 0x6c14,
  HOST_RIP: 0x6c16,
  VPID: 0x0000,
  IO_BITMAP_A: 0x2000,
  IO_BITMAP_B: 0x2002,
  MSR_BITMAP: 0x2004,
  EXIT_MSR_STORE_ADDRESS: 0x2006,
  EXIT_MSR_LOAD_ADDRESS: 0x2008,
  ENTRY_MSR_LOAD_ADDRESS: 0x200a,
  EXECUTIVE_VMCS_POINTER: 0x200c,
  TSC_OFFSET: 0x2010,
  EPT_POINTER: 0x201a,
  TSC_MULTIPLIER: 0x2032,
  PIN_CONTROLS: 0x4000,
  PRIMARY_CONTROLS: 0x4002,
  EXCEPTION_BITMAP: 0x4004,
  PAGE_FAULT_MASK: 0x4006,
  PAGE_FAULT_MATCH: 0x4008,
  CR3_TARGET_COUNT: 0x400a,
  EXIT_CONTROLS: 0x400c,
  EXIT_MSR_STORE_COUNT: 0x400e,
  EXIT_MSR_LOAD_COUNT: 0x4010,
  ENTRY_CONTROLS: 0x4012,
  ENTRY_MSR_LOAD_COUNT: 0x4014,
  ENTRY_INTERRUPTION_INFO: 0x4016,
  ENTRY_ERROR_CODE: 0x4018,
  ENTRY_INSTRUCTION_LENGTH: 0x401a,
  SECONDARY_CONTROLS: 0x401e,
  CR0_MASK: 0x6000,
  CR4_MASK: 0x6002,
  CR0_SHADOW: 0x6004,
  CR4_SHADOW: 0x6006,
  CR3_TARGET0: 0x6008,
  CR3_TARGET1: 0x600a,
  CR3_TARGET2: 0x600c,
  CR3_TARGET3: 0x600e,
  GUEST_PHYSICAL_ADDRESS: 0x2400,
  INSTRUCTION_ERROR: 0x4400,
  EXIT_REASON: 0x4402,
  EXIT_INTERRUPTION_INFO: 0x4404,
  EXIT_ERROR_CODE: 0x4406,
  VECTORING_INFO: 0x4408,
  VECTORING_ERROR_CODE: 0x440a,
  EXIT_INSTRUCTION_LENGTH: 0x440c,
  EXIT_INSTRUCTION_INFO: 0x440e,
  EXIT_QUALIFICATION: 0x6400,
  IO_RCX: 0x6402,
  IO_RSI: 0x6404,
  IO_RDI: 0x6406,
  IO_RIP: 0x6408,
  GUEST_LINEAR_ADDRESS: 0x640a,
} as const;

export type VmcsFieldName = keyof typeof VmcsField;

/** Where each field lies in the region, as an index of 32-bit words; every field takes two, so that a natural-width one is aligned. */
export const slot = {
  GUEST_ES_SELECTOR: 16,
  GUEST_CS_SELECTOR: 18,
  GUEST_SS_SELECTOR: 20,
  GUEST_DS_SELECTOR: 22,
  GUEST_FS_SELECTOR: 24,
  GUEST_GS_SELECTOR: 26,
  GUEST_LDTR_SELECTOR: 28,
  GUEST_TR_SELECTOR: 30,
  GUEST_ES_BASE: 32,
  GUEST_CS_BASE: 34,
  GUEST_SS_BASE: 36,
  GUEST_DS_BASE: 38,
  GUEST_FS_BASE: 40,
  GUEST_GS_BASE: 42,
  GUEST_LDTR_BASE: 44,
  GUEST_TR_BASE: 46,
  GUEST_ES_LIMIT: 48,
  GUEST_CS_LIMIT: 50,
  GUEST_SS_LIMIT: 52,
  GUEST_DS_LIMIT: 54,
  GUEST_FS_LIMIT: 56,
  GUEST_GS_LIMIT: 58,
  GUEST_LDTR_LIMIT: 60,
  GUEST_TR_LIMIT: 62,
  GUEST_ES_ACCESS: 64,
  GUEST_CS_ACCESS: 66,
  GUEST_SS_ACCESS: 68,
  GUEST_DS_ACCESS: 70,
  GUEST_FS_ACCESS: 72,
  GUEST_GS_ACCESS: 74,
  GUEST_LDTR_ACCESS: 76,
  GUEST_TR_ACCESS: 78,
  GUEST_GDTR_BASE: 80,
  GUEST_IDTR_BASE: 82,
  GUEST_GDTR_LIMIT: 84,
  GUEST_IDTR_LIMIT: 86,
  GUEST_CR0: 88,
  GUEST_CR3: 90,
  GUEST_CR4: 92,
  GUEST_DR7: 94,
  GUEST_RSP: 96,
  GUEST_RIP: 98,
  GUEST_RFLAGS: 100,
  GUEST_PENDING_DEBUG: 102,
  GUEST_SYSENTER_ESP: 104,
  GUEST_SYSENTER_EIP: 106,
  GUEST_SYSENTER_CS: 108,
  GUEST_INTERRUPTIBILITY: 110,
  GUEST_ACTIVITY: 112,
  GUEST_SMBASE: 114,
  GUEST_PREEMPTION_TIMER: 116,
  VMCS_LINK_POINTER: 118,
  GUEST_DEBUGCTL: 120,
  GUEST_PAT: 122,
  GUEST_EFER: 124,
  GUEST_PDPTE0: 126,
  GUEST_PDPTE1: 128,
  GUEST_PDPTE2: 130,
  GUEST_PDPTE3: 132,
  HOST_ES_SELECTOR: 134,
  HOST_CS_SELECTOR: 136,
  HOST_SS_SELECTOR: 138,
  HOST_DS_SELECTOR: 140,
  HOST_FS_SELECTOR: 142,
  HOST_GS_SELECTOR: 144,
  HOST_TR_SELECTOR: 146,
  HOST_PAT: 148,
  HOST_EFER: 150,
  HOST_SYSENTER_CS: 152,
  HOST_CR0: 154,
  HOST_CR3: 156,
  HOST_CR4: 158,
  HOST_FS_BASE: 160,
  HOST_GS_BASE: 162,
  HOST_TR_BASE: 164,
  HOST_GDTR_BASE: 166,
  HOST_IDTR_BASE: 168,
  HOST_SYSENTER_ESP: 170,
  HOST_SYSENTER_EIP: 172,
  HOST_RSP: 174,
  HOST_RIP: 176,
  VPID: 178,
  IO_BITMAP_A: 180,
  IO_BITMAP_B: 182,
  MSR_BITMAP: 184,
  EXIT_MSR_STORE_ADDRESS: 186,
  EXIT_MSR_LOAD_ADDRESS: 188,
  ENTRY_MSR_LOAD_ADDRESS: 190,
  EXECUTIVE_VMCS_POINTER: 192,
  TSC_OFFSET: 194,
  EPT_POINTER: 196,
  TSC_MULTIPLIER: 198,
  PIN_CONTROLS: 200,
  PRIMARY_CONTROLS: 202,
  EXCEPTION_BITMAP: 204,
  PAGE_FAULT_MASK: 206,
  PAGE_FAULT_MATCH: 208,
  CR3_TARGET_COUNT: 210,
  EXIT_CONTROLS: 212,
  EXIT_MSR_STORE_COUNT: 214,
  EXIT_MSR_LOAD_COUNT: 216,
  ENTRY_CONTROLS: 218,
  ENTRY_MSR_LOAD_COUNT: 220,
  ENTRY_INTERRUPTION_INFO: 222,
  ENTRY_ERROR_CODE: 224,
  ENTRY_INSTRUCTION_LENGTH: 226,
  SECONDARY_CONTROLS: 228,
  CR0_MASK: 230,
  CR4_MASK: 232,
  CR0_SHADOW: 234,
  CR4_SHADOW: 236,
  CR3_TARGET0: 238,
  CR3_TARGET1: 240,
  CR3_TARGET2: 242,
  CR3_TARGET3: 244,
  GUEST_PHYSICAL_ADDRESS: 246,
  INSTRUCTION_ERROR: 248,
  EXIT_REASON: 250,
  EXIT_INTERRUPTION_INFO: 252,
  EXIT_ERROR_CODE: 254,
  VECTORING_INFO: 256,
  VECTORING_ERROR_CODE: 258,
  EXIT_INSTRUCTION_LENGTH: 260,
  EXIT_INSTRUCTION_INFO: 262,
  EXIT_QUALIFICATION: 264,
  IO_RCX: 266,
  IO_RSI: 268,
  IO_RDI: 270,
  IO_RIP: 272,
  GUEST_LINEAR_ADDRESS: 274,
} as const;

/** What a VMWRITE to a field makes stale of what an earlier VM entry has established. */
export const FieldKind = {
  control: 0,
  /** Event injection: looked at by every VM entry. */
  injection: 1,
  host: 2,
  guest: 3,
  /** RIP, RSP, RFLAGS and the like: looked at by every VM entry. */
  guestEveryEntry: 4,
  /** Control registers and EFER: old linear translations may be wrong under the new value. */
  guestPaging: 5,
  readOnly: 6,
} as const;
export type FieldKind = (typeof FieldKind)[keyof typeof FieldKind];

export const FieldWidth = { word: 0, quad: 1, long: 2, natural: 3 } as const;

const EVERY_ENTRY: readonly VmcsFieldName[] = [
  "GUEST_RIP",
  "GUEST_RSP",
  "GUEST_RFLAGS",
  "GUEST_INTERRUPTIBILITY",
  "GUEST_ACTIVITY",
  "GUEST_PENDING_DEBUG",
  "GUEST_PREEMPTION_TIMER",
];
const PAGING: readonly VmcsFieldName[] = ["GUEST_CR0", "GUEST_CR3", "GUEST_CR4", "GUEST_EFER"];
const INJECTION: readonly VmcsFieldName[] = ["ENTRY_INTERRUPTION_INFO", "ENTRY_ERROR_CODE", "ENTRY_INSTRUCTION_LENGTH"];

const ENCODINGS = 0x8000;
/** By encoding without its access-type bit (encoding >> 1): slot, 0 where there is no such field. */
const slots = new Int16Array(ENCODINGS >> 1);
const kinds = new Uint8Array(ENCODINGS >> 1);

function kindOf(name: VmcsFieldName, encoding: number): FieldKind {
  switch ((encoding >> 10) & 3) {
    case 0:
      return INJECTION.includes(name) ? FieldKind.injection : FieldKind.control;
    case 1:
      return FieldKind.readOnly;
    case 2:
      return EVERY_ENTRY.includes(name)
        ? FieldKind.guestEveryEntry
        : PAGING.includes(name)
          ? FieldKind.guestPaging
          : FieldKind.guest;
    default:
      return FieldKind.host;
  }
}

const taken = new Set<number>();
for (const [name, encoding] of Object.entries(VmcsField) as [VmcsFieldName, number][]) {
  const where: number = slot[name];
  if (where < 16 || where > 1022 || where % 2 !== 0 || taken.has(where)) throw new Error(`VMCS layout: ${name} misplaced`);
  taken.add(where);
  slots[encoding >> 1] = where;
  kinds[encoding >> 1] = kindOf(name, encoding);
}

/** Slot of the field with this encoding; 0 when the machine has no such field. The access type "high" exists for 64-bit fields. */
export function slotOfEncoding(encoding: number): number {
  if (encoding >>> 15 !== 0 || ((encoding & 1) !== 0 && ((encoding >> 13) & 3) !== FieldWidth.quad)) return 0;
  return slots[encoding >> 1] ?? 0;
}

export function kindOfEncoding(encoding: number): number {
  return kinds[encoding >> 1] ?? 0;
}

/** Highest index of any field, for IA32_VMX_VMCS_ENUM. */
export const HIGHEST_FIELD_INDEX = Math.max(...Object.values(VmcsField).map((encoding) => (encoding >> 1) & 0x1ff));
