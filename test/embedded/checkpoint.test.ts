import { randomUUID } from 'node:crypto';
import { closeSync, copyFileSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { checkpoint } from '#towline/migration/checkpoint.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { restore } from '#towline/migration/restore.js';
import { embedded, Tenant } from '#towline/rehearsal/index.js';
import { Pair } from '../support/pair.js';

test('a guest on a private disk is copied while it works, and both go on, each on a disk of its own', async (t) => {
  const pair = new Pair(t, 64n << 20n);
  const directory = mkdtempSync(join(tmpdir(), 'towline-copy-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const disk = { sizeBytes: 1024n * 4096n, nguid: randomUUID(), uuid: randomUUID(), shared: false };
  const spec = { kind: 'vf' as const, queues: 2, vectors: 3, namespaces: [1] };
  const here = await embedded.open({ namespaces: [{ ...disk, path: join(directory, 'here') }] });
  t.teardown(() => here.close());
  const fn = await here.provision(spec);
  here.attachMemory(fn, pair.memory.source);
  // As a migration would say: the other host does not have this disk.
  t.deepEqual(
    (await fn.explain()).map((r) => r.code),
    ['namespace-not-shared'],
  );
  t.deepEqual(await fn.explain({ copy: true }), []);

  const tenant = await Tenant.boot(here, fn, pair.memory.source, {
    nsid: 1,
    units: 1024,
    workingSetPages: 512,
    targetIops: 500,
  });
  const logs = ['a', 'b'].map((name) => openSync(join(directory, name), 'a+'));
  t.teardown(() => logs.forEach((fd) => closeSync(fd)));
  tenant.run({ logFd: logs[0] as number });
  const path = join(directory, 'guest');
  const report = await checkpoint(fn, {
    path,
    mode: 'copy',
    memory: pair.memory.source,
    fence: pair.journals.source,
    pause: () => tenant.pause(),
    // Nothing writes it now.
    verify: () => copyFileSync(join(directory, 'here'), join(directory, 'there')),
    resume: () => tenant.resume(),
  }).result;
  t.is(report.outcome, 'copied');

  const there = await embedded.open({ namespaces: [{ ...disk, path: join(directory, 'there') }] });
  t.teardown(() => there.close());
  const clone = await there.provision(spec);
  const memory = GuestMemory.anonymous('clone', 64n << 20n);
  t.teardown(() => memory.close());
  there.attachMemory(clone, memory);
  let second: Tenant | undefined;
  const restored = await restore(clone, {
    path,
    memory,
    fence: pair.journals.destination,
    resume: async () => {
      second = await Tenant.attach(there, clone, memory, { hostTag: 1 });
      second.run({ logFd: logs[1] as number });
    },
  }).result;
  t.is(restored.outcome, 'committed');
  t.not(clone.uuid, fn.uuid);
  // Each reads back what it wrote, before the copy and since; it says so where it does not.
  for (const one of [tenant, second as Tenant]) {
    const answered = (): number => {
      const { reads, writes, failure } = one.stats() as { reads: number; writes: number; failure: unknown };
      t.is(failure, null);
      return reads + writes;
    };
    const from = answered();
    while (answered() < from + 100) {
      await new Promise((resolve) => {
        setTimeout(resolve, 10);
      });
    }
    t.like(await one.drain({ timeoutMs: 20_000 }), { pending: 0 });
    await one.close();
  }
});

test('a shared disk, or one that several functions have, is a reason against a copy', async (t) => {
  const pair = new Pair(t);
  const subsystem = await embedded.open({
    namespaces: [{ path: join(pair.directory, 'disk'), sizeBytes: 1n << 20n }],
  });
  t.teardown(() => subsystem.close());
  const fn = await subsystem.provision({ kind: 'siov', namespaces: [1] });
  const reasons = await fn.explain({ copy: true });
  t.deepEqual(
    reasons.map((r) => r.code),
    ['namespace-shared'],
  );
  const copying = checkpoint(fn, { path: join(pair.directory, 'x'), mode: 'copy', fence: pair.journals.source });
  await t.throwsAsync(copying.result, { message: /can't be copied/ });
  t.deepEqual(await fn.explain(), []);
});
