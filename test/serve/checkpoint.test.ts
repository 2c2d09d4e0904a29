/** Checkpoints by command: a serving process writes them, another one, started later, restores them. */
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { directory, lines, serve, towline } from '../support/cli.js';

const SPEC = ['--kind', 'vf', '--name', 'guest', '--queues', '2', '--vectors', '3'];

const last = (out: string): Record<string, unknown> => lines(out).at(-1) ?? {};

test('a move survives its serving process, and goes into the next one', async (t) => {
  const path = await directory(t);
  const file = join(path, 'guest.towline');
  const uuid = randomUUID();
  const first = await serve(t, path, 'host');
  await towline(first.socket, 'provision', ...SPEC, '--namespace', '1', '--uuid', uuid);
  const written = await towline(first.socket, 'checkpoint', 'guest', '--to', file, '--json');
  t.is(written.code, 0, written.out);
  const report = last(written.out);
  t.like(report, { outcome: 'committed', role: 'source', checkpoint: { path: file, mode: 'move' } });
  t.true(lines(written.out).some((line) => (line['event'] as { type?: string } | undefined)?.type === 'phase'));
  // It is released here.
  t.is((await towline(first.socket, 'explain', 'guest', '--json')).code, 5);
  await first.end();

  t.is((await towline('/nowhere', 'inspect', file, '--summary')).code, 0);

  // The same journal, another process; the function has its UUID again.
  const next = await serve(t, path, 'host');
  await towline(next.socket, 'provision', ...SPEC, '--namespace', '1');
  const wrong = await towline(next.socket, 'restore', 'guest', '--from', file, '--json');
  t.is(wrong.code, 3);
  t.true(existsSync(file));
  await towline(next.socket, 'release', 'guest');
  await towline(next.socket, 'provision', ...SPEC, '--namespace', '1', '--uuid', uuid);
  const restored = await towline(next.socket, 'restore', 'guest', '--from', file, '--json');
  t.is(restored.code, 0, restored.out);
  t.like(last(restored.out), { outcome: 'committed', role: 'destination', session: report['session'] });
  t.false(existsSync(file));
  t.is((await towline(next.socket, 'restore', 'guest', '--from', file)).code, 3);
  // And away again, shown to a person.
  const again = await towline(next.socket, 'checkpoint', 'guest', '--to', file, '--stopped');
  t.regex(again.out, /committed: session[^]*move checkpoint .*guest\.towline, /);
});

test('a copy is refused with a shared disk, and explain says what mends it', async (t) => {
  const path = await directory(t);
  const file = join(path, 'copy.towline');
  const host = await serve(t, path, 'host');
  await towline(host.socket, 'provision', ...SPEC, '--namespace', '1');
  const explained = await towline(host.socket, 'explain', 'guest', '--copy', '--json');
  t.is(explained.code, 3);
  t.like(last(explained.out), { reasons: [{ code: 'namespace-shared' }] });
  t.regex((last(explained.out)['reasons'] as { mend: string }[])[0]?.mend ?? '', /as a move, or detach/);
  t.is((await towline(host.socket, 'explain', 'guest')).code, 0);
  const refused = await towline(host.socket, 'checkpoint', 'guest', '--to', file, '--copy', '--json');
  t.not(refused.code, 0);
  t.regex(refused.out, /a copy would write the disk/);
  t.false(existsSync(file));

  // Without a disk it can be copied.
  await towline(host.socket, 'provision', '--kind', 'siov', '--name', 'plain');
  t.regex((await towline(host.socket, 'explain', 'plain', '--copy')).out, /plain can be copied/);
  const copied = await towline(host.socket, 'checkpoint', 'plain', '--to', file, '--copy', '--json');
  t.is(copied.code, 0, copied.out);
  t.like(last(copied.out), { outcome: 'copied', checkpoint: { mode: 'copy', bytes: readFileSync(file).length } });
  t.is((await towline(host.socket, 'explain', 'plain')).code, 0);
  for (const name of ['one', 'two']) {
    await towline(host.socket, 'provision', '--kind', 'siov', '--name', name);
    const restored = await towline(host.socket, 'restore', name, '--from', file, '--json');
    t.is(restored.code, 0, restored.out);
  }
  t.is((await towline(host.socket, 'restore', 'plain', '--from', file)).code, 3);
  // What is there is not replaced in passing.
  t.is((await towline(host.socket, 'checkpoint', 'plain', '--to', file, '--copy')).code, 3);
  t.is((await towline(host.socket, 'checkpoint', 'plain', '--to', file, '--copy', '--overwrite')).code, 0);
});

test('a file that is damaged is refused, and the function stays free', async (t) => {
  const path = await directory(t);
  const file = join(path, 'guest');
  const host = await serve(t, path, 'host');
  await towline(host.socket, 'provision', '--kind', 'siov', '--name', 'plain');
  writeFileSync(file, 'no checkpoint');
  const refused = await towline(host.socket, 'restore', 'plain', '--from', file, '--json');
  t.is(refused.code, 1);
  t.like(last(refused.out), { error: { code: 'ERR_TOWLINE_ROLLED_BACK', cause: { code: 'ERR_TOWLINE_STREAM' } } });
  t.is((await towline(host.socket, 'restore', 'plain', '--from', join(path, 'none'))).code, 1);
  t.is((await towline(host.socket, 'release', 'plain')).code, 0);
});
