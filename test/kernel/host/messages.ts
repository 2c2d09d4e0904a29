// Outside of the guest of the machine `messages`: three VFs of one subsystem, on a socket each: one as it is, one behind each policy of
// policies.ts.
import { once } from 'node:events';
import { join } from 'node:path';

import { serveMailbox } from './mailbox.js';
import { Server } from './servers.js';

const run = process.env['TOWLINE_RUN'] ?? '';
const abort = new AbortController();
process.on('SIGTERM', () => abort.abort());

const socket = (name: string): string => join(run, `${name}.sock`);
const disk = (n: number): { path: string; megabytes: number } => ({ path: join(run, `disk${n}.img`), megabytes: 64 });
const server = new Server({
  name: 'messages',
  namespaces: [disk(1), disk(2), disk(3)],
  functions: [
    { kind: 'vf', namespaces: [1], socket: socket('open') },
    { kind: 'vf', namespaces: [2], socket: socket('narrow'), policy: 'narrow' },
    { kind: 'vf', namespaces: [3], socket: socket('deaf'), policy: 'deaf' },
  ],
});
await server.start();

const served = serveMailbox(run, { status: async (name: string) => server.status(socket(name)) }, abort.signal);
process.stdout.write('ready\n');
if (!abort.signal.aborted) await once(abort.signal, 'abort');
await served;
await server.kill();
process.exit(0);
