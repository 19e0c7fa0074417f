/** What a function that masters the bus reaches, on the CPU that it works for at the moment. */
export interface PciBus {
  /** A copy of memory within one page; undefined: master abort, nothing answers there. */
  readMemory(address: number, bytes: number): Uint8Array | undefined;
  /** False: master abort, and nothing was written. */
  writeMemory(address: number, data: Uint8Array): boolean;
  /** A message-signalled interrupt, or a doubleword for memory where the address is not that of interrupts. False: master abort. */
  writeMessage(address: number, data: number): boolean;
}
