import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { memfd } from '#towline/rehearsal/index.js';
import { inspectBlock, UNIT_BYTES } from '../../dist-examples/shared/block.js';
import type { NamespaceFile } from '../../dist-examples/demo/protocol.js';
import { WitnessProcess } from '../../dist-examples/shared/witness-process.js';
import { HolderProcess } from './holder-process.js';
import { MEMORY_BYTES, NAMESPACE_BYTES } from './protocol.js';

export type SideName = 'source' | 'destination';

/** One side: its journal and its log stay, its holder and its memory may go. */
export class Side {
  holder: HolderProcess;
  /** Whether the holder that began is still there. */
  survived = true;
  readonly #name: SideName;
  readonly #stage: Stage;
  readonly #logFd: number;
  #incarnation = 0;

  constructor(stage: Stage, name: SideName, memoryFd: number, logFd: number) {
    this.#stage = stage;
    this.#name = name;
    this.#logFd = logFd;
    this.holder = new HolderProcess(name, memoryFd, logFd);
  }

  async prepare(): Promise<void> {
    // Tags tell the witness one process from another.
    const hostTag = (this.#name === 'source' ? 1 : 2) + 2 * this.#incarnation++;
    const { uuid, namespace, directory } = this.#stage;
    await this.holder.call('prepare', { uuid, hostTag, namespace, journal: join(directory, `journal-${this.#name}`) });
  }

  /** Another process over the same journal and the same namespace: what the guest had in memory is gone. */
  async restart(): Promise<void> {
    await this.holder.kill();
    this.survived = false;
    this.holder = new HolderProcess(`${this.#name} again`, this.#stage.memory(this.#name), this.#logFd);
    await this.prepare();
  }
}

/** Two holders, a witness, and what they share: one namespace, nothing else. */
export class Stage {
  readonly directory = mkdtempSync(join(tmpdir(), 'towline-crash-'));
  readonly uuid = randomUUID();
  readonly namespace: NamespaceFile = {
    path: join(this.directory, 'namespace'),
    nguid: randomUUID().replaceAll('-', ''),
    uuid: randomUUID(),
  };
  readonly witness: WitnessProcess;
  readonly source: Side;
  readonly destination: Side;
  readonly #fds: number[] = [];

  constructor() {
    const memories = [this.memory('source'), this.memory('destination')] as const;
    const logs = [this.#log('source'), this.#log('destination')] as const;
    this.witness = new WitnessProcess(memories, logs, this.namespace.path);
    this.source = new Side(this, 'source', memories[0], logs[0]);
    this.destination = new Side(this, 'destination', memories[1], logs[1]);
    this.source.holder.onHold = () => this.witness.compare();
  }

  /** New guest memory; nobody else has it. */
  memory(name: string): number {
    return this.#keep(memfd(name, MEMORY_BYTES));
  }

  /** A pipe: the tenant's words are with the witness as soon as they are said. */
  #log(name: string): number {
    const path = join(this.directory, `${name}.log`);
    execFileSync('mkfifo', ['-m', '600', path]);
    // Opened for both, so that neither side waits for the other to open it.
    return this.#keep(openSync(path, constants.O_RDWR));
  }

  /** Both holders are ready, and the tenant does I/O at the source. */
  async begin(): Promise<void> {
    await Promise.all([this.source.prepare(), this.destination.prepare()]);
    await this.source.holder.call('boot');
    await this.source.holder.call('work', { commands: 200 });
  }

  /** Takes back the first write that the tenant was told is done; what it was told first is long done. */
  loseWrite(): void {
    const fd = openSync(this.namespace.path, 'r+');
    try {
      let oldest: { unit: number; seq: number } | undefined;
      const block = Buffer.alloc(UNIT_BYTES);
      for (let unit = 0; unit < Number(NAMESPACE_BYTES) / UNIT_BYTES; unit++) {
        readSync(fd, block, 0, UNIT_BYTES, unit * UNIT_BYTES);
        const { seq = 0 } = inspectBlock(block, unit) ?? {};
        if (seq > 0 && (oldest === undefined || seq < oldest.seq)) oldest = { unit, seq };
      }
      if (oldest === undefined) throw new Error('nothing was written');
      writeSync(fd, Buffer.alloc(UNIT_BYTES), 0, UNIT_BYTES, oldest.unit * UNIT_BYTES);
    } finally {
      closeSync(fd);
    }
  }

  async close(): Promise<void> {
    this.witness.kill();
    await Promise.all([this.source.holder.kill(), this.destination.holder.kill()]);
    for (const fd of this.#fds) closeSync(fd);
    rmSync(this.directory, { recursive: true, force: true });
  }

  #keep(fd: number): number {
    this.#fds.push(fd);
    return fd;
  }
}
