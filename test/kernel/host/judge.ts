// Outside of the guest of the machine `judge`: a subsystem whose PF, VF and SIOV-like function are on a socket each, QEMU's monitor, and what
// the guest asks for.
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { serveMailbox } from './mailbox.js';
import { Qmp } from './qmp.js';
import { Plugs, Server } from './servers.js';

const run = process.env['TOWLINE_RUN'] ?? '';
const abort = new AbortController();
process.on('SIGTERM', () => abort.abort());

const socket = (name: string): string => join(run, `${name}.sock`);
const names = ['pf', 'vf', 'siov'] as const;
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
let plugs: Plugs | undefined;
/** The guest's ports, once there is a guest. */
const ports = async (): Promise<Plugs> => {
  if (plugs !== undefined) return plugs;
  qmp = await Qmp.connect(join(run, 'qmp-alone.sock'), abort.signal);
  plugs = new Plugs(qmp);
  for (const name of names) await plugs.hold(name);
  return plugs;
};
const served = serveMailbox(
  run,
  {
    cntlids: async () => Object.fromEntries(names.map((name) => [name, server.cntlids[socket(name)]])),
    status: async (name: string) => server.status(socket(name)),
    descriptors: async () => server.descriptors(),
    unplug: async (name: string) => (await ports()).unplug(name),
    plug: async (name: string) => {
      const cntlid = server.cntlids[socket(name)] ?? -1;
      await server.hide(socket(name));
      await server.expose(cntlid, socket(name));
      await (await ports()).plug(name, name);
    },
    kill: async () => {
      await ports();
      // What the server leaves unread would end QEMU (test/kernel/README.md, traps): the guest says nothing while it is killed.
      await qmp?.execute('stop');
      await sleep(300);
      await server.kill();
      await qmp?.execute('cont');
    },
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
