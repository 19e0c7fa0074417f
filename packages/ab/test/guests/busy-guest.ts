/**
 * Raw 32-bit code (flat32): says "<", then `rounds` times counts down from `work` and writes to a port, which is a VM exit; says
 * ">" and halts.
 */
export function busyGuest(rounds: number, work: number): Uint8Array {
  const word = (value: number) => [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >>> 24) & 0xff];
  const say = (text: string) => [...text].flatMap((character) => [0xb0, character.charCodeAt(0), 0xee]); // mov al; out dx, al
  return Uint8Array.of(
    ...[0xba, ...word(0x3f8)], // mov edx, COM1
    ...say("<\n"),
    ...[0xbb, ...word(rounds)], // mov ebx
    ...[0xb9, ...word(work)], // again: mov ecx
    ...[0x49, 0x75, 0xfd], // dec ecx; jnz to it
    ...[0xe6, 0x80], // out 0x80, al
    ...[0x4b, 0x75, 0xf3], // dec ebx; jnz again
    ...say(">\n"),
    ...[0xf4, 0xeb, 0xfd], // hlt; jmp to it
  );
}
