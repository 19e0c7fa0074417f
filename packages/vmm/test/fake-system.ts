import { Errno, type SystemCalls } from "@mkvm/kvm-abi";

/** System calls over plain memory and files given as bytes: enough for what loads images. Anything else throws by name. */
export function fakeSystem(files: Record<string, Uint8Array>, memoryBytes = 64 << 20): SystemCalls {
  const u8 = new Uint8Array(memoryBytes);
  const open: (Uint8Array | undefined)[] = [undefined, undefined, undefined];
  let next = 4096;
  const absent = (name: string) => () => {
    throw new Error(`the fake system has no ${name}`);
  };
  return {
    memory: { u8, view: new DataView(u8.buffer) },
    pid: 1,
    open: (path) => (files[path] ? open.push(files[path]) - 1 : -Errno.ENOENT),
    close: () => 0,
    ioctl: absent("ioctl"),
    mmap(lengthBytes) {
      const at = next;
      next += Math.ceil(lengthBytes / 4096) * 4096;
      return next <= memoryBytes ? at : -Errno.ENOMEM;
    },
    munmap: () => 0,
    read: absent("read"),
    pread(fd, address, lengthBytes, offsetBytes) {
      const part = open[fd]!.subarray(offsetBytes, offsetBytes + lengthBytes);
      u8.set(part, address);
      return part.length;
    },
    pwrite(fd, address, lengthBytes, offsetBytes) {
      open[fd]!.set(u8.subarray(address, address + lengthBytes), offsetBytes);
      return lengthBytes;
    },
    write: absent("write"),
    eventfd: absent("eventfd"),
    poll: absent("poll"),
    fstatSize: (fd) => open[fd]!.length,
    resourceUsage: () => ({ instructions: 0, kernelBytes: 0 }),
    clockMonotonicNs: () => 0,
    clockRealtimeNs: () => 0n,
    spawnThread: absent("spawnThread"),
    signalThread: absent("signalThread"),
    sleepNs: absent("sleepNs"),
    closeInput: absent("closeInput"),
    onSave: absent("onSave"),
    restored: () => undefined,
  };
}
