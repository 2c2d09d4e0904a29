import { buildCommand } from '@stricli/core';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { receive } from '../migration/destination.js';
import { Journal } from '../migration/journal.js';
import { GuestMemory } from '../migration/memory.js';
import type { MigrationReport } from '../migration/report.js';
import { migrate } from '../migration/source.js';
import { embedded, type EmbeddedSubsystem } from '../rehearsal/subsystem.js';
import { commonFlags, runCommand, type CliContext, type CommonFlags } from './context.js';
import { parseCount, parseSize } from './values.js';

interface Flags extends CommonFlags {
  readonly memory?: bigint | undefined;
  readonly rounds?: number | undefined;
}

/** One measured case. */
export interface BenchLine {
  readonly bench: 'migrate';
  readonly case: string;
  readonly unit: string;
  /** Median. */
  readonly ours: number;
}

/** Source and destination call the function by one name. */
const UUID = '00000000-0000-4000-8000-000000000001';

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

/** Fills memory with a sequence, so that no page is a zero page. */
function fill(memory: GuestMemory, bytes: bigint): void {
  const piece = new BigUint64Array(1 << 17);
  for (let gpa = 0n; gpa < bytes; gpa += BigInt(piece.byteLength)) {
    for (let i = 0; i < piece.length; i += 1) piece[i] = gpa + BigInt(i) * 0x9e37_79b9n + 1n;
    const left = bytes - gpa;
    const view = new Uint8Array(piece.buffer);
    memory.write(gpa, left < BigInt(view.length) ? view.subarray(0, Number(left)) : view);
  }
}

async function side(directory: string, name: string, bytes: bigint, close: (() => unknown)[]) {
  const journal = new Journal(join(directory, name));
  close.push(() => journal.close());
  const subsystem: EmbeddedSubsystem = await embedded.open({ name });
  close.push(() => subsystem.close());
  const memory = GuestMemory.anonymous(name, bytes);
  close.push(() => memory.close());
  const fn = await subsystem.provision({ kind: 'vf', uuid: UUID });
  subsystem.attachMemory(fn, memory);
  return { fn, memory, fence: journal };
}

async function once(directory: string, bytes: bigint, signal: AbortSignal): Promise<MigrationReport> {
  const close: (() => unknown)[] = [];
  try {
    const source = await side(directory, 'source', bytes, close);
    fill(source.memory, bytes);
    const destination = await side(directory, 'destination', bytes, close);
    const address = `unix://${join(directory, 'link')}`;
    const received = receive(destination.fn, {
      from: address,
      memory: destination.memory,
      fence: destination.fence,
      signal,
    });
    // It listens since the call: what it does before its first wait is done.
    const report = await migrate(source.fn, { to: address, memory: source.memory, fence: source.fence, signal }).result;
    await received.result;
    return report;
  } finally {
    for (const step of close.reverse()) await step();
  }
}

/** `towline bench`. JSON: one {@link BenchLine} a line. `npm run bench` compares with other ways of moving the same bytes. */
export const bench = buildCommand({
  docs: { brief: 'Measure migrations of an embedded VF within this process, over a UNIX socket' },
  parameters: {
    flags: {
      ...commonFlags,
      memory: {
        kind: 'parsed',
        parse: parseSize,
        brief: 'Guest memory, none of it zero (default 256M)',
        optional: true,
        placeholder: 'size',
      },
      rounds: {
        kind: 'parsed',
        parse: parseCount(1, 100),
        brief: 'Migrations to take the median of (default 3)',
        optional: true,
        placeholder: 'n',
      },
    },
  },
  func(this: CliContext, flags: Flags) {
    return runCommand(this, flags, async ({ out, signal }) => {
      const bytes = flags.memory ?? 256n << 20n;
      const reports: MigrationReport[] = [];
      for (let n = 0; n < (flags.rounds ?? 3); n += 1) {
        const directory = await mkdtemp(join(tmpdir(), 'towline-bench-'));
        try {
          out.progress(`migration ${n + 1}`);
          reports.push(await once(directory, bytes, signal));
        } finally {
          await rm(directory, { recursive: true, force: true });
        }
      }
      out.endProgress();
      const phase = (report: MigrationReport, name: string): number =>
        report.phases.find((p) => p.name === name)?.ms ?? 0;
      const lines: BenchLine[] = [
        {
          bench: 'migrate',
          case: 'full pass',
          unit: 'MiB/s',
          ours: median(reports.map((r) => Number(bytes) / 1048.576 / Math.max(phase(r, 'pre-copy'), 0.001))),
        },
        { bench: 'migrate', case: 'downtime', unit: 'ms', ours: median(reports.map((r) => r.downtimeMs)) },
        {
          bench: 'migrate',
          case: 'journal syncs in the downtime',
          unit: 'ms',
          ours: median(reports.map((r) => phase(r, 'journal'))),
        },
        { bench: 'migrate', case: 'total', unit: 'ms', ours: median(reports.map((r) => r.totalMs)) },
      ];
      for (const line of lines) {
        out.value(line);
        out.line(`${line.case}: ${line.ours.toFixed(2)} ${line.unit}`);
      }
    });
  },
});
