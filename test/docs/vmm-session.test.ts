import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import test from 'ava';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';
import { migrateAway, takeIn, type Vmm as GuideVmm } from '../support/vmm-guide.js';
import { connection, Vmm } from '../support/vmm.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

/** What stands between the marks of the tested code. */
function excerpts(source: string): string[] {
  return [...source.matchAll(/^\/\/ guide: [a-z]+\n(.*?)^\/\/ guide: end$/gms)].map((m) => m[1] ?? '');
}

function blocks(guide: string): string[] {
  return [...guide.matchAll(/^```ts\n(.*?)^```$/gms)].map((m) => m[1] ?? '');
}

test('the guide shows the code that is tested here', (t) => {
  const tested = excerpts(read('test/support/vmm-guide.ts'));
  t.is(tested.length, 2);
  t.deepEqual(blocks(read('docs/guides/vmm-session.md')), tested);
});

/** The VMM of the guide, over the one of the tests. */
function vmmOf(vmm: Vmm, side: 'source' | 'destination', log: string[]): GuideVmm {
  return {
    link: vmm.link,
    sendRuns: (runs) => vmm.sendRuns(runs),
    memoryIsThere: async () => {
      if (side === 'source') vmm.say('that was all');
      log.push(await vmm.hear());
      if (side === 'destination') vmm.say('it is there');
    },
    pauseVcpus: async () => void log.push('pause'),
    resumeVcpus: async () => void log.push('resume'),
    say: (word) => vmm.say(word),
    hear: () => vmm.hear(),
  };
}

test('the code of the guide migrates', async (t) => {
  const pair = new Pair(t);
  const there = new TsDevice('nic');
  const here = new TsDevice('nic', { uuid: there.uuid });
  here.device.register = 99n;
  pair.memory.source.write(0n, randomBytes(1 << 20));
  const [a, b] = connection();
  const log: string[] = [];
  await Promise.all([
    migrateAway(vmmOf(new Vmm(pair.memory.source, a), 'source', log), here, pair.memory.source, pair.journals.source),
    takeIn(vmmOf(new Vmm(pair.memory.destination, b), 'destination', log), there, pair.journals.destination),
  ]);
  t.deepEqual(log, ['pause', 'that was all', 'it is there', 'resume']);
  t.true(pair.equalMemory());
  t.is(there.device.register, 99n);
  t.is(there.device.now, 'running');
  t.is(pair.journals.source.sessions()[0]?.verdict, 'released');
});

test('the code of the guide rolls back on a refusal', async (t) => {
  const pair = new Pair(t);
  const there = new TsDevice('nic');
  const here = new TsDevice('nic', { uuid: there.uuid });
  here.device.register = 99n;
  const [a, b] = connection();
  const log: string[] = [];
  const source = vmmOf(new Vmm(pair.memory.source, a), 'source', log);
  const destination = vmmOf(new Vmm(pair.memory.destination, b), 'destination', log);
  // The epoch is garbled on its way.
  destination.hear = async () => 'commit 77';
  await Promise.all([
    migrateAway(source, here, pair.memory.source, pair.journals.source),
    t.throwsAsync(takeIn(destination, there, pair.journals.destination), { code: 'ERR_TOWLINE_CONFIG' }),
  ]);
  t.is(here.device.now, 'running');
  t.is(here.device.register, 99n);
  t.is(log.at(-1), 'resume');
  t.is(pair.journals.source.sessions()[0]?.verdict, 'resume-source');
  t.is(pair.journals.destination.sessions()[0]?.verdict, 'refuse');
});
