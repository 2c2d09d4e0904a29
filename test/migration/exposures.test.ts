import test, { type ExecutionContext } from 'ava';
import type { TowlineError } from '#towline/errors.js';
import { MigrationSession } from '#towline/migration/session.js';
import { Pair } from '../support/pair.js';
import { TsExposure } from '../support/ts-exposure.js';
import { TsDevice } from '../support/ts-function.js';
import { connection, Vmm } from '../support/vmm.js';

/** A device that is exposed, in plain TypeScript. */
class Exposed extends TsDevice {
  readonly log: string[] = [];
  readonly exposureState = new TsExposure(() => this.device.now === 'running', this.log);
}

function devices(): { from: Exposed; to: Exposed } {
  const from = new Exposed('nic');
  const to = new Exposed('nic', { uuid: from.uuid });
  for (const { device, log } of [from, to]) device.onSet = (state) => void log.push(state);
  from.exposureState.value = 77;
  return { from, to };
}

function failure(result: PromiseSettledResult<unknown>): TowlineError {
  if (result.status === 'fulfilled') throw new Error('it succeeded');
  return result.reason as TowlineError;
}

test('a section is taken after the stop and before device state, and put in place after the caller’s, before the function runs', async (t) => {
  const pair = new Pair(t);
  const { from, to } = devices();
  const settled = await pair.move(from, to, {
    source: { sections: { vcpu: () => new Uint8Array([1]) } },
    destination: {
      restoreSections: (sections) => {
        t.deepEqual(Object.keys(sections), ['vcpu'], 'what is towline’s own is not the caller’s');
        to.log.push('vcpu');
      },
    },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.is(to.exposureState.value, 77);
  const order = (log: readonly string[], ...words: string[]): void => {
    const at = words.map((word) => log.indexOf(word));
    t.true(
      at.every((n, i) => n >= 0 && (i === 0 || n > (at[i - 1] ?? 0))),
      `${words.join()} in ${log.join()}`,
    );
  };
  order(from.log, 'stop', 'save');
  order(to.log, 'resuming', 'stop', 'vcpu', 'restore', 'running');
  t.is(to.exposureState.forgotten, 0);
});

test('what is rolled back is forgotten, once', async (t) => {
  const pair = new Pair(t);
  const { from, to } = devices();
  const settled = await pair.move(from, to, {
    source: {
      verify: () => {
        throw new Error('no');
      },
    },
  });
  t.is(failure(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
  t.deepEqual([to.exposureState.value, to.exposureState.forgotten], [1, 1]);
  t.is(from.device.now, 'running');
});

test('a section that can’t be taken or put in place rolls back', async (t) => {
  for (const side of ['from', 'to'] as const) {
    const pair = new Pair(t);
    const both = devices();
    const { exposureState } = both[side];
    const fail = async (): Promise<never> => {
      throw new Error('broken');
    };
    if (side === 'from') exposureState.save = fail;
    else exposureState.restore = fail;
    const settled = await pair.move(both.from, both.to);
    t.is(failure(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK', side);
    t.is(settled.destination.status, 'rejected');
    t.is(both.from.device.now, 'running');
    t.true(both.to.exposureState.forgotten <= 1);
    t.is(both.to.exposureState.value, 1);
  }
});

test('a destination that is not exposed so is a mismatch', async (t) => {
  const pair = new Pair(t);
  const { from } = devices();
  const to = new TsDevice('nic', { uuid: from.uuid });
  const settled = await pair.move(from, to);
  const cause = failure(settled.destination).cause as TowlineError;
  t.is(cause.code, 'ERR_TOWLINE_MISMATCH');
  t.deepEqual(
    (cause.details as { mismatches: { code: string }[] }).mismatches.map((m) => m.code),
    ['nic: exposure-format', 'sections'],
  );
  t.false(from.log.includes('stop'));
});

test('names that begin with towline: are not the caller’s', async (t) => {
  const pair = new Pair(t);
  const { from, to } = devices();
  const sections = { 'towline:exposure:x': () => new Uint8Array() };
  const abort = AbortSignal.timeout(500);
  const settled = await pair.move(from, to, { source: { sections }, destination: { signal: abort } });
  t.is((failure(settled.source).cause as TowlineError).code, 'ERR_TOWLINE_INVALID_ARGUMENT');
  const { link: stream } = new Vmm(pair.memory.source, connection()[0]);
  t.throws(() => MigrationSession.source(from, { fence: pair.journals.source, stream, sections: ['towline:x'] }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
  });
});

async function session(t: ExecutionContext, breaks?: (from: Exposed, to: Exposed) => void) {
  const pair = new Pair(t);
  const { from, to } = devices();
  breaks?.(from, to);
  const [a, b] = connection();
  const [near, tnear] = [new Vmm(pair.memory.source, a), new Vmm(pair.memory.destination, b)];
  const source = MigrationSession.source(from, {
    stream: near.link,
    fence: pair.journals.source,
    sections: ['irqchip'],
  });
  const destination = MigrationSession.destination(to, { stream: tnear.link, fence: pair.journals.destination });
  t.teardown(async () => {
    await source.close();
    await destination.close();
  });
  const there = (async () => {
    const offer = await destination.readOffer();
    if (offer.type === 'offer') t.deepEqual(offer.sections, ['irqchip']);
    await destination.answer();
    const { sections } = await destination.receive();
    t.deepEqual(Object.keys(sections), ['irqchip']);
    to.log.push('irqchip');
    await destination.prepared();
  })();
  const here = (async () => {
    await source.offer();
    await source.startTracking();
    await source.stop();
    await source.saveState();
    await source.sendSection('irqchip', new Uint8Array([1]));
    await source.prepare();
  })();
  const settled = await Promise.allSettled([here, there]);
  return { from, to, source, destination, settled };
}

test('a session carries the section by itself', async (t) => {
  const { to, source, destination, settled } = await session(t);
  t.deepEqual(
    settled.map((s) => s.status),
    ['fulfilled', 'fulfilled'],
  );
  t.is(to.exposureState.value, 77);
  t.true(to.log.indexOf('irqchip') < to.log.indexOf('restore'));
  await Promise.all([
    source.commit(),
    (async () => {
      await destination.waitCommit();
      await destination.resume();
      await destination.running();
    })(),
  ]);
  await source.waitRunning();
  await source.release();
  t.is(to.device.now, 'running');
});

test('a session rolls back where a section is damaged', async (t) => {
  const { from, to, source, destination, settled } = await session(t, (broken) => {
    const { exposureState } = broken;
    const save = exposureState.save.bind(exposureState);
    exposureState.save = async () => {
      const section = await save();
      section[9] = (section[9] ?? 0) ^ 1;
      return section;
    };
  });
  const [here, there] = settled;
  t.is(failure(there as PromiseSettledResult<void>).code, 'ERR_TOWLINE_BAD_STATE');
  t.is(here?.status, 'rejected');
  t.is(destination.state, 'aborted');
  await source.abort();
  t.is(from.device.now, 'running');
  t.is(to.exposureState.value, 1);
});
