/** Everything that a run of the demo is made of: two hosts, the witness, and what only they share. */
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { memfd } from 'towline/rehearsal';
import { HostProcess } from '../../shared/host-process.js';
import { WitnessProcess } from '../../shared/witness-process.js';
import type { HostEvent, HostRequest, Kind, Scale } from './protocol.js';

/** A host as the demo sees it. */
export type Host = HostProcess<HostRequest, HostEvent>;

/** See the top of this file. */
export class Stage implements Disposable {
  private constructor(
    readonly hosts: readonly [Host, Host],
    readonly witness: WitnessProcess,
    private readonly closers: (() => void)[],
  ) {}

  static async open(kind: Kind, scale: Scale): Promise<Stage> {
    const directory = mkdtempSync(join(tmpdir(), 'towline-microvm-'));
    const closers: (() => void)[] = [() => rmSync(directory, { recursive: true, force: true })];
    try {
      const keep = (fd: number): number => {
        closers.push(() => closeSync(fd));
        return fd;
      };
      const bytes = BigInt(scale.memoryMiB) << 20n;
      const names = ['here', 'there'] as const;
      const memories = names.map((name) => keep(memfd(name, bytes))) as [number, number];
      const logs = names.map((name) => {
        const path = join(directory, `${name}.log`);
        execFileSync('mkfifo', ['-m', '600', path]);
        // Opened for both, so that neither side waits for the other to open it.
        return keep(openSync(path, constants.O_RDWR));
      }) as [number, number];
      const namespace = {
        path: join(directory, 'namespace'),
        nguid: randomUUID().replaceAll('-', ''),
        uuid: randomUUID(),
      };
      const witness = new WitnessProcess(memories, logs, namespace.path);
      closers.push(() => witness.kill());
      const uuid = randomUUID();
      const hosts = names.map((name, n): Host => {
        const module = fileURLToPath(new URL('./host.js', import.meta.url));
        const host: Host = new HostProcess(module, name, [memories[n] as number, logs[n] as number]);
        closers.push(() => host.kill());
        host.onHold = () => witness.compare();
        return host;
      }) as [Host, Host];
      for (const [n, host] of hosts.entries())
        await host.call({ do: 'open', kind, uuid, hostTag: n + 1, namespace, directory, scale });
      return new Stage(hosts, witness, closers);
    } catch (error) {
      for (const close of closers.reverse()) close();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    for (const close of this.closers.splice(0).reverse()) close();
  }
}
