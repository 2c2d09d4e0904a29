// Outside of the two guests of the machine `controlling`: for each a subsystem whose controlling PF is on a socket, over the same disk, and what the
// guests ask for: that a function which they have provisioned is plugged into them.
import { once } from 'node:events';
import { join } from 'node:path';

import { serveMailbox } from './mailbox.js';
import { Qmp } from './qmp.js';
import { Plugs, Server } from './servers.js';

const run = process.env['TOWLINE_RUN'] ?? '';
const abort = new AbortController();
process.on('SIGTERM', () => abort.abort());

const socket = (role: string, name: string): string => join(run, `${role}-${name}.sock`);
const servers = new Map<string, Server>();
const plugs = new Map<string, Plugs>();
const monitors: Qmp[] = [];
for (const role of ['source', 'destination']) {
  const server = new Server({
    name: role,
    namespaces: [{ path: join(run, 'shared.img'), megabytes: 64 }],
    functions: [],
    controlling: { socket: socket(role, 'ctl'), vf: 2, siov: 1 },
  });
  servers.set(role, server);
  // One after the other: the first one makes the disk and its identity.
  await server.start();
}

async function ports(role: string): Promise<Plugs> {
  const known = plugs.get(role);
  if (known !== undefined) return known;
  const qmp = await Qmp.connect(join(run, `qmp-${role}.sock`), abort.signal);
  monitors.push(qmp);
  const found = new Plugs(qmp);
  plugs.set(role, found);
  return found;
}

const served = serveMailbox(
  run,
  {
    cntlid: async (role: string) => servers.get(role)?.cntlids[socket(role, 'ctl')],
    plug: async (role: string, cntlid: number) => {
      await servers.get(role)?.expose(cntlid, socket(role, 'fn'));
      await (await ports(role)).plug(`${role}-fn`, 'fn');
    },
    unplug: async (role: string) => {
      await (await ports(role)).unplug(`${role}-fn`);
      await servers.get(role)?.hide(socket(role, 'fn'));
    },
  },
  abort.signal,
);
process.stdout.write('ready\n');
if (!abort.signal.aborted) await once(abort.signal, 'abort');
await served;
for (const qmp of monitors) qmp.close();
for (const server of servers.values()) await server.kill();
process.exit(0);
