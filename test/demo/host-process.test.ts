import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { HostProcess } from '../../dist-examples/shared/host-process.js';

test('a host that ends is told to who waits for it, and to who asks it later', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'towline-host-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const module = join(directory, 'host.mjs');
  // Answers once, and is gone with the second request.
  writeFileSync(
    module,
    `process.on('message', ({ id, request }) => {
      if (request === 'go') process.exit(7);
      process.send({ type: 'answer', id, value: request });
    });`,
  );
  const host = new HostProcess<string, never>(module, 'a', []);
  t.is(await host.call('hello'), 'hello');
  await t.throwsAsync(host.call('go'), { message: 'host a ended (7)' });
  await sleep(10);
  await t.throwsAsync(host.call('hello'), { message: 'host a ended (7)' });
});
