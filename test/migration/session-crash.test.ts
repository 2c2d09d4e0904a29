import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { Journal } from '#towline/migration/journal.js';
import { recover } from '#towline/migration/recover.js';
import { MigrationSession } from '#towline/migration/session.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';
import { connection, Vmm } from '../support/vmm.js';
import { DEATHS } from '../support/vmm-child.js';

const child = fileURLToPath(new URL('../support/vmm-child.js', import.meta.url));

for (const death of DEATHS) {
  test(`a VMM that is killed when its commit is ${death} leaves one owner`, async (t) => {
    const pair = new Pair(t);
    const device = new TsDevice('nic');
    const path = join(pair.directory, 'connection');
    const journal = join(pair.directory, 'child');
    const server = createServer();
    server.listen(path);
    const killed = spawn(process.execPath, [child, path, journal, device.uuid, death], { stdio: 'inherit' });
    const exited = once(killed, 'exit');
    const [socket] = (await once(server, 'connection')) as [Socket];
    socket.on('error', () => undefined);
    const vmm = new Vmm(pair.memory.destination, socket);
    await using session = MigrationSession.destination(device, {
      stream: vmm.link,
      fence: pair.journals.destination,
      commit: 'caller',
    });
    await session.readOffer();
    await session.answer();
    await session.receive();
    t.is(await vmm.hear(), 'memory is complete');
    t.is(pair.memory.destination.read(0xffffn, 1)[0], 0x5a);
    await session.prepared();
    const word = await vmm.hear();
    const epoch = /^commit (\d+)$/.exec(word)?.[1];
    if (epoch !== undefined) {
      await session.commit(Number(epoch));
      // Where it dies with its commit said, the answer comes after its death.
      if (death === 'said') await exited;
      else vmm.say('committed');
    }
    t.deepEqual(await exited, [null, 'SIGKILL']);
    server.close();

    // The source's process comes back, and asks over another connection.
    const [a, b] = connection();
    await using answering = MigrationSession.destination(device, {
      stream: new Vmm(pair.memory.destination, b).link,
      fence: pair.journals.destination,
    });
    using own = new Journal(journal);
    const before = own.sessions()[0]?.verdict;
    const inDoubt = before === 'in-doubt';
    const [recovered] = await Promise.all([
      recover({ journal: own, peer: new Vmm(pair.memory.source, a).link }),
      inDoubt ? answering.readOffer() : undefined,
    ]);
    const there = () => pair.journals.destination.sessions()[0]?.verdict;
    t.is(before, death === 'prepared' ? 'resume-source' : 'in-doubt');
    const committed = death === 'said' || death === 'heard';
    t.is(recovered[0]?.verdict, committed ? 'released' : 'resume-source');
    if (committed) {
      t.is(there(), 'run-destination');
      await session.resume();
      t.is(device.device.now, 'running');
      t.is(device.device.register, 7n);
      t.is(device.device.resets, 0);
    } else {
      t.is(word, 'the connection ended');
      // Whatever comes late, it is refused. Without an intent nothing can come.
      if (inDoubt) await t.throwsAsync(session.commit(1), { code: 'ERR_TOWLINE_COMMIT_REFUSED' });
      await session.close();
      t.is(there(), 'refuse');
      t.true(device.device.resets > 0);
    }
  });
}
