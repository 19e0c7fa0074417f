/** Where Bochs and mkvm differ and mkvm stays as it is, with the manual's reason. Each must still be there: see missingDifferences. */
export interface KnownDifference {
  readonly what: string;
  readonly cases: RegExp;
  /** Words of the outcome that may differ. */
  readonly words: readonly string[];
  readonly reason: string;
}

/**
 * Cases whose outcome is another on the AMD machine: it has no SMEP, SMAP and UMIP, and no SYSENTER in long mode (AMD64 APM Vol. 3,
 * SYSENTER). Bochs is asked for Intel's.
 */
export const NOT_ON_AMD = /SMEP|SMAP|UMIP|^mov cr4, bit (11|20|21)$|^sysenter|^sysexit/;

const ANY_OUTCOME = ["vector", "error", "ip", "flags", "eax", "rax", "cr2", "memory"];

export const KNOWN_DIFFERENCES: readonly KnownDifference[] = [
  {
    what: "FPU control word after reset",
    cases: /^state after reset$/,
    words: ["fpuControl"],
    reason:
      "KVM gives a vCPU the FPU as FNINIT leaves it, 37FH, as Linux's does; 40H is the processor's (Intel SDM Vol. 3A, Processor State After Reset). VMMs that want it set it.",
  },
  {
    what: "protection keys for accesses of privilege 0",
    cases: /^key 1, PKRU (4|8|12), PKE true, .* flags [57], privilege 0, (read|write)/,
    words: ANY_OUTCOME,
    reason:
      "PKRU governs data accesses to user-mode addresses by supervisor-mode code as well (Intel SDM Vol. 3A, Protection Keys). Bochs leaves those to CR0.WP alone.",
  },
  {
    what: "the protection-key bit of error codes for supervisor-mode addresses",
    cases: /^key 1, PKRU (4|8|12), PKE true, .* flags [03], privilege 3, (read|write)/,
    words: ["error"],
    reason: "The PK flag is set only where the address is a user-mode one (Intel SDM Vol. 3A, Page-Fault Exceptions).",
  },
  {
    what: "protection keys for supervisor-mode addresses",
    cases: /^key 1, PKRU (8|12), PKE true, WP true, flags 3, privilege 0, write/,
    words: ANY_OUTCOME,
    reason:
      "PKRU governs accesses to user-mode addresses alone (Intel SDM Vol. 3A, Protection Keys). Bochs forbids writes by the key of a supervisor-mode page as well, where CR0.WP is set.",
  },
  {
    what: "upper half of ESP on a 16-bit inner stack",
    cases: /^INT 16-bit SS0/,
    words: ["esp"],
    reason: "ESP is loaded whole from the task state segment (Intel SDM Vol. 2A, INT n: NewESP is 4 bytes). Bochs loads SP.",
  },
  {
    what: "order of checks of a new task's CS and SS",
    cases: /^task switch by \w+: (CS b|CS of access \w+, RPL 3),/,
    words: ["error", "memory"],
    reason:
      "The exact order is model specific (Intel SDM Vol. 3A, Task Switching: Exception Conditions Checked During a Task Switch).",
  },
  {
    what: "DR6 has breakpoint conditions of the next instruction at a single step",
    cases: /^code breakpoint at byte 1 of .*, flags (100|10100),/,
    words: ["dr6"],
    reason:
      "Traps on the previous instruction are taken before code breakpoints of the next are looked for (Intel SDM Vol. 3A, Priority Among Simultaneous Exceptions and Interrupts).",
  },
  {
    what: "single steps on branches",
    cases: /^step on branches over (nop, then jmp|jump not taken|rep movsb, then jmp|nothing but nop)$/,
    words: ["vector", "ip", "dr6", "ecx", "esi", "edi", "rcx", "rsi", "rdi"],
    reason:
      "With BTF and TF the processor traps behind taken branches only (Intel SDM Vol. 3B, Single-Stepping on Branches; AMD64 APM Vol. 2, Debug-Control MSR). Bochs takes any value of IA32_DEBUGCTL and makes nothing of it: it traps behind what is no branch.",
  },
  {
    what: "bit 11 of DR7",
    cases: /^DR7 of (ffffffff|ffff0ff0) reads/,
    words: ["edx", "rdx"],
    reason:
      "It is RTM, which reads as 0 where a processor has no restricted transactional memory (Intel SDM Vol. 3B, Debug Control Register (DR7); AMD64 APM Vol. 2, Debug-Control Register (DR7)). Bochs keeps it, without having that either.",
  },
  {
    what: "RF in the frame of general detect",
    cases: /^mov (from|to) DR\d, general detect/,
    words: ["flags"],
    reason:
      "For any fault-class exception except a debug exception generated in response to an instruction breakpoint, the value pushed for RF is 1 (Intel SDM Vol. 3B, Instruction-Breakpoint Exception Condition).",
  },
  {
    what: "breakpoints on ports",
    cases: /^port breakpoint at/,
    words: ["vector", "ip", "dr6", "flags"],
    reason:
      "The access exits, and KVM carries it out in the guest's place; as Linux's it looks at no port breakpoints. The processor by itself has them (debug-registers.test.ts of hw-x86).",
  },
  {
    what: "an alignment check and a page fault of one access",
    cases: /^alignment, across pages, AM true, AC true, privilege 3/,
    words: ["vector", "error", "cr2"],
    reason:
      "Both are of one class, in which page faults are named first (Intel SDM Vol. 3A, Priority Among Simultaneous Exceptions and Interrupts).",
  },
  {
    what: "which part of a descriptor-table pointer is read first",
    cases: /^lgdt there/,
    words: ["vector", "error", "cr2"],
    reason: "The limit is read before the base (Intel SDM Vol. 2A, LGDT/LIDT, Operation). Bochs reads the base first.",
  },
  {
    what: "IRET to an absent stack segment",
    cases: /^iret to privilege 3, ss of access 72, RPL 3/,
    words: ["vector"],
    reason:
      "A stack segment that is not present is #SS, by a return to another privilege level as well (Intel SDM Vol. 3A, Interrupt 12 - Stack Fault Exception (#SS); AMD64 APM Vol. 3, IRET). Bochs has #NP.",
  },
  {
    what: "breakpoint conditions in DR6 of before a single step",
    cases: /^DR6 before a step/,
    words: ["dr6"],
    reason: "Certain debug exceptions may clear bits 0 to 3 of DR6 (Intel SDM Vol. 3B, Debug Status Register (DR6)).",
  },
  {
    what: "VIF and VIP both set in protected mode",
    cases: /^virtual interrupts at privilege 3, (cli|pushf, pop|popf, IF), IOPL 0, flags 180000/,
    words: [...ANY_OUTCOME],
    reason:
      "CR4.PVI is about CLI and STI, and #GP comes where STI sets VIF (Intel SDM Vol. 3B, Protected-Mode Virtual Interrupts). Bochs has the #GP that virtual-8086 code meets at its next instruction, in 32-bit code alone.",
  },
  {
    what: "VIF and VIP both set, at IOPL 3",
    cases: /^(virtual-8086 mode, .*, IOPL 3, CR4 1|virtual interrupts at privilege 3, .*, IOPL 3), flags 180000/,
    words: [...ANY_OUTCOME, "cs", "oldEsp", "ebx", "ds", "vmDs", "esp", "oldSs"],
    reason:
      "The processor recognizes VIP only where IOPL is less than 3 (Intel SDM Vol. 3A, System Flags and Fields in the EFLAGS Register).",
  },
];
