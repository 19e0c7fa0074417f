/** Changes of binary surfaces, with the class and the rule that they must get. */
import type { BinarySurface, ChangeClass } from "../../src/index.ts";
import type { Field, Structure } from "../../src/report/schema.ts";
import type { RuleId } from "../../src/rules/rule-table.ts";

export interface BinaryMutation {
  readonly name: string;
  readonly package: string;
  readonly change: (surface: BinarySurface) => void;
  readonly class: ChangeClass | undefined;
  readonly rule: RuleId | undefined;
  readonly subject?: string;
}

const abi = "@mkvm/kvm-abi";
const vac = "@mkvm/vac";

const found = <Value>(value: Value | undefined, what: string): Value => {
  if (value === undefined) throw new Error(`no ${what} to change`);
  return value;
};
const structure = (surface: BinarySurface, name: string): Structure =>
  found(
    surface.structs.find((each) => each.name === name),
    `struct ${name}`,
  );
const field = (surface: BinarySurface, struct: string, name: string): Field =>
  found(
    structure(surface, struct).fields.find((each) => each.name === name),
    `field ${struct}.${name}`,
  );
const section = (surface: BinarySurface, name: string) =>
  found(
    surface.sections.find((each) => each.name === name),
    `section ${name}`,
  );
const shared = (surface: BinarySurface) => found(surface.sharedMemory[0], "shared memory");
const u32 = (name: string, offset: number): Field => ({ name, offset, sizeBytes: 4, type: "__u32" });
function drop(surface: BinarySurface, struct: string, name: string): Field {
  const { fields } = structure(surface, struct);
  return fields.splice(fields.indexOf(field(surface, struct, name)), 1)[0]!;
}
const without = (record: Record<string, unknown>, name: string): void => {
  if (!(name in record)) throw new Error(`no ${name} to remove`);
  delete record[name];
};

export const binaryMutations: readonly BinaryMutation[] = [
  // Structures
  {
    name: "two fields change places",
    package: abi,
    change: (s) => {
      field(s, "kvm_regs", "rax").offset = 8;
      field(s, "kvm_regs", "rbx").offset = 0;
    },
    class: "major",
    rule: "field-moved",
    subject: "struct kvm_regs.rax",
  },
  {
    name: "a field is wider",
    package: abi,
    change: (s) => {
      Object.assign(field(s, "kvm_mp_state", "mp_state"), { sizeBytes: 8, type: "__u64" });
      structure(s, "kvm_mp_state").sizeBytes = 8;
    },
    class: "major",
    rule: "field-resized",
  },
  {
    name: "a field is signed now",
    package: abi,
    change: (s) => {
      field(s, "kvm_mp_state", "mp_state").type = "__s32";
    },
    class: "major",
    rule: "field-retyped",
  },
  {
    name: "a field is called otherwise",
    package: abi,
    change: (s) => {
      field(s, "kvm_regs", "rip").name = "pc";
    },
    class: "major",
    rule: "field-renamed",
  },
  {
    name: "a field is gone",
    package: abi,
    change: (s) => {
      drop(s, "kvm_regs", "rflags");
    },
    class: "major",
    rule: "field-removed",
  },
  {
    name: "a structure grows at its end",
    package: abi,
    change: (s) => {
      structure(s, "kvm_regs").fields.push(u32("extra", 144));
      structure(s, "kvm_regs").sizeBytes = 148;
    },
    class: "major",
    rule: "field-inserted",
  },
  {
    name: "a structure grows at its end, only in padding",
    package: abi,
    change: (s) => {
      structure(s, "kvm_regs").fields.push(u32("reserved", 144));
      structure(s, "kvm_regs").sizeBytes = 148;
    },
    class: "major",
    rule: "struct-resized",
  },
  {
    name: "kvm_run grows at its end",
    package: abi,
    change: (s) => {
      structure(s, "kvm_run").fields.push(u32("extra", structure(s, "kvm_run").sizeBytes));
      structure(s, "kvm_run").sizeBytes += 4;
    },
    class: "minor",
    rule: "struct-appended",
  },
  {
    name: "kvm_run grows in front",
    package: abi,
    change: (s) => {
      for (const each of structure(s, "kvm_run").fields) each.offset += 4;
      structure(s, "kvm_run").fields.unshift(u32("extra", 0));
      structure(s, "kvm_run").sizeBytes += 4;
    },
    class: "major",
    rule: "field-moved",
  },
  {
    name: "the size of kvm_run is no longer told",
    package: abi,
    change: (s) => {
      delete structure(s, "kvm_run").sizeNegotiatedBy;
    },
    class: "major",
    rule: "size-negotiation-dropped",
  },
  {
    name: "a reserved field is used",
    package: abi,
    change: (s) => {
      const { fields } = structure(s, "kvm_clock_data");
      Object.assign(field(s, "kvm_clock_data", "pad"), { offset: 36, sizeBytes: 12, type: "__u32[3]", count: 3 });
      fields.push(u32("leap_seconds", 32));
    },
    class: "minor",
    rule: "reserved-field-used",
  },
  {
    name: "a reserved field is used in half",
    package: abi,
    change: (s) => {
      drop(s, "kvm_clock_data", "pad0");
      structure(s, "kvm_clock_data").fields.push(
        { name: "source", offset: 12, sizeBytes: 2, type: "__u16" },
        { name: "pad1", offset: 14, sizeBytes: 2, type: "__u16" },
      );
    },
    class: "minor",
    rule: "reserved-field-used",
  },
  {
    name: "the compiler's padding is used",
    package: abi,
    change: (s) => {
      field(s, "kvm_run.fail_entry", "_pad").name = "reason_text";
    },
    class: "major",
    rule: "unnamed-padding-used",
  },
  {
    name: "a union has one member more",
    package: abi,
    change: (s) => {
      field(s, "kvm_run", "exit").members!.push({
        name: "memory_fault",
        offset: 32,
        sizeBytes: 24,
        type: "struct kvm_run.memory_fault",
      });
    },
    class: "minor",
    rule: "union-member-added",
  },
  {
    name: "a union has one member less",
    package: abi,
    change: (s) => {
      const { members } = field(s, "kvm_run", "exit");
      members!.splice(
        members!.findIndex((each) => each.name === "mmio"),
        1,
      );
    },
    class: "major",
    rule: "union-member-removed",
  },
  {
    name: "a nested structure changes",
    package: abi,
    change: (s) => {
      Object.assign(field(s, "kvm_run.mmio", "len"), { sizeBytes: 2, type: "__u16" });
    },
    class: "major",
    rule: "field-resized",
  },
  {
    name: "there is a new structure",
    package: abi,
    change: (s) => {
      s.structs.push({ name: "kvm_memory_fault", sizeBytes: 4, fields: [u32("flags", 0)] });
    },
    class: "minor",
    rule: "struct-added",
  },
  {
    name: "a structure is gone",
    package: abi,
    change: (s) => {
      s.structs.splice(s.structs.indexOf(structure(s, "kvm_dtable")), 1);
    },
    class: "major",
    rule: "struct-removed",
  },
  {
    name: "elements of a flexible array are larger",
    package: abi,
    change: (s) => {
      structure(s, "kvm_cpuid2").tail!.strideBytes += 8;
    },
    class: "major",
    rule: "struct-tail-changed",
  },
  // Numbers
  {
    name: "an ioctl has another number",
    package: abi,
    change: (s) => {
      s.ioctls.KVM_RUN = 0xae99;
    },
    class: "major",
    rule: "ioctl-changed",
  },
  {
    name: "there is a new ioctl",
    package: abi,
    change: (s) => {
      s.ioctls.KVM_PAUSE_VCPU = 0xaefe;
    },
    class: "minor",
    rule: "ioctl-added",
  },
  {
    name: "a new ioctl has a number that is taken",
    package: abi,
    change: (s) => {
      s.ioctls.KVM_PAUSE_VCPU = s.ioctls.KVM_RUN!;
    },
    class: "major",
    rule: "ioctl-collides",
  },
  {
    name: "an ioctl is gone",
    package: abi,
    change: (s) => without(s.ioctls, "KVM_GET_PIT"),
    class: "major",
    rule: "ioctl-removed",
  },
  {
    name: "an exit reason has another number",
    package: abi,
    change: (s) => {
      s.constants["ExitReason.KVM_EXIT_HLT"] = 25;
    },
    class: "major",
    rule: "constant-changed",
  },
  {
    name: "there is a new exit reason",
    package: abi,
    change: (s) => {
      s.constants["ExitReason.KVM_EXIT_NEW"] = 99;
    },
    class: "minor",
    rule: "constant-added",
  },
  {
    name: "a capability is gone",
    package: abi,
    change: (s) => without(s.constants, "Capability.KVM_CAP_IRQCHIP"),
    class: "major",
    rule: "constant-removed",
  },
  {
    name: "the API has another version",
    package: abi,
    change: (s) => {
      s.constants.KVM_API_VERSION = 13;
    },
    class: "major",
    rule: "constant-changed",
  },
  // Sections
  {
    name: "there is a new optional section",
    package: abi,
    change: (s) => {
      s.sections.push({ name: "vcpu.perf", version: 1, required: false, fixed: "mkvm_reserved" });
    },
    class: "minor",
    rule: "section-added-optional",
  },
  {
    name: "there is a new required section",
    package: abi,
    change: (s) => {
      s.sections.push({ name: "vcpu.apx", version: 1, required: true, fixed: "mkvm_reserved" });
    },
    class: "major",
    rule: "section-added-required",
  },
  {
    name: "there is a new required section from the next level on",
    package: abi,
    change: (s) => {
      s.featureLevel!++;
      s.sections.push({ name: "vcpu.apx", version: 1, required: true, fixed: "mkvm_reserved" });
    },
    class: "minor",
    rule: "section-added-with-level",
  },
  {
    name: "a section is gone",
    package: abi,
    change: (s) => {
      s.sections.splice(s.sections.indexOf(section(s, "vm.pit")), 1);
    },
    class: "major",
    rule: "section-removed",
  },
  {
    name: "a section has a later version",
    package: abi,
    change: (s) => {
      section(s, "vcpu.lapic").version++;
    },
    class: "major",
    rule: "section-version-raised",
  },
  {
    name: "a section has a later version from the next level on",
    package: abi,
    change: (s) => {
      s.featureLevel!++;
      section(s, "vcpu.lapic").version++;
      structure(s, "mkvm_vcpu_lapic").sizeBytes += 8;
    },
    class: "minor",
    rule: "section-version-raised-with-level",
  },
  {
    name: "a section has an earlier version",
    package: abi,
    change: (s) => {
      section(s, "vcpu.lapic").version = 0;
    },
    class: "major",
    rule: "section-version-lowered",
  },
  {
    name: "a section changes and its version does not",
    package: abi,
    change: (s) => {
      structure(s, "mkvm_vcpu_tsc").fields.push(u32("ratio", 24));
      structure(s, "mkvm_vcpu_tsc").sizeBytes = 28;
    },
    class: "major",
    rule: "section-layout-changed",
  },
  {
    name: "a reserved field of a section is used",
    package: abi,
    change: (s) => {
      field(s, "mkvm_vcpu_tsc", "reserved").name = "scaling";
    },
    class: "minor",
    rule: "reserved-field-used",
  },
  {
    name: "an optional section is required",
    package: abi,
    change: (s) => {
      section(s, "vm.statistics").required = true;
    },
    class: "major",
    rule: "section-made-required",
  },
  {
    name: "a required section is optional",
    package: abi,
    change: (s) => {
      section(s, "vcpu.pv").required = false;
    },
    class: "minor",
    rule: "section-made-optional",
  },
  {
    name: "sections are in another order",
    package: abi,
    change: (s) => {
      s.sections.reverse();
    },
    class: "patch",
    rule: "section-reordered",
  },
  {
    name: "the feature level is raised",
    package: abi,
    change: (s) => {
      s.featureLevel!++;
    },
    class: "minor",
    rule: "feature-level-raised",
  },
  {
    name: "the feature level is lowered",
    package: abi,
    change: (s) => {
      s.featureLevel!--;
    },
    class: "major",
    rule: "feature-level-lowered",
  },
  // Shared memory
  {
    name: "VAC has another magic number",
    package: vac,
    change: (s) => {
      shared(s).magic++;
    },
    class: "major",
    rule: "shared-magic-changed",
  },
  {
    name: "VAC has another major version",
    package: vac,
    change: (s) => {
      shared(s).major++;
    },
    class: "major",
    rule: "shared-major-changed",
  },
  {
    name: "VAC has a later minor version",
    package: vac,
    change: (s) => {
      shared(s).minor++;
    },
    class: "minor",
    rule: "shared-minor-raised",
  },
  {
    name: "VAC has an earlier minor version",
    package: vac,
    change: (s) => {
      shared(s).minor--;
    },
    class: "major",
    rule: "shared-minor-lowered",
  },
  {
    name: "a block is appended to VAC in a later minor version",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      shared(s).blocks.push({ name: "asids", strideBytes: 1, count: 4096 });
    },
    class: "minor",
    rule: "shared-block-added",
  },
  {
    name: "a block is appended to VAC and its version stays",
    package: vac,
    change: (s) => {
      shared(s).blocks.push({ name: "asids", strideBytes: 1, count: 4096 });
    },
    class: "major",
    rule: "shared-minor-not-raised",
  },
  {
    name: "a block is put in the middle of VAC",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      shared(s).blocks.splice(2, 0, { name: "asids", offset: 2176, strideBytes: 1, count: 64 });
    },
    class: "major",
    rule: "shared-block-moved",
  },
  {
    name: "VAC has more owners",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      shared(s).blocks[1]!.count = 64;
    },
    class: "major",
    rule: "shared-block-moved",
  },
  {
    name: "a block of VAC is gone",
    package: vac,
    change: (s) => {
      shared(s).blocks.splice(3, 1);
    },
    class: "major",
    rule: "shared-block-removed",
  },
  {
    name: "a reserved word of VAC's header is used in a later minor version",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      const { fields } = structure(s, "vac_header");
      const rest = field(s, "vac_header", "reserved");
      fields.push(u32("suspendCount", rest.offset));
      rest.offset += 4;
      rest.sizeBytes -= 4;
    },
    class: "minor",
    rule: "reserved-field-used",
  },
  {
    name: "a reserved word of VAC's header is used and its version stays",
    package: vac,
    change: (s) => {
      const { fields } = structure(s, "vac_header");
      const rest = field(s, "vac_header", "reserved");
      fields.push(u32("suspendCount", rest.offset));
      rest.offset += 4;
      rest.sizeBytes -= 4;
    },
    class: "major",
    rule: "shared-minor-not-raised",
  },
  {
    name: "a CPU's block of VAC grows at its end in a later minor version",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      const cpu = structure(s, "vac_cpu");
      cpu.fields.push(u32("tscRatio", cpu.sizeBytes));
      cpu.sizeBytes += 64;
      shared(s).blocks.at(-1)!.strideBytes += 64;
    },
    class: "minor",
    rule: "struct-appended",
  },
  {
    name: "a field of VAC's owners moves",
    package: vac,
    change: (s) => {
      shared(s).minor++;
      field(s, "vac_owner", "cpusLow").offset = 8;
      field(s, "vac_owner", "cpusHigh").offset = 4;
    },
    class: "major",
    rule: "field-moved",
  },
  {
    name: "structures are listed in another order",
    package: abi,
    change: (s) => {
      s.structs.reverse();
    },
    class: undefined,
    rule: undefined,
  },
];
