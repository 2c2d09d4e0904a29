/**
 * The witness: a process that has no part in anything and sees everything. It alone has both guests' memories; the logs
 * of the tenant come straight to it; the disk it reads itself. It imports nothing of towline, shares no bookkeeping with the
 * hosts and does not know what may have been broken on purpose.
 *
 * Started with the path of the namespace's file as its argument and the descriptors below. Answers `compare`, `finish` and
 * `finish-after-power-failure`.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { inspectBlock, UNIT_BYTES } from './block.js';
import { compareMemories, readFully, type Comparison } from './compare.js';
import { Ledger, mergeLogs, type Hold, type Verdict } from './ledger.js';
import { parseLog } from './record.js';

/** Guest memory of the source and of the destination. */
const MEMORY_FDS = [4, 5] as const;
/** Log of the tenant at the source and at the destination. */
const LOG_FDS = [6, 7] as const;
/** A pipe takes 64 KiB, some thousand records: more often than it can fill up. */
const PUMP_MS = 5;
const READ_BYTES = 1 << 20;

/** What `finish` answers. */
interface Finding extends Omit<Verdict, 'drained'> {
  stalePages: number;
  comparedPages: number;
}

/** One tenant's log, read as it comes. */
class Log {
  // Opened anew, so that waiting for data can be switched off here and stays on for the writer.
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafe(READ_BYTES);
  readonly #chunks: Buffer[] = [];

  constructor(fd: number) {
    this.#fd = openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY | constants.O_NONBLOCK);
  }

  /** Takes what is there. */
  pump(): void {
    for (;;) {
      let n = 0;
      try {
        n = readSync(this.#fd, this.#buffer, 0, READ_BYTES, null);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      }
      if (n === 0) return;
      this.#chunks.push(Buffer.from(this.#buffer.subarray(0, n)));
    }
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }
}

class Witness {
  readonly #namespacePath: string;
  readonly #logs = LOG_FDS.map((fd) => new Log(fd));
  readonly #holds: Hold[] = [];
  readonly #comparisons: Comparison[] = [];

  constructor(namespacePath: string) {
    this.#namespacePath = namespacePath;
    setInterval(() => this.pump(), PUMP_MS);
  }

  pump(): void {
    for (const log of this.#logs) log.pump();
  }

  compare(): Comparison {
    const fromNs = process.hrtime.bigint();
    const comparison = compareMemories(...MEMORY_FDS);
    this.#comparisons.push(comparison);
    this.#holds.push({ fromNs, toNs: process.hrtime.bigint() });
    return comparison;
  }

  /** `powerFailure`: the tenant went with its holder, so it could not be drained. */
  finish(powerFailure: boolean): Finding {
    this.pump();
    const ledger = new Ledger();
    for (const record of mergeLogs(this.#logs.map((log) => parseLog(log.bytes())))) ledger.take(record);
    this.#readNamespace(ledger);
    const { drained, ...verdict } = ledger.verdict(this.#holds);
    if (!drained && !powerFailure)
      throw new Error('the tenant was not drained in the end: what it lost cannot be known');
    const stalePages = this.#comparisons.reduce((sum, c) => sum + c.stalePages, 0);
    const stale = this.#comparisons.flatMap((c) => c.firstStale).map((gpa) => `page ${gpa} differs`);
    return {
      ...verdict,
      stalePages,
      comparedPages: this.#comparisons.reduce((sum, c) => sum + c.comparedPages, 0),
      samples: [...stale, ...verdict.samples],
    };
  }

  #readNamespace(ledger: Ledger): void {
    const fd = openSync(this.#namespacePath, 'r');
    try {
      const units = Math.floor(fstatSync(fd).size / UNIT_BYTES);
      const batch = READ_BYTES / UNIT_BYTES;
      const buffer = Buffer.allocUnsafe(READ_BYTES);
      for (let first = 0; first < units; first += batch) {
        const count = Math.min(batch, units - first);
        readFully(fd, buffer, count * UNIT_BYTES, first * UNIT_BYTES);
        for (let n = 0; n < count; n++) {
          const block = buffer.subarray(n * UNIT_BYTES, (n + 1) * UNIT_BYTES);
          ledger.look(first + n, inspectBlock(block, first + n));
        }
      }
    } finally {
      closeSync(fd);
    }
  }
}

function answer(witness: Witness, command: unknown): Comparison | Finding {
  if (command === 'compare') return witness.compare();
  if (command === 'finish') return witness.finish(false);
  if (command === 'finish-after-power-failure') return witness.finish(true);
  throw new Error(`unknown command ${String(command)}`);
}

const [, , namespacePath] = process.argv;
if (namespacePath === undefined) throw new Error('usage: witness NAMESPACE-FILE');
const witness = new Witness(namespacePath);
process.on('disconnect', () => process.exit(0));
process.on('message', (message: { command?: unknown }) => {
  try {
    process.send?.({ result: answer(witness, message.command) });
  } catch (error) {
    process.send?.({ error: (error as Error).message });
  }
});
