/** Two sides of a migration in one process. */
import { mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { receive } from '#towline/migration/destination.js';
import { Journal } from '#towline/migration/journal.js';
import { GuestMemory } from '#towline/migration/memory.js';
import type { MigrateOptions, ReceiveOptions } from '#towline/migration/options.js';
import { migrate } from '#towline/migration/source.js';
import type { MigrationReport } from '#towline/migration/report.js';
import type { MigratableFunction } from '#towline/function/types.js';

export interface Settled {
  source: PromiseSettledResult<MigrationReport>;
  destination: PromiseSettledResult<MigrationReport>;
}

/** Where a sync costs nothing, where there is such a place: how long a disk takes for one is measured, and decides whether a migration converges. */
function journalRoot(): string {
  const TMPFS = 0x01021994;
  try {
    return statfsSync('/dev/shm').type === TMPFS ? '/dev/shm' : tmpdir();
  } catch {
    return tmpdir();
  }
}

export class Pair {
  readonly directory = mkdtempSync(join(tmpdir(), 'towline-pair-'));
  /** The folder of both journals. */
  readonly journalDirectory = mkdtempSync(join(journalRoot(), 'towline-journals-'));
  readonly journals = {
    source: new Journal(join(this.journalDirectory, 'source')),
    destination: new Journal(join(this.journalDirectory, 'destination')),
  };
  readonly memory: { source: GuestMemory; destination: GuestMemory };

  constructor(t: ExecutionContext, memoryBytes = 4n << 20n) {
    this.memory = {
      source: GuestMemory.anonymous('source', memoryBytes),
      destination: GuestMemory.anonymous('destination', memoryBytes),
    };
    t.teardown(() => this.close());
  }

  /** Runs both sides to their ends, over a UNIX socket unless told otherwise. */
  async move(
    from: MigratableFunction | readonly MigratableFunction[],
    to: MigratableFunction | readonly MigratableFunction[],
    options: { source?: Partial<MigrateOptions>; destination?: Partial<ReceiveOptions> } = {},
  ): Promise<Settled> {
    const path = `unix://${join(this.directory, `link-${Math.random()}`)}`;
    let listening: (address: string) => void = () => {};
    const ready = new Promise<string>((resolve) => {
      listening = resolve;
    });
    const receiving = receive(to, {
      from: path,
      memory: this.memory.destination,
      fence: this.journals.destination,
      onListening: listening,
      ...options.destination,
    });
    // Where it can't even listen, its result says why; then nobody has to be waited for.
    const listens = typeof (options.destination?.from ?? path) === 'string';
    if (listens) await Promise.race([ready, receiving.result.catch(() => '')]);
    const sending = migrate(from, {
      to: path,
      memory: this.memory.source,
      fence: this.journals.source,
      // How long a stop takes on a loaded machine is not what these tests are about.
      policy: { onNoConvergence: 'stop', maxRounds: 3 },
      ...options.source,
    });
    const [source, destination] = await Promise.allSettled([sending.result, receiving.result]);
    return { source, destination };
  }

  /** Whether both memories are the same, byte for byte. */
  equalMemory(): boolean {
    return this.memory.source.ranges().every((r) => {
      const len = Number(r.len);
      return Buffer.compare(this.memory.source.read(r.gpa, len), this.memory.destination.read(r.gpa, len)) === 0;
    });
  }

  close(): void {
    this.journals.source.close();
    this.journals.destination.close();
    this.memory.source.close();
    this.memory.destination.close();
    for (const directory of [this.directory, this.journalDirectory])
      rmSync(directory, { recursive: true, force: true });
  }
}
