import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { conformExposureState, type CheckResult, type ExposureSubject } from '#towline/conformance/index.js';
import type { ExposureState } from '#towline/function/types.js';
import { embedded } from '#towline/rehearsal/index.js';
import { TsExposure, type ExposureDefect } from '../support/ts-exposure.js';
import { VfioUserClient } from '../support/vfio-user-client.js';

const CONFIG = 7;

function subject(defects: readonly ExposureDefect[] = []): ExposureSubject {
  return {
    open: async () => {
      let running = true;
      const state = new TsExposure(() => running, [], defects);
      return {
        state,
        stop: async () => void (running = false),
        run: async () => void (running = true),
        change: async (seed) => void (state.value = 100 + seed),
        observe: async () => String(state.value),
        close: async () => undefined,
      };
    },
  };
}

async function collect(results: AsyncIterable<CheckResult>): Promise<CheckResult[]> {
  const found: CheckResult[] = [];
  for await (const result of results) found.push(result);
  return found;
}

test('an exposure in plain TypeScript passes every check', async (t) => {
  const results = await collect(conformExposureState(subject()));
  t.deepEqual(
    results.filter((r) => r.outcome !== 'passed'),
    [],
  );
  t.is(results.length, 7);
});

const caught: Record<ExposureDefect, string> = {
  'saves-while-running': 'exposure/save-running',
  'other-format': 'exposure/format',
  'loses-value': 'exposure/restore',
  'no-digest': 'exposure/wrong',
  'half-restored': 'exposure/wrong',
  'keeps-after-forget': 'exposure/forget',
  'deaf-to-abort': 'exposure/abort',
  'other-each-time': 'exposure/save',
};
for (const [defect, check] of Object.entries(caught) as [ExposureDefect, string][]) {
  test(`the kit catches ${defect}`, async (t) => {
    const failed = (await collect(conformExposureState(subject([defect])))).filter((r) => r.outcome === 'failed');
    t.true(
      failed.some((r) => r.check === check),
      JSON.stringify(failed),
    );
  });
}

test('what cannot be changed is not exercised', async (t) => {
  const bare: ExposureSubject = {
    open: async () => {
      const { state, stop, run, close } = await subject().open();
      return { state, stop, run, close };
    },
  };
  const results = await collect(conformExposureState(bare));
  t.deepEqual(
    results.filter((r) => r.outcome !== 'passed').map((r) => [r.check, r.outcome]),
    [['exposure/restore', 'not-exercised']],
  );
});

test('a function of an embedded subsystem on a vfio-user socket passes every check', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'towline-conform-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  let sockets = 0;
  const results = await collect(
    conformExposureState({
      open: async () => {
        const subsystem = await embedded.open({
          namespaces: [{ path: join(directory, 'disk'), sizeBytes: 1n << 20n }],
        });
        const fn = await subsystem.provision({ kind: 'vf', queues: 2, vectors: 3, namespaces: [1] });
        const socketPath = join(directory, `${(sockets += 1)}.sock`);
        await fn.expose('vfio-user', { socketPath });
        const client = await VfioUserClient.connect(socketPath);
        return {
          state: fn.exposureState as ExposureState,
          stop: () => fn.channel().setState('stop'),
          run: () => fn.channel().setState('running'),
          change: (seed) => client.write32(CONFIG, 0x10, seed << 16),
          observe: async () => String(await client.read32(CONFIG, 0x10)),
          close: () => subsystem.close(),
        };
      },
    }),
  );
  t.deepEqual(
    results.filter((r) => r.outcome !== 'passed'),
    [],
  );
});
