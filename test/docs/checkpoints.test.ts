import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { checkpointPoints } from '#towline/rehearsal/index.js';
import { resumeFromFile, snapshot, suspendToFile, type Vmm } from '../support/checkpoint-guide.js';
import { runScript, shellBlocks } from '../support/guide.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
const guide = read('docs/guides/checkpoints.md');

test('the guide shows the code that is tested here', (t) => {
  const source = read('test/support/checkpoint-guide.ts');
  const tested = [...source.matchAll(/^\/\/ guide: [a-z]+\n(.*?)^\/\/ guide: end$/gms)].map((m) => m[1] ?? '');
  t.is(tested.length, 3);
  t.deepEqual(
    [...guide.matchAll(/^```ts\n(.*?)^```$/gms)].map((m) => m[1] ?? ''),
    tested,
  );
});

test('the guide lists the points that the engine has', (t) => {
  const rows = [...guide.matchAll(/^\| `((?:checkpoint|restore):[^`]+)` \|/gm)].map((m) => m[1] ?? '');
  t.deepEqual(rows, [...checkpointPoints()]);
});

test('the commands of the guide do what it says', async (t) => {
  t.timeout(150_000);
  const { code, out } = await runScript(t, shellBlocks(guide).join('\n'));
  t.is(code, 0, out);
  for (const told of [
    /move checkpoint .*guest\.towline/,
    /^whole$/m,
    /committed: session .*\n(?:.*\n)*?.*committed: session/,
    /namespace-shared: namespace 1/,
    /copied: session/,
  ])
    t.regex(out, told);
});

/** A VMM whose vCPUs are a number. */
function vmm(log: string[], vcpus = 7): Vmm & { vcpus: number } {
  return {
    vcpus,
    pauseVcpus: async () => void log.push('pause'),
    resumeVcpus: async () => void log.push('resume'),
    async saveVcpus() {
      return Uint8Array.of(this.vcpus);
    },
    async loadVcpus(state) {
      this.vcpus = state?.[0] ?? 0;
    },
    tell: () => undefined,
  };
}

test('the code of the guide suspends a guest, and resumes it elsewhere', async (t) => {
  const pair = new Pair(t);
  const path = join(pair.directory, 'guest');
  const here = new TsDevice('nic');
  here.device.register = 99n;
  pair.memory.source.write(0n, randomBytes(1 << 20));
  const log: string[] = [];
  t.true((await suspendToFile(path, vmm(log), here, pair.memory.source, pair.journals.source)) > 1 << 20);
  t.deepEqual(log, ['pause']);
  const there = new TsDevice('nic', { uuid: here.uuid });
  const next = vmm(log, 0);
  await resumeFromFile(path, next, there, pair.memory.destination, pair.journals.destination);
  t.deepEqual(log, ['pause', 'resume']);
  t.is(next.vcpus, 7);
  t.is(there.device.register, 99n);
  t.true(pair.equalMemory());
  t.false(existsSync(path));
});

test('the code of the guide takes a snapshot, and says why it can not', async (t) => {
  const pair = new Pair(t);
  const path = join(pair.directory, 'guest');
  const here = new TsDevice('nic');
  const log: string[] = [];
  const disk = async (): Promise<void> => void log.push('disk');
  await snapshot(path, vmm(log), here, pair.memory.source, pair.journals.source, disk);
  t.deepEqual(log, ['pause', 'disk', 'resume']);
  t.is(here.device.now, 'running');
  await resumeFromFile(path, vmm(log), new TsDevice('nic'), pair.memory.destination, pair.journals.destination);
  here.reasons = [{ code: 'namespace-shared', message: 'a disk', mend: 'detach it' }];
  await t.throwsAsync(snapshot(path, vmm(log), here, pair.memory.source, pair.journals.source, disk), {
    message: 'a disk: detach it',
  });
});
