import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Comparison } from './compare.js';

/** What the witness found. */
export interface Finding {
  io: { completed: number; lost: number; duplicated: number; corrupted: number };
  stalePages: number;
  comparedPages: number;
  owners: number;
  ranOn: boolean;
  tenantPauseMs: number;
  samples: unknown[];
}

/** The third process: it alone has both memories. */
export class WitnessProcess {
  readonly #child: ChildProcess;
  #ended = false;
  #waiting: { resolve: (value: unknown) => void; reject: (error: Error) => void } | undefined;

  constructor(memories: readonly [number, number], logs: readonly [number, number], namespacePath: string) {
    this.#child = fork(fileURLToPath(new URL('./witness.js', import.meta.url)), [namespacePath], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', memories[0], memories[1], logs[0], logs[1]],
    });
    this.#child.on('message', (message) => {
      const { result, error } = message as { result?: unknown; error?: string };
      const waiting = this.#waiting;
      this.#waiting = undefined;
      if (error === undefined) waiting?.resolve(result);
      else waiting?.reject(new Error(`the witness: ${error}`));
    });
    this.#child.on('exit', () => {
      this.#ended = true;
      this.#waiting?.reject(new Error('the witness ended'));
    });
  }

  /** Compares every page of both memories; nothing may run meanwhile. */
  compare(): Promise<Comparison> {
    return this.#call('compare') as Promise<Comparison>;
  }

  /** Reads the logs to their ends and the whole namespace. The tenant has to be drained, unless it is `lost` with its holder. */
  finish(tenant: 'drained' | 'lost' = 'drained'): Promise<Finding> {
    return this.#call(tenant === 'lost' ? 'finish-after-power-failure' : 'finish') as Promise<Finding>;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #call(command: string): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#ended) {
        reject(new Error('the witness ended'));
        return;
      }
      this.#waiting = { resolve, reject };
      this.#child.send({ command });
    });
  }
}
