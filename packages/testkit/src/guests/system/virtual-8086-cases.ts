/** Virtual-8086 mode and protected mode's virtual interrupts: by IOPL, CR4.VME and PVI, the redirection map, VIF and VIP. */
import { bytes32, type SystemCase } from "./case-writer.ts";
import { GDT, PAGE, PAGE_CODE, Selector, TSS } from "./layout.ts";

const VM = 0x2_0000;
const VIF = 0x8_0000;
const VIP = 0x10_0000;
const VME = 1;
const PVI = 2;
/** Real-mode segments: code at PAGE + PAGE_CODE, a stack below, vectors at 0. */
const CODE_SEGMENT = (PAGE + PAGE_CODE) >>> 4;
const STACK_SEGMENT = 0x3100;
/** Where vector 60h of the table at 0 leads: PAGE's INT 81h. */
const REAL_VECTOR = 0x60;

const instructions: Record<string, readonly number[]> = {
  cli: [0xfa],
  sti: [0xfb],
  pushf: [0x9c, 0x58],
  pushfd: [0x66, 0x9c, 0x66, 0x58],
  "popf, IF": [0x68, 0x02, 0x02, 0x9d],
  "popf, none": [0x68, 0x02, 0x00, 0x9d],
  "popf, TF": [0x68, 0x02, 0x01, 0x9d],
  popfd: [0x66, 0x68, 0x02, 0x02, 0, 0, 0x66, 0x9d],
  "int 60h": [0xcd, REAL_VECTOR],
  int3: [0xcc],
  "into, no overflow": [0xce],
  icebp: [0xf1],
  iret: [0x68, 0x02, 0x02, 0x68, CODE_SEGMENT & 0xff, CODE_SEGMENT >>> 8, 0x6a, 12, 0xcf, 0x90, 0x90, 0x90],
  iretd: [
    0x66,
    0x68,
    2,
    2,
    0,
    0,
    0x66,
    0x68,
    CODE_SEGMENT & 0xff,
    CODE_SEGMENT >>> 8,
    0,
    0,
    0x66,
    0x6a,
    17,
    0x66,
    0xcf,
    0x90,
    0x90,
  ],
  hlt: [0xf4],
  in: [0xe4, 0x80, 0xb0, 0],
  "in, allowed": [0xe4, 0x00, 0xb0, 0],
  "mov eax, cr0": [0x0f, 0x20, 0xc0],
  lmsw: [0x0f, 0x01, 0xf0],
  smsw: [0x0f, 0x01, 0xe0],
  sldt: [0x0f, 0x00, 0xc0],
  lldt: [0x0f, 0x00, 0xd0],
  lar: [0x0f, 0x02, 0xc0],
  arpl: [0x63, 0xc0],
  verr: [0x0f, 0x00, 0xe0],
  lgdt: [0x0f, 0x01, 0x16, 0, 0],
  sgdt: [0x0f, 0x01, 0x06, 0, 0],
  clts: [0x0f, 0x06],
  "mov ds": [0xb8, 0x34, 0x12, 0x8e, 0xd8],
  "read past 64 KiB": [0xbb, 0xff, 0xff, 0x8b, 0x07],
  "read past 64 KiB, 32-bit": [0x66, 0xbb, 0, 0, 1, 0, 0x67, 0x8b, 0x03],
  "push, sp 1": [0xbc, 1, 0, 0x50],
  "far jmp": [0xea, 0, 0, (PAGE >>> 4) & 0xff, PAGE >>> 12],
  "far call": [0x9a, 0, 0, (PAGE >>> 4) & 0xff, PAGE >>> 12],
  "load that faults": [0x67, 0xa1, ...bytes32(0xf000)],
  ud2: [0x0f, 0x0b],
  syscall: [0x0f, 0x05],
  sysexit: [0x0f, 0x35],
};

const cases: SystemCase[] = [];
for (const [name, code] of Object.entries(instructions))
  for (const iopl of [0, 3])
    for (const cr4 of [0, VME])
      for (const flags of [0, 0x200, VIF, VIP, VIP | VIF])
        for (const isRedirected of cr4 === 0 ? [false] : [false, true])
          cases.push({
            name: `virtual-8086 mode, ${name}, IOPL ${iopl}, CR4 ${cr4}, flags ${flags.toString(16)}${isRedirected ? ", redirected" : ""}`,
            bits: 32,
            setup: (m) => {
              // HLT ends what does not fault: it does in this mode
              for (const [i, byte] of [...code, 0xf4, 0xf4].entries()) m.poke(PAGE + PAGE_CODE + i, byte, 1);
              m.poke(PAGE + PAGE_CODE + 0x3c, 0xf4, 1)
                .poke(0x81 * 4, 0x3c, 2)
                .poke(0x81 * 4 + 2, CODE_SEGMENT, 2);
              m.poke(REAL_VECTOR * 4, 0, 2).poke(REAL_VECTOR * 4 + 2, PAGE >>> 4, 2);
              // The I/O map begins behind the 32 bytes that say which vectors are the task's own
              m.poke(TSS + 0x66, 0x88, 2).poke(TSS + 0x88, 0xffff_fffe);
              for (let i = 0; i < 8; i++) m.poke(TSS + 0x68 + i * 4, isRedirected ? 0 : 0xffff_ffff);
              m.poke(GDT + Selector.task, 0x98, 2).poke(GDT + Selector.task + 5, 0x89, 1);
              m.load("eax", Selector.task).bytes(0x0f, 0x00, 0xd8).writeCr(4, cr4);
            },
            action: (m) => {
              for (const word of [0, 0, 0, 0, STACK_SEGMENT, 0xf00, VM | flags | (iopl << 12) | 2, CODE_SEGMENT, 0])
                m.bytes(0x68, ...bytes32(word));
              m.bytes(0xcf);
            },
            isLong: cases.length % 4 !== 0,
          });

/** Virtual interrupts of protected mode. */
for (const [name, code] of Object.entries({
  cli: [0xfa],
  sti: [0xfb],
  "pushf, pop": [0x9c, 0x58],
  "popf, IF": [0x68, 2, 2, 0, 0, 0x9d],
}))
  for (const iopl of [0, 0x3000])
    for (const flags of [0, 0x200, VIF, VIP, VIP | VIF])
      for (const bits of [32, 64] as const)
        cases.push({
          name: `virtual interrupts at privilege 3, ${name}, IOPL ${iopl >>> 12}, flags ${flags.toString(16)}`,
          bits,
          ring: 3,
          flags: flags | iopl,
          setup: (m) => void m.writeCr(4, PVI | (bits === 64 ? 0x20 : 0)),
          action: code,
        });

export const virtual8086Cases: readonly SystemCase[] = cases;
