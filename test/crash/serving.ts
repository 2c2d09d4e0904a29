/**
 * A serving process as `towline serve` is one, with a tenant: what it does with functions it is told over its socket by whoever
 * commands it, what it does with the tenant it is told by the test.
 */
import { EmbeddedControllingFunction } from '#towline/index.js';
import { EmbeddedSubsystem, Tenant } from '#towline/rehearsal/index.js';
import { Host } from '#towline/serve/host.js';
import { startServer } from '#towline/serve/server.js';
import type { NamespaceFile } from '../../dist-examples/demo/protocol.js';
import { LOG_FD, MEMORY_BYTES, NAMESPACE_BYTES } from './protocol.js';

/** What the test says to it: first `open`, the rest about the tenant. Answers come in order. */
export type ToServing =
  | { do: 'open'; namespace: NamespaceFile; directory: string; hostTag: number; uuid: string }
  | { do: 'boot' | 'attach' }
  /** Waits for I/O, then leaves everything that the guest is in its memory. */
  | { do: 'work-and-rest'; commands: number };

/** Its answers. */
export interface FromServing {
  error?: string;
}

const DEADLINE_MS = 20_000;

let opened: { host: Host; uuid: string; hostTag: number } | undefined;
let tenant: Tenant | undefined;

async function answer(message: ToServing): Promise<void> {
  switch (message.do) {
    case 'open': {
      const { namespace, directory, hostTag, uuid } = message;
      const host = await Host.open({
        embedded: [{ name: 'x', namespaces: [{ ...namespace, sizeBytes: NAMESPACE_BYTES, shared: true }] }],
        journal: `${directory}/journal`,
        memoryBytes: MEMORY_BYTES,
      });
      await host.provision(
        undefined,
        { kind: 'vf', uuid, name: 'crash-vf', queues: 2, vectors: 3, namespaces: [1] },
        {},
      );
      await startServer(host, `${directory}/socket`);
      opened = { host, uuid, hostTag };
      return;
    }
    case 'boot':
    case 'attach': {
      const { fn, memory, subsystem, hostTag } = await held();
      tenant =
        message.do === 'attach'
          ? await Tenant.attach(subsystem, fn, memory, { hostTag })
          : await Tenant.boot(subsystem, fn, memory, {
              units: Number(NAMESPACE_BYTES / 4096n),
              workingSetPages: 512,
              targetIops: 3000,
              hostTag,
            });
      tenant.run({ logFd: LOG_FD });
      return;
    }
    case 'work-and-rest':
      await work(message.commands);
      if ((await tenant?.drain({ timeoutMs: DEADLINE_MS }))?.pending !== 0) throw new Error('commands have no answer');
      await tenant?.close();
      tenant = undefined;
  }
}

async function held() {
  if (!opened) throw new Error('nothing is open');
  const { fn, memory, controlling } = await opened.host.find(opened.uuid);
  if (!memory || !(controlling instanceof EmbeddedControllingFunction)) throw new Error('the function has no memory');
  return { fn, memory, subsystem: new EmbeddedSubsystem(controlling), hostTag: opened.hostTag };
}

async function work(commands: number): Promise<void> {
  const running = tenant;
  if (!running) throw new Error('there is no tenant here');
  const answered = (): number => {
    const { reads, writes, flushes } = running.stats() as { reads: number; writes: number; flushes: number };
    return reads + writes + flushes;
  };
  const wanted = answered() + commands;
  const deadline = performance.now() + DEADLINE_MS;
  while (answered() < wanted) {
    if (performance.now() > deadline) throw new Error('the tenant gets no answers');
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
  }
}

process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToServing) => {
  answer(message).then(
    () => process.send?.({}),
    (error: unknown) => process.send?.({ error: String(error) }),
  );
});
