// Outside of the guest of the machine `judge`: a subsystem whose PF, VF and SIOV-like function are on a socket each, QEMU's monitor, and what
// the guest asks for.
import { once } from 'node:events';
import { join } from 'node:path';

import { serveMailbox } from './mailbox.js';
import { Qmp } from './qmp.js';
import { Server, vfioUser } from './servers.js';

const run = process.env['TOWLINE_RUN'] ?? '';
const abort = new AbortController();
process.on('SIGTERM', () => abort.abort());

const socket = (name: string): string => join(run, `${name}.sock`);
const disk = (n: number): { path: string; megabytes: number } => ({ path: join(run, `disk${n}.img`), megabytes: 64 });
const server = new Server({
  name: 'judge',
  namespaces: [disk(1), disk(2), disk(3)],
  functions: [
    { kind: 'pf', namespaces: [1], socket: socket('pf') },
    { kind: 'vf', namespaces: [2], socket: socket('vf') },
    { kind: 'siov', namespaces: [3], socket: socket('siov') },
  ],
});
await server.start();

let qmp: Qmp | undefined;
const monitor = async (): Promise<Qmp> => (qmp ??= await Qmp.connect(join(run, 'qmp-alone.sock'), abort.signal));
const served = serveMailbox(
  run,
  {
    cntlids: async () => Object.fromEntries(['pf', 'vf', 'siov'].map((name) => [name, server.cntlids[socket(name)]])),
    unplug: async (name: string) => (await monitor()).unplug(name),
    plug: async (name: string) => (await monitor()).plug(vfioUser(name, `/towline/run/${name}.sock`, `rp-${name}`)),
    kill: async () => server.kill(),
    start: async () => server.start(),
  },
  abort.signal,
);
process.stdout.write('ready\n');
if (!abort.signal.aborted) await once(abort.signal, 'abort');
await served;
qmp?.close();
await server.kill();
process.exit(0);
