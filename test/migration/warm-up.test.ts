import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { readdirSync, readlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import test from 'ava';
import { DIAGNOSTICS_CHANNEL } from '#towline/migration/progress.js';
import { warmUp } from '#towline/migration/warm-up.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

/** What this process has open that a warm-up makes: sockets, memory, and files of its folder. */
const open = (): string[] =>
  readdirSync('/proc/self/fd')
    .flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/self/fd/${fd}`)];
      } catch {
        return [];
      }
    })
    .filter((name) => name.includes('warm-up') || name.startsWith('/memfd:'));
const folders = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith('towline-warm-up-'));

test.serial('it moves nothing, tells nobody and leaves nothing; what migrates afterwards does', async (t) => {
  const heard: unknown[] = [];
  const hear = (event: unknown) => void heard.push(event);
  const [descriptors, before] = [open(), folders()];
  subscribe(DIAGNOSTICS_CHANNEL, hear);
  await warmUp();
  await Promise.all([warmUp(), warmUp()]);
  t.deepEqual([heard, open(), folders()], [[], descriptors, before]);
  const pair = new Pair(t);
  const source = new TsDevice('after');
  const settled = await pair.move(source, new TsDevice('after', { uuid: source.uuid }));
  t.is(settled.source.status, 'fulfilled');
  unsubscribe(DIAGNOSTICS_CHANNEL, hear);
  t.true(heard.length > 0, 'the ear hears what there is to hear');
});

test.serial('a signal ends it, and nothing is left', async (t) => {
  const before = folders();
  await t.throwsAsync(warmUp({ signal: AbortSignal.abort() }), { code: 'ERR_TOWLINE_ABORTED' });
  const later = new AbortController();
  setTimeout(() => later.abort(), 5);
  await t.throwsAsync(warmUp({ signal: later.signal }), { code: 'ERR_TOWLINE_ABORTED' });
  t.deepEqual(folders(), before);
});
