import Table from "cli-table3";
import { formatSize } from "../control/sizes.ts";
import type {
  CpuInfo,
  DeviceEntry,
  LoadedModule,
  MigrationReport,
  ModuleInfo,
  MoveReport,
  ProcessInfo,
} from "../control/types.ts";

/** Columns of text without lines between them. */
export function table(head: string[], rows: (string | number)[][]): string {
  const blank = {
    top: "",
    "top-mid": "",
    "top-left": "",
    "top-right": "",
    bottom: "",
    "bottom-mid": "",
    "bottom-left": "",
    "bottom-right": "",
  };
  const lines = { left: "", "left-mid": "", mid: "", "mid-mid": "", right: "", "right-mid": "", middle: "  " };
  const style = { head: [], border: [], "padding-left": 0, "padding-right": 0 };
  const view = new Table({ head, chars: { ...blank, ...lines }, style });
  view.push(...rows);
  return view
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}

export function cpusTable(cpus: readonly CpuInfo[]): string {
  return table(
    ["CPU", "STATE", "PROCESSES"],
    cpus.map(({ cpu, state, pids }) => [cpu, state, pids.join(", ") || "-"]),
  );
}

/** Of a CPU that does not answer. */
export function silenceText(cpu: number, pids: readonly number[]): string {
  const [pid, ...others] = pids;
  const what =
    pid === undefined
      ? "no process is on it"
      : others.length === 0
        ? `process ${pid} is not shown`
        : `processes ${pids.join(", ")} are not shown`;
  return `cpu${cpu} does not answer, ${what}: 'mkvm cpu kill ${cpu}' ends it`;
}

export function modulesTable(modules: readonly LoadedModule[]): string {
  return table(
    ["MODULE", "PACKAGE", "VERSION", "DEVICE", "USED BY"],
    modules.map((module) => {
      const pids = [...new Set(module.users.map((user) => user.pid))];
      return [
        module.draining ? `${module.name} (going)` : module.name,
        module.package,
        module.version,
        module.devices.join(" "),
        pids.length ? `pid ${pids.join(", ")}` : "-",
      ];
    }),
  );
}

export function devicesTable(entries: readonly DeviceEntry[]): string {
  return table(
    ["PATH", "KIND", "LEADS TO"],
    entries.map((entry) => {
      const leads = entry.kind === "node" ? `module ${entry.module}` : entry.kind === "link" ? entry.target : entry.source;
      return [entry.path, entry.kind, leads];
    }),
  );
}

export function processesTable(processes: readonly ProcessInfo[]): string {
  return table(
    ["PID", "NAME", "CPU", "STATE", "THREADS", "MEMORY", "MODULE", "VMS", "MOVES", "ROLLS BACK TO", "INSTRUCTIONS", "UP"],
    processes.map((process) => [
      process.pid,
      process.name,
      process.cpu,
      process.state,
      process.threads,
      formatSize(process.memoryBytes),
      process.modules.join(" ") || "-",
      process.vms,
      process.moves,
      process.previous[0] ?? "-",
      process.retiredInstructions,
      `${process.uptimeS} s`,
    ]),
  );
}

export function movesTable(reports: readonly MoveReport[]): string {
  return table(
    ["PID", "FROM", "TO", "RESULT", "BLACKOUT", "STATE", "STEPS (us)"],
    reports.map((report) => [
      report.pid,
      report.from,
      report.to,
      report.moved ? (report.finalised ? "moved, finalised" : "moved") : "stays",
      `${report.blackoutUs} us`,
      `${report.stateBytes} bytes`,
      report.steps.map(({ step, durationUs }) => `${step} ${durationUs}`).join(" "),
    ]),
  );
}

export function migrationTable(report: MigrationReport): string {
  const { pid, fromCpu, toCpu, module, moved, blackoutUs, stateBytes, steps } = report;
  return table(
    ["PID", "FROM", "TO", "MODULE", "RESULT", "BLACKOUT", "STATE", "STEPS (us)"],
    [
      [
        pid,
        `cpu${fromCpu}`,
        `cpu${toCpu}`,
        module,
        moved ? "moved" : "stays",
        `${blackoutUs} us`,
        `${stateBytes} bytes`,
        steps.map(({ step, durationUs }) => `${step} ${durationUs}`).join(" "),
      ],
    ],
  );
}

export function moduleText(info: ModuleInfo): string {
  const rows: [string, string][] = [
    ["package", `${info.package} ${info.version}`],
    ["description", info.description],
    ["directory", info.directory],
    ["id", info.id || "(none)"],
    ...Object.entries(info.requires).map(([name, range]): [string, string] => ["requires", `${name} ${range}`]),
    ["loaded as", info.loadedAs.join(", ") || "-"],
  ];
  for (const [name, spec] of Object.entries(info.parameters)) {
    const takes =
      spec.type === "int"
        ? `${spec.minimum} to ${spec.maximum}`
        : spec.type === "bool"
          ? "true or false"
          : spec.choices.join(", ");
    rows.push(["parameter", `${name} (${takes}; default ${spec.default}): ${spec.description}`]);
  }
  return rows.map(([name, value]) => `${name.padEnd(12)} ${value}`).join("\n");
}
