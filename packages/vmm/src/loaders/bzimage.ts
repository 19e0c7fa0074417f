import { writeAcpiTables } from "../boot/acpi-tables.ts";
import { BOOT_STACK_TOP, HIGH_MEMORY } from "../memory-layout.ts";
import { VmmError } from "../vmm-error.ts";
import { type BootRequest, type EntryPoint, type ImageLoader, view } from "./guest-image.ts";
import { writeZeroPage } from "./linux-zero-page.ts";
import { placeCommandLine, placeInitrd, requireRoom } from "./placement.ts";

/** Offsets in the image. Source: Linux, Documentation/arch/x86/boot.rst, The Real-Mode Kernel Header. */
const SETUP_HEADER = 0x1f1,
  SETUP_SECTORS = 0x1f1,
  BOOT_FLAG = 0x1fe,
  JUMP = 0x200,
  HEADER_MAGIC = 0x202,
  VERSION = 0x206,
  LOAD_FLAGS = 0x211,
  CODE32_START = 0x214,
  INITRD_ADDRESS_MAX = 0x22c,
  XLOAD_FLAGS = 0x236,
  COMMAND_LINE_SIZE = 0x238,
  INIT_SIZE = 0x260;
const HDRS = 0x53726448;
const LOADED_HIGH = 1;
const XLF_KERNEL_64 = 1;
const ENTRY_64_OFFSET = 0x200;
const SECTOR = 512;
/** Version 2.06 brought the size of the command line; older kernels are of before 2007. */
const OLDEST_VERSION = 0x0206;

export const bzImage: ImageLoader = {
  name: "Linux bzImage",

  recognizes(head) {
    return (
      head.length > INIT_SIZE + 4 &&
      view(head).getUint16(BOOT_FLAG, true) === 0xaa55 &&
      view(head).getUint32(HEADER_MAGIC, true) === HDRS
    );
  },

  load(request: BootRequest): EntryPoint {
    const { head, image, memory } = request;
    const header = view(head);
    const version = header.getUint16(VERSION, true);
    if (version < OLDEST_VERSION || !(head[LOAD_FLAGS] & LOADED_HIGH)) {
      throw new VmmError(
        `${image.path} follows boot protocol ${version >> 8}.${version & 0xff}; mkvm needs a bzImage of 2.6 or later`,
      );
    }
    const setupBytes = ((head[SETUP_SECTORS] || 4) + 1) * SECTOR;
    const kernelBytes = image.bytes - setupBytes;
    const start = header.getUint32(CODE32_START, true) || HIGH_MEMORY;
    const initBytes = version >= 0x020a ? header.getUint32(INIT_SIZE, true) : kernelBytes;
    const needed = Math.max(initBytes, kernelBytes);
    requireRoom(request, start, needed, `the kernel ${image.path}`);
    image.readInto(memory, start, setupBytes, kernelBytes);

    const commandLine = placeCommandLine(request, header.getUint32(COMMAND_LINE_SIZE, true));
    const initrd = placeInitrd(request, start + needed, header.getUint32(INITRD_ADDRESS_MAX, true));
    const setupHeader = head.slice(SETUP_HEADER, HEADER_MAGIC + head[JUMP + 1]);
    const zeroPage = writeZeroPage(memory, {
      setupHeader,
      commandLine,
      initrd,
      acpiRootPointer: writeAcpiTables(memory, request.cpus),
    });
    const is64 = version >= 0x020c && (header.getUint16(XLOAD_FLAGS, true) & XLF_KERNEL_64) !== 0;
    return is64
      ? { mode: "long", rip: start + ENTRY_64_OFFSET, registers: { rsi: zeroPage, rsp: BOOT_STACK_TOP } }
      : { mode: "protected", rip: start, registers: { rsi: zeroPage, rsp: BOOT_STACK_TOP } };
  },
};
