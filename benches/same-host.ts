import { fork } from 'node:child_process';
import { on, once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { GuestMemory, Journal, migrate } from 'towline';
import { embedded, Tenant, type EmbeddedSubsystem } from 'towline/rehearsal';

import { median } from './median.js';
import type { Result } from './result.js';
import type { Arrived, Expected, FromDestination } from './same-host-child.js';

const child = fileURLToPath(new URL('same-host-child.js', import.meta.url));
const GOAL_MS = 5;
const NAMESPACE_BYTES = 64n << 20n;
/** Not so often that the fill takes longer than what is measured, nor so little that the kernel finds the same page twice. */
const FILL_BYTES = 16 << 20;

/** How long the guest stood still, and what of that the journals took, in milliseconds. */
interface Sample {
  readonly pauseMs: number;
  readonly journalMs: number;
}

/**
 * How long a guest at work stands still when another process of this host takes it over: from the call of `pause` to the moment when its vCPU
 * runs there, by the clock that both share. Its memory is passed, or copied.
 */
export async function* sameHost(options: readonly string[]): AsyncGenerator<Result, void> {
  const smoke = options.includes('--smoke');
  const number = (name: string, otherwise: number): number => {
    const at = options.indexOf(name);
    const value = at < 0 ? otherwise : Number(options[at + 1]);
    if (!Number.isInteger(value) || value < 1) throw new Error(`${name} takes a whole number from 1 on`);
    return value;
  };
  const samples = number('--samples', smoke ? 1 : 7);
  const sizes = options.includes('--guest-mib') ? [number('--guest-mib', 256)] : smoke ? [32] : [256, 1024, 4096];
  const bench = await Bench.open();
  try {
    for (const mib of sizes) {
      const guest = await bench.guest(mib);
      const passed: Sample[] = [];
      const copied: Sample[] = [];
      // The first of each warms both processes up.
      for (let i = smoke ? 0 : -1; i < samples; i++) {
        const order = i % 2 === 0 ? (['pass', 'copy'] as const) : (['copy', 'pass'] as const);
        for (const transfer of order) {
          const sample = await guest.move(transfer);
          if (i >= 0) (transfer === 'pass' ? passed : copied).push(sample);
        }
      }
      guest.close();
      const ratios = passed.map((sample, i) => sample.pauseMs / (copied[i]?.pauseMs ?? Number.NaN));
      const ratio = median(ratios);
      const ours = median(passed.map((sample) => sample.pauseMs));
      const result = {
        bench: 'same-host',
        unit: 'ms',
        peer: 'the same with memory copied',
        goal: `below ${GOAL_MS} ms`,
        samples,
      };
      const load = Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0]);
      yield {
        ...result,
        case: `pause of the guest, ${mib} MiB`,
        ours,
        theirs: median(copied.map((sample) => sample.pauseMs)),
        ratio,
        met: ours < GOAL_MS,
        ratioMad: median(ratios.map((r) => Math.abs(r - ratio))),
        load,
      };
      const alone = (of: readonly Sample[]) => of.map((sample) => sample.pauseMs - sample.journalMs);
      const [ourRest, theirRest] = [alone(passed), alone(copied)];
      const restRatios = ourRest.map((ms, i) => ms / (theirRest[i] ?? Number.NaN));
      const restRatio = median(restRatios);
      yield {
        ...result,
        case: `of it without the journals, ${mib} MiB`,
        ours: median(ourRest),
        theirs: median(theirRest),
        ratio: restRatio,
        met: median(ourRest) < GOAL_MS,
        ratioMad: median(restRatios.map((r) => Math.abs(r - restRatio))),
        load,
      };
    }
  } finally {
    await bench.close();
  }
}

/** The process that has the guest first, and the one that takes it over. */
class Bench {
  private constructor(
    readonly folder: string,
    readonly subsystem: EmbeddedSubsystem,
    readonly journal: Journal,
    readonly destination: ReturnType<typeof fork>,
    readonly disk: string,
    readonly nowhere: number,
  ) {}

  static async open(): Promise<Bench> {
    const folder = mkdtempSync(join(tmpdir(), 'towline-same-host-'));
    const disk = join(folder, 'disk');
    writeFileSync(disk, Buffer.alloc(Number(NAMESPACE_BYTES)));
    const subsystem = await embedded.open({
      namespaces: [{ path: disk, sizeBytes: NAMESPACE_BYTES, shared: true }],
    });
    const destination = fork(child, [disk, NAMESPACE_BYTES.toString(), join(folder, 'there')], { stdio: 'inherit' });
    return new Bench(
      folder,
      subsystem,
      new Journal(join(folder, 'here')),
      destination,
      disk,
      openSync('/dev/null', 'w'),
    );
  }

  /** A guest whose memory was written from end to end. */
  async guest(mib: number): Promise<Guest> {
    const memory = GuestMemory.anonymous('same-host', BigInt(mib) << 20n);
    const fill = Buffer.alloc(Math.min(FILL_BYTES, mib * 2 ** 20));
    for (let word = 0; word < fill.length / 4; word++) fill.writeUInt32LE((word * 2_654_435_761) % 2 ** 32, word * 4);
    for (let at = 0n; at < BigInt(mib) << 20n; at += BigInt(fill.length)) memory.write(at, fill);
    return new Guest(this, memory, mib);
  }

  /** The next word of the destination. */
  async hear(): Promise<FromDestination> {
    for await (const [message] of on(this.destination, 'message')) return message as FromDestination;
    throw new Error('the other process is gone');
  }

  async close(): Promise<void> {
    const exited = once(this.destination, 'exit');
    if (this.destination.connected) this.destination.disconnect();
    await exited;
    await this.subsystem.close();
    this.journal.close();
    closeSync(this.nowhere);
    rmSync(this.folder, { recursive: true });
  }
}

class Guest {
  constructor(
    private readonly bench: Bench,
    private readonly memory: GuestMemory,
    private readonly mib: number,
  ) {}

  /** Starts the guest here and hands it over. */
  async move(transfer: 'pass' | 'copy'): Promise<Sample> {
    const { bench, memory } = this;
    const uuid = crypto.randomUUID();
    const spec = { kind: 'vf', uuid, name: 'guest', queues: 2, vectors: 3, namespaces: [1] } as const;
    const fn = await bench.subsystem.provision(spec);
    bench.subsystem.attachMemory(fn, memory);
    const tenant = await Tenant.boot(bench.subsystem, fn, memory, { workingSetPages: 2048 });
    tenant.run({ logFd: bench.nowhere });
    const socket = join(bench.folder, `link-${uuid}`);
    const expected: Expected = { uuid, transfer, memoryBytes: (BigInt(this.mib) << 20n).toString(), socket };
    const listening = bench.hear();
    bench.destination.send(expected);
    await listening;
    const arrived = bench.hear();
    let pausedNs = 0n;
    const report = await migrate(fn, {
      to: `unix://${socket}`,
      memory,
      memoryTransfer: transfer,
      fence: bench.journal,
      pause: async () => {
        pausedNs = process.hrtime.bigint();
        await tenant.pause();
      },
      release: false,
    }).result;
    const { runsNs } = (await arrived) as Arrived;
    await tenant.close();
    await fn.release();
    const journalMs = report.phases.find((phase) => phase.name === 'journal')?.ms ?? 0;
    return { pauseMs: Number(BigInt(runsNs) - pausedNs) / 1e6, journalMs };
  }

  close(): void {
    this.memory.close();
  }
}
