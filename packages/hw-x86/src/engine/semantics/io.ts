/** Port I/O. */
import { RDX } from "../cpu-state.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";

/** INS and OUTS move 4 bytes at most, also with REX.W. */
const bytesOf = (size: number): number => (size === 8 ? 1 : size === 16 ? 2 : 4);

function portRow(mnemonic: string, source: string, forms: readonly Form[], helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms,
    semantics(e, operands) {
      const immediate = operands.find(({ text }) => text === "imm8");
      const port = immediate === undefined ? e.reg(RDX, 16) : e.read(immediate);
      e.helperThenEndBlock(helper, e.low32(port), bytesOf(e.size), immediate === undefined ? 0 : 1);
    },
  });
}

/** INS and OUTS without and with a repeat prefix; a helper does one iteration and says whether more follow. */
function stringRows(mnemonic: string, source: string, byteOpcode: string, wideOpcode: string, helper: string): Instruction[] {
  const plain = instruction(mnemonic, {
    source,
    forms: [form(byteOpcode, "", "byte"), form(wideOpcode, "", "sized")],
    semantics(e) {
      e.helper(helper, bytesOf(e.size), 0);
      e.endBlock();
    },
  });
  const repeated = instruction(`REP ${mnemonic}`, {
    source,
    forms: ["F3", "F2"].flatMap((prefix) => [
      form(`${prefix} ${byteOpcode}`, "", "byte", "rep"),
      form(`${prefix} ${wideOpcode}`, "", "sized", "rep"),
    ]),
    semantics(e) {
      const more = e.helper(helper, bytesOf(e.size), 1);
      e.if(more, () => e.repeat());
      e.endBlock();
    },
  });
  return [plain, repeated];
}

export const io: readonly Instruction[] = [
  portRow(
    "IN",
    sdm("2A", "IN - Input From Port"),
    [form("E4 ib", "AL, imm8"), form("E5 ib", "eAX, imm8"), form("EC", "AL, DX"), form("ED", "eAX, DX")],
    "portIn",
  ),
  portRow(
    "OUT",
    sdm("2B", "OUT - Output to Port"),
    [form("E6 ib", "imm8, AL"), form("E7 ib", "imm8, eAX"), form("EE", "DX, AL"), form("EF", "DX, eAX")],
    "portOut",
  ),
  ...stringRows("INS", sdm("2A", "INS/INSB/INSW/INSD - Input From Port to String"), "6C", "6D", "stringIn"),
  ...stringRows("OUTS", sdm("2B", "OUTS/OUTSB/OUTSW/OUTSD - Output String to Port"), "6E", "6F", "stringOut"),
];
