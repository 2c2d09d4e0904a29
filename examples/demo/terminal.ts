import type { WriteStream } from 'node:tty';
import type { MigrationEvent } from 'towline';
import type { DemoLine } from './run.js';
import type { Scale } from './protocol.js';

/** Phases between the stop and the start: what the downtime is made of, and the letter that stands for each. */
const IN_DOWNTIME: Readonly<Record<string, string>> = {
  stop: 's',
  'final-pages': 'p',
  'device-state': 'd',
  prepare: 'c',
  journal: 'j',
  commit: 'm',
  resume: 'r',
};

const BAR_WIDTH = 60;

/** Shows the demo to a person: progress on a terminal, plain lines elsewhere; then a table of phases and a picture of the downtime. */
export class Terminal {
  readonly #out: NodeJS.WriteStream;
  readonly #live: boolean;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
    this.#live = (out as Partial<WriteStream>).isTTY === true;
  }

  begin(kind: string, scale: Scale): void {
    this.#write(
      `\n${kind}: ${scale.memoryMiB} MiB of guest memory, queue depth 32, about ${scale.iops} I/Os per second\n`,
    );
  }

  event(event: MigrationEvent): void {
    switch (event.type) {
      case 'pages':
        if (this.#live && event.totalPages > 0) {
          const share = Math.min(1, event.sentPages / event.totalPages);
          const filled = Math.round(share * 40);
          this.#write(
            `\r  pass ${event.round} [${'#'.repeat(filled)}${' '.repeat(40 - filled)}] ${(share * 100).toFixed(0).padStart(3)} %`,
          );
        }
        return;
      case 'round':
        this.#write(
          `${this.#live ? '\r' : ''}  pass ${event.round}: ${event.pages} pages in ${event.ms.toFixed(1)} ms, ${event.dirtyPagesAfter} dirty after it${' '.repeat(20)}\n`,
        );
        return;
      case 'forecast':
        if (event.frozen) {
          const f = event.forecast;
          this.#write(
            `  forecast: ${f.totalMs.toFixed(0)} ms in all, downtime ${f.downtimeMs.p50.toFixed(1)} ms (p95 ${f.downtimeMs.p95.toFixed(1)} ms)\n`,
          );
        }
        return;
      case 'converge':
        if (event.action !== 'continue') this.#write(`  ${event.action}: ${event.why}\n`);
        return;
      case 'in-doubt':
        this.#write(`  in doubt: ${event.why}\n`);
        return;
      default:
    }
  }

  end(line: DemoLine): void {
    const rows = line.phases.map((p) => `  ${p.name.padEnd(14)} ${p.ms.toFixed(2).padStart(10)} ms`);
    this.#write(`${rows.join('\n')}\n`);
    if (line.outcome === 'committed') this.#write(downtimePicture(line));
    this.#write(
      `  downtime ${line.downtimeMs.toFixed(2)} ms, tenant pause ${line.tenantPauseMs.toFixed(2)} ms, total ${line.totalMs.toFixed(0)} ms, ${line.rounds} passes, ` +
        `${(line.bytes.wire / (1 << 20)).toFixed(1)} MiB on the wire, ${line.bytes.deviceState} bytes of device state\n`,
    );
    const { io } = line;
    this.#write(
      `  witness: ${io.completed} I/Os, ${io.lost} lost, ${io.duplicated} duplicated, ${io.corrupted} corrupted, ` +
        `${line.stalePages} stale pages, ${line.owners} owner(s) at once\n`,
    );
    this.#write(
      `  ${line.outcome}${line.why === undefined ? '' : ` (${line.why})`}: ${line.verified ? 'verified' : 'NOT VERIFIED'}\n`,
    );
  }

  close(verified: boolean): void {
    this.#write(verified ? '\nevery kind is verified\n' : '\nnot every kind is verified\n');
  }

  #write(text: string): void {
    this.#out.write(text);
  }
}

/** The downtime as a bar: each phase as wide as its share. */
function downtimePicture(line: DemoLine): string {
  const parts = line.phases.filter((p) => p.name in IN_DOWNTIME && p.ms > 0);
  const sum = parts.reduce((total, p) => total + p.ms, 0);
  if (sum <= 0) return '';
  const bar = parts
    .map((p) => (IN_DOWNTIME[p.name] ?? '?').repeat(Math.max(1, Math.round((p.ms / sum) * BAR_WIDTH))))
    .join('');
  const key = parts.map((p) => `${IN_DOWNTIME[p.name]} ${p.name}`).join(', ');
  return `  |${bar}|\n  ${key}\n`;
}
