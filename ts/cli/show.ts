/**
 * How functions, reasons and reports are shown to people.
 */
import type { Reason } from '../function/types.js';
import type { MigrationReport } from '../migration/report.js';
import type { FunctionInfo } from '../serve/protocol.js';
import type { Output } from './context.js';
import { showBytes } from './values.js';

/** Functions as a table. */
export function showFunctions(out: Output, functions: readonly FunctionInfo[]): void {
  if (functions.length === 0) {
    out.line('no functions');
    return;
  }
  out.table(
    ['NAME', 'KIND', 'STATE', 'EXPOSURE', 'QUEUES', 'VECTORS', 'NAMESPACES', 'MEMORY', 'CONTROLLING', 'UUID'],
    functions.map((f) => [
      f.name,
      f.kind,
      f.inDoubt === null ? f.state : 'in doubt',
      f.exposure,
      String(f.queues ?? '-'),
      String(f.vectors ?? '-'),
      f.namespaces.join(',') || '-',
      f.memoryBytes === '0' ? '-' : showBytes(Number(f.memoryBytes)),
      f.controlling,
      f.uuid,
    ]),
  );
}

/** One function in a line, with the value for programs. */
export function showFunction(out: Output, what: string, fn: FunctionInfo): void {
  out.value(fn);
  out.line(
    `${what} ${fn.name} (${fn.kind}, ${fn.uuid}): ${fn.state}, exposure ${fn.exposure}${fn.socket === null ? '' : ` on ${fn.socket}`}`,
  );
}

/** Reasons, each with its mend. */
export function showReasons(out: Output, reasons: readonly Reason[]): void {
  for (const { code, message, mend } of reasons) {
    out.line(`${code}: ${message}`);
    out.line(`  mend: ${mend}`);
  }
}

const ms = (value: number): string => `${value.toFixed(1)} ms`;

/** A report for people: how it ended, where the downtime went. */
export function showReport(out: Output, report: MigrationReport): void {
  out.value(report);
  if (out.json) return;
  out.line(
    `${report.outcome}: session ${report.session}, epoch ${report.epoch}${report.why === undefined ? '' : ` (${report.why})`}`,
  );
  for (const { uuid, name, error } of report.releaseFailures ?? []) {
    out.line(`not released here: ${name} (${uuid}): ${error.message}`);
  }
  const { checkpoint } = report;
  if (checkpoint !== undefined && checkpoint.bytes > 0) {
    out.line(`${checkpoint.mode} checkpoint ${checkpoint.path}, ${showBytes(checkpoint.bytes)}`);
  }
  if (report.outcome !== 'dry-run') {
    // The destination can't tell how long the source had stopped before.
    const downtime = report.role === 'source' ? `downtime ${ms(report.downtimeMs)}, ` : '';
    out.line(`${downtime}total ${ms(report.totalMs)}, ${report.rounds} rounds`);
    out.line(
      `memory ${showBytes(report.bytes.memory)}, device state ${showBytes(report.bytes.deviceState)}, on the wire ${showBytes(report.bytes.wire)}`,
    );
    out.table(
      ['PHASE', 'TIME'],
      report.phases.map((p) => [p.name, ms(p.ms)]),
    );
  }
  for (const step of report.converge?.steps ?? []) {
    const { means, throttlePercent, deviceBytesPerSecond, before, after } = step;
    const what =
      means === 'throttle' ? `throttle ${throttlePercent} %` : `device limit ${showBytes(deviceBytesPerSecond ?? 0)}/s`;
    const dirty = (r: { devices: number; others: number }): string => `${showBytes(r.devices + r.others)}/s`;
    out.line(`after round ${step.round}: ${what}: dirty rate ${dirty(before)}, then ${dirty(after)}`);
  }
  for (const { means, why } of report.converge?.unavailable ?? []) out.line(`not used: ${means}: ${why}`);
  for (const what of report.converge?.notLifted ?? []) out.line(`not lifted: ${what}`);
  const { forecast } = report;
  if (forecast !== undefined) {
    out.line(
      `forecast: downtime p50 ${ms(forecast.downtimeMs.p50)}, p95 ${ms(forecast.downtimeMs.p95)}, total ${ms(forecast.totalMs)}, ${forecast.rounds} rounds`,
    );
    out.line(`forecast: ${forecast.converges ? 'converges' : 'does not converge'}: ${forecast.why}`);
  }
}
