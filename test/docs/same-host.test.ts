import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { GuestMemory } from '#towline/migration/memory.js';
import { Pair } from '../support/pair.js';
import { handOver, takeOver, type Vmm } from '../support/same-host-guide.js';
import { TsDevice } from '../support/ts-function.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

/** What stands between the marks of the tested code. */
function excerpts(source: string): string[] {
  return [...source.matchAll(/^\/\/ guide: [a-z]+\n(.*?)^\/\/ guide: end$/gms)].map((m) => m[1] ?? '');
}

function blocks(guide: string): string[] {
  return [...guide.matchAll(/^```ts\n(.*?)^```$/gms)].map((m) => m[1] ?? '');
}

test('the guide shows the code that is tested here', (t) => {
  const tested = excerpts(read('test/support/same-host-guide.ts'));
  t.is(tested.length, 2);
  t.deepEqual(blocks(read('docs/guides/same-host.md')), tested);
});

class TestVmm implements Vmm {
  readonly log: string[] = [];
  built: GuestMemory | undefined;

  constructor(private vcpus = 'none') {}

  async pauseVcpus(): Promise<void> {
    this.log.push('pause');
  }

  async resumeVcpus(): Promise<void> {
    this.log.push(`run ${this.vcpus}`);
  }

  async saveVcpus(): Promise<Uint8Array> {
    return Buffer.from(this.vcpus);
  }

  async restoreVcpus(state: Uint8Array): Promise<void> {
    this.vcpus = Buffer.from(state).toString();
    this.log.push('restore');
  }

  async buildVm(memory: GuestMemory): Promise<void> {
    this.built = memory;
    this.log.push(`build ${memory.ranges().length}`);
  }
}

test('the code of the guide hands a guest over', async (t) => {
  const pair = new Pair(t);
  const [here, there] = [new TestVmm('two of them'), new TestVmm()];
  const source = new TsDevice('nic');
  const destination = new TsDevice('nic', { uuid: source.uuid });
  source.device.register = 5n;
  pair.memory.source.write(0x1000n, Buffer.from('as it was'));
  const path = join(pair.directory, 'same-host');
  const [memory] = await Promise.all([
    takeOver(there, destination, pair.journals.destination, path),
    handOver(here, source, pair.memory.source, pair.journals.source, path),
  ]);
  t.deepEqual(here.log, ['pause']);
  t.deepEqual(there.log, ['build 1', 'restore', 'run two of them']);
  t.is(Buffer.from(memory.read(0x1000n, 9)).toString(), 'as it was');
  t.is(destination.device.register, 5n);
  t.is(there.built, memory);
  memory.close();
});

test('the code of the guide leaves the guest where it is when the new VMM fails', async (t) => {
  const pair = new Pair(t);
  const [here, there] = [new TestVmm('two of them'), new TestVmm()];
  const source = new TsDevice('nic');
  const destination = new TsDevice('nic', { uuid: source.uuid });
  there.restoreVcpus = async () => {
    throw new Error('another CPU');
  };
  const path = join(pair.directory, 'same-host');
  await Promise.all([
    t.throwsAsync(takeOver(there, destination, pair.journals.destination, path), { message: /another CPU/ }),
    t.throwsAsync(handOver(here, source, pair.memory.source, pair.journals.source, path), { message: /another CPU/ }),
  ]);
  t.deepEqual(here.log, ['pause', 'run two of them']);
  t.is(source.device.now, 'running');
  t.throws(() => there.built?.ranges(), { code: 'ERR_TOWLINE_CLOSED' });
  pair.memory.source.write(0n, Buffer.from('still ours'));
});
