import type { WriteStream } from 'node:tty';
import type { DemoLine } from './line.js';
import { activity, bars, type Sample } from './plot.js';
import type { HostEvent, Mode, Scale } from './protocol.js';
import type { Round } from './rounds.js';

/** How much of the time before and after the move is in the picture, in milliseconds. */
const MARGIN_MS = 400;

/** Shows the demo to a person: progress on a terminal, plain lines elsewhere; then pictures of what the guest felt. */
export class Terminal {
  readonly #out: NodeJS.WriteStream;
  readonly #live: boolean;
  #samples: Sample[] = [];
  #passes: { title: string; value: number; text: string }[] = [];
  #movingSince: number | undefined;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
    this.#live = (out as Partial<WriteStream>).isTTY === true;
  }

  begin(kind: string, mode: Mode, scale: Scale): void {
    this.#samples = [];
    this.#passes = [];
    this.#movingSince = undefined;
    const dirty = scale.dirtyRingEntries === 0 ? 'dirty log' : 'dirty rings';
    this.#write(
      `\n${kind}, ${mode}: a guest with ${scale.vcpus} vCPUs and ${scale.memoryMiB} MiB, doorbells by ${scale.doorbells}, ${dirty}\n`,
    );
  }

  event(event: HostEvent): void {
    switch (event.type) {
      case 'sample':
        this.#samples.push(event);
        return;
      case 'sending':
        this.#movingSince ??= nowMs();
        if (this.#live && event.totalPages > 0) {
          const share = Math.min(1, event.sentPages / event.totalPages);
          const filled = Math.round(share * 40);
          this.#write(
            `\r  pass ${event.pass} [${'#'.repeat(filled)}${' '.repeat(40 - filled)}] ${(share * 100).toFixed(0).padStart(3)} %`,
          );
        }
        return;
      case 'pass':
        this.#movingSince ??= nowMs();
        this.#passes.push({
          title: `pass ${event.pass}`,
          value: event.dirtyPagesAfter,
          text: `${event.dirtyPagesAfter} dirty after it`,
        });
        this.#write(
          `${this.#live ? '\r' : ''}  pass ${event.pass}: ${event.pages} pages in ${event.ms.toFixed(1)} ms, ${event.dirtyPagesAfter} dirty after it${' '.repeat(20)}\n`,
        );
        return;
      case 'forecast': {
        const { totalMs, downtimeMs } = event.forecast;
        this.#write(
          `  forecast: ${totalMs.toFixed(0)} ms in all, downtime ${downtimeMs.p50.toFixed(1)} ms (p95 ${downtimeMs.p95.toFixed(1)} ms)\n`,
        );
        return;
      }
      case 'decision':
        this.#write(`  ${event.action}: ${event.why}\n`);
    }
  }

  round({ round, outcome, interruption, guestPauseMs, heartbeatGapMs, wrong }: Round): void {
    const how = interruption === undefined ? outcome : `${outcome} (${interruption})`;
    const pause = outcome === 'committed' ? `, pause ${guestPauseMs.toFixed(1)} ms` : '';
    const said = wrong.length > 0 ? `: ${wrong.join('; ')}` : '';
    this.#write(`  round ${round}: ${how}${pause}, heartbeat gap ${heartbeatGapMs.toFixed(1)} ms${said}\n`);
  }

  end(line: DemoLine): void {
    if (this.#passes.length > 0) this.#write(`\n  dirty pages, by pass (logarithmic)\n${bars(this.#passes)}`);
    if (this.#samples.length > 1 && this.#movingSince !== undefined) {
      const from = this.#movingSince - MARGIN_MS;
      const to = this.#movingSince + line.totalMs + MARGIN_MS;
      this.#write(`\n  what the guest did; a blank is a pause\n${activity(this.#samples, from, to)}`);
    }
    const rows = line.phases.map((p) => `  ${p.name.padEnd(16)} ${p.ms.toFixed(2).padStart(10)} ms`);
    if (rows.length > 0) this.#write(`\n${rows.join('\n')}\n`);
    this.#write(
      `\n  guest pause ${line.guestPauseMs.toFixed(2)} ms, by its own clock ${line.heartbeatGapMs.toFixed(2)} ms, downtime of the function ${line.downtimeMs.toFixed(2)} ms, ` +
        `total ${line.totalMs.toFixed(0)} ms, ${line.rounds} passes, ${(line.bytes.wire / (1 << 20)).toFixed(1)} MiB on the wire\n`,
    );
    this.#write(
      `  dirty: ${line.dirty.kvm} pages by vCPUs, ${line.dirty.device} by the function; ${line.bytes.deviceState} bytes of device state\n`,
    );
    const { io, guest, moves, converge } = line;
    if (converge.needs) this.#write(`  it would take any of: ${JSON.stringify(converge.needs)}\n`);
    if (moves) this.#write(`  ${moves.committed} moves, ${moves.interrupted} more broken off on purpose\n`);
    this.#write(
      `  witness: ${io.completed} I/Os, ${io.lost} lost, ${io.duplicated} duplicated, ${io.corrupted} corrupted, ` +
        `${line.stalePages} stale pages, ${line.owners} owner(s) at once\n`,
    );
    this.#write(
      `  guest: ${guest.memoryErrors} pages lost, ${guest.vcpuErrors} errors of its vCPUs, ${guest.lostInterrupts} interrupts lost, ${guest.ioErrors} wrong answers\n`,
    );
    this.#write(
      `  ${line.outcome}${line.why === undefined ? '' : ` (${line.why})`}: ${line.verified ? 'verified' : 'NOT VERIFIED'}\n`,
    );
    for (const sample of line.samples ?? []) this.#write(`    ${String(sample)}\n`);
  }

  close(verified: boolean): void {
    this.#write(verified ? '\nevery kind is verified\n' : '\nnot every kind is verified\n');
  }

  #write(text: string): void {
    this.#out.write(text);
  }
}

const nowMs = () => Number(process.hrtime.bigint()) / 1e6;
