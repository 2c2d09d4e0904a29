// Outside of the guest of the machine `hmlm`: a subsystem whose controlling PF is on a socket, and its two VFs, which are for the guest to
// provision by commands to that PF.
import { once } from 'node:events';
import { join } from 'node:path';

import { EmbeddedDriver, kSubsystem } from '#towline/drivers/embedded.js';

const run = process.env['TOWLINE_RUN'] ?? '';
const abort = new AbortController();
process.on('SIGTERM', () => abort.abort());

const driver = new EmbeddedDriver([
  {
    name: 'hmlm',
    furtherPfs: 0,
    maxVfs: 2,
    maxSiov: 0,
    namespaces: [{ path: join(run, 'hmlm.img'), sizeBytes: 64n << 20n }],
  },
]);
const controlling = await driver.open('embedded:hmlm');
const subsystem = controlling[kSubsystem];
subsystem.setNumVfs(2);
const pf = controlling.modelControllers().find((controller) => controller.controlling);
const vfs = controlling.modelControllers().filter((controller) => controller.kind === 'vf');
const [first, second] = vfs.sort((a, b) => a.cntlid - b.cntlid);
if (pf === undefined || first === undefined || second === undefined) throw new Error('a controller is missing');
// Held until the end: a server that nobody holds is closed.
const servers = [];
for (const [name, { cntlid }] of Object.entries({ mmc: pf, first, second })) {
  servers.push(await subsystem.exposeVfioUser(cntlid, join(run, `${name}.sock`), {}));
}
// Sockets of native code keep no process alive.
const alive = setInterval(() => undefined, 60_000);
process.stdout.write('ready\n');
if (!abort.signal.aborted) await once(abort.signal, 'abort');
clearInterval(alive);
for (const server of servers) await server.close();
process.exit(0);
