import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, constants } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { memfd } from 'towline/rehearsal';
import type { MigrationEvent, MigrationReport } from 'towline';
import { HostProcess } from '../shared/host-process.js';
import type { HostRequest, Kind, NamespaceFile, Scale } from './protocol.js';
import { Relay } from '../shared/relay.js';
import type { Sabotage } from './sabotage.js';
import { WitnessProcess, type Finding } from '../shared/witness-process.js';

/** One line of `--json`: what was moved, what the witness found, what it took. Times in milliseconds. */
export interface DemoLine {
  kind: Kind;
  verified: boolean;
  outcome: MigrationReport['outcome'];
  io: { completed: number; lost: number; duplicated: number; corrupted: number };
  stalePages: number;
  owners: number;
  downtimeMs: number;
  tenantPauseMs: number;
  totalMs: number;
  rounds: number;
  bytes: { memory: number; deviceState: number; wire: number };
  phases: { name: string; ms: number }[];
  forecast: { downtimeMs: { p50: number; p95: number }; totalMs: number } | null;
  /** Why it did not commit. */
  why?: string;
  /** A few of the witness's findings, where there are any. */
  samples?: unknown[];
}

/** Moves one function of `kind` from one process to another while its tenant does I/O, and has it judged by the witness. */
export async function runKind(
  kind: Kind,
  scale: Scale,
  sabotage: Sabotage | undefined,
  onEvent: (event: MigrationEvent) => void,
): Promise<DemoLine> {
  const directory = mkdtempSync(join(tmpdir(), 'towline-demo-'));
  const fds: number[] = [];
  const closers: (() => void)[] = [];
  const keep = (fd: number): number => {
    fds.push(fd);
    return fd;
  };
  try {
    const namespace: NamespaceFile = {
      path: join(directory, 'namespace'),
      nguid: randomUUID().replaceAll('-', ''),
      uuid: randomUUID(),
    };
    const bytes = BigInt(scale.memoryMiB) << 20n;
    const memories = [keep(memfd('source', bytes)), keep(memfd('destination', bytes))] as const;
    const logs = ['source', 'destination'].map((name) => {
      const path = join(directory, `${name}.log`);
      execFileSync('mkfifo', ['-m', '600', path]);
      // Opened for both, so that neither side waits for the other to open it.
      return keep(openSync(path, constants.O_RDWR));
    }) as [number, number];

    const witness = new WitnessProcess(memories, logs, namespace.path);
    closers.push(() => witness.kill());
    const source = hostProcess('source', [memories[0], logs[0]]);
    closers.push(() => source.kill());
    const destination = hostProcess('destination', [memories[1], logs[1]]);
    closers.push(() => destination.kill());
    source.onHold = () => witness.compare();

    const uuid = randomUUID();
    const common = { do: 'prepare', kind, uuid, namespace, scale } as const;
    await source.call({ ...common, hostTag: 1, journal: join(directory, 'journal-source') });
    await destination.call({ ...common, hostTag: 2, journal: join(directory, 'journal-destination') });
    await source.call({ do: 'boot' });
    await sleep(scale.runMs);

    const address = new URL(await destination.call<string>({ do: 'receive', sabotage }));
    const relay = await Relay.start(Number(address.port));
    closers.push(() => relay.close());
    source.onEvent = (event) => {
      if (event.type === 'phase' && event.phase === 'pre-copy') damage(relay, sabotage);
      onEvent(event);
    };
    const report = await source.call<MigrationReport>({ do: 'migrate', to: relay.address, sabotage });
    const owner = report.outcome === 'committed' ? destination : source;
    if (report.outcome === 'committed') await destination.call({ do: 'received' });
    // By now the destination's tenant is there: who comes after it is the one too many.
    if (sabotage === 'two-owners') await source.call({ do: 'haunt' });
    await sleep(scale.runMs);
    await owner.call({ do: 'drain' });
    // The source's last words too: whatever still ran there is in its log by then.
    await Promise.all([source.call({ do: 'close' }), destination.call({ do: 'close' })]);
    const finding = await witness.finish();
    return line(kind, scale, sabotage, report, finding, relay);
  } finally {
    for (const close of closers.reverse()) close();
    for (const fd of fds) closeSync(fd);
    rmSync(directory, { recursive: true, force: true });
  }
}

/** In the middle of guest memory's data: the first pass is about to begin, and has far more than this to send. */
function damage(relay: Relay, sabotage: Sabotage | undefined): void {
  if (sabotage === 'corrupt-stream') relay.damage({ kind: 'flip-bit', afterBytes: 1 << 20 });
  if (sabotage === 'cut-stream') relay.damage({ kind: 'cut', afterBytes: 1 << 20 });
}

/** What has to stop a migration before COMMIT-INTENT: one that commits all the same was not stopped by it. */
const STOPPING: ReadonlySet<Sabotage | undefined> = new Set<Sabotage>([
  'corrupt-stream',
  'cut-stream',
  'drop-last-state',
]);

function line(
  kind: Kind,
  scale: Scale,
  sabotage: Sabotage | undefined,
  report: MigrationReport,
  finding: Finding,
  relay: Relay,
): DemoLine {
  const { io, stalePages, owners } = finding;
  const clean = io.lost === 0 && io.duplicated === 0 && io.corrupted === 0 && stalePages === 0 && owners === 1;
  const committed = report.outcome === 'committed';
  // Every page was compared, once, or nothing was moved.
  const compared = !committed || finding.comparedPages === scale.memoryMiB * 256;
  const stopped = !committed || !STOPPING.has(sabotage);
  return {
    kind,
    verified: clean && compared && stopped && finding.ranOn && io.completed > 0 && report.outcome !== 'in-doubt',
    outcome: report.outcome,
    io,
    stalePages,
    owners,
    downtimeMs: report.downtimeMs,
    tenantPauseMs: finding.tenantPauseMs,
    totalMs: report.totalMs,
    rounds: report.rounds,
    bytes: { ...report.bytes, wire: relay.forwardBytes },
    phases: report.phases,
    forecast: report.forecast ? { downtimeMs: report.forecast.downtimeMs, totalMs: report.forecast.totalMs } : null,
    ...(report.why === undefined ? {} : { why: report.why }),
    ...(finding.samples.length > 0 ? { samples: finding.samples } : {}),
  };
}

function hostProcess(name: string, fds: readonly number[]): HostProcess<HostRequest, MigrationEvent> {
  return new HostProcess(fileURLToPath(new URL('./host.js', import.meta.url)), name, fds);
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
