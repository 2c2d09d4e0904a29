/** The caller's hooks are awaited wherever they are called, and one that throws is told without anything being lost. */
import test from 'ava';
import type { TowlineError } from '#towline/errors.js';
import type { GuestMemory } from '#towline/migration/memory.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const failure = (result: PromiseSettledResult<MigrationReport>): TowlineError => {
  if (result.status === 'fulfilled') throw new Error(`it was ${result.value.outcome}`);
  return result.reason as TowlineError;
};

const reportOf = (error: TowlineError): MigrationReport => (error.details as { report: MigrationReport }).report;

/** Long enough for whatever does not wait to overtake it. */
const slowly = () =>
  new Promise<void>((resolve) => {
    setTimeout(resolve, 60);
  });

for (const how of ['copied', 'passed'] as const) {
  const passed: { memory?: GuestMemory } = {};
  const ways = {
    copied: { source: {}, destination: {} },
    passed: {
      source: { memoryTransfer: 'pass' },
      destination: { memory: 'passed', onMemory: (memory: GuestMemory) => void (passed.memory = memory) },
    },
  } as const;
  const { source: ours, destination: theirs } = ways[how];
  const twins = (): [TsDevice, TsDevice] => {
    const source = new TsDevice('hooks');
    return [source, new TsDevice('hooks', { uuid: source.uuid })];
  };
  test.afterEach(() => passed.memory?.close());

  test.serial(`every hook is awaited before what comes after it, memory ${how}`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins();
    const log: string[] = [];
    const hook = (name: string, device: TsDevice) => async () => {
      log.push(`${name} in ${device.device.now}`);
      await slowly();
      log.push(`${name} done in ${device.device.now}`);
    };
    const settled = await pair.move(source, destination, {
      source: {
        ...ours,
        pause: hook('pause', source),
        verify: hook('verify', destination),
        resume: () => t.fail('nothing was rolled back'),
        sections: {
          vcpu: async () => {
            await hook('section', source)();
            return Buffer.from('x');
          },
        },
      },
      destination: {
        ...theirs,
        restoreSections: hook('restore', destination),
        resume: hook('resume', destination),
      },
    });
    t.is(settled.source.status, 'fulfilled');
    t.is(settled.destination.status, 'fulfilled');
    const order = ['pause', 'section', 'restore', 'verify', 'resume'];
    t.deepEqual(
      log.map((entry) => entry.split(' ')[0]),
      order.flatMap((name) => [name, name]),
    );
    t.deepEqual(log.slice(0, 2), ['pause in running', 'pause done in running']);
    t.deepEqual(log.slice(-2), ['resume in running', 'resume done in running']);
    t.deepEqual(log.slice(4, 8), ['restore in stop', 'restore done in stop', 'verify in stop', 'verify done in stop']);
  });

  test.serial(`resume is awaited in a rollback, after the device runs again, memory ${how}`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins();
    const log: string[] = [];
    const settled = await pair.move(source, destination, {
      source: {
        ...ours,
        pause: async () => {
          await slowly();
          log.push('paused');
        },
        resume: async () => {
          log.push(`resume in ${source.device.now}`);
          await slowly();
          log.push('resumed');
        },
        verify: () => {
          throw new Error('not like this');
        },
      },
      destination: { ...theirs },
    });
    // Nothing is said to be over before it is.
    t.deepEqual(log, ['paused', 'resume in running', 'resumed']);
    t.regex(failure(settled.source).message, /not like this/);
    t.is(source.device.now, 'running');
  });

  test.serial(`a resume that throws in a rollback is told beside its cause, memory ${how}`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins();
    source.device.register = 4n;
    const settled = await pair.move(source, destination, {
      source: {
        ...ours,
        pause: () => {},
        resume: async () => {
          await slowly();
          throw new Error('the vCPUs are gone');
        },
        verify: () => {
          throw new Error('not like this');
        },
      },
      destination: { ...theirs },
    });
    const error = failure(settled.source);
    t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK');
    t.regex(error.message, /not like this/);
    const { failures } = error.details as { failures: { code: string; message: string }[] };
    t.like(failures, [{ code: 'ERR_TOWLINE_HOOK', message: 'the resume hook failed: the vCPUs are gone' }]);
    t.is(source.device.now, 'running');
    t.is(source.device.register, 4n);
    t.is(pair.journals.source.sessions()[0]?.verdict, 'resume-source');
  });

  test.serial(
    `a resume that throws at the destination is told, and the function is its own, memory ${how}`,
    async (t) => {
      const pair = new Pair(t);
      const [source, destination] = twins();
      source.device.register = 8n;
      const settled = await pair.move(source, destination, {
        source: { ...ours },
        destination: {
          ...theirs,
          resume: async () => {
            await slowly();
            throw new Error('no vCPU starts');
          },
        },
      });
      t.is(settled.source.status, 'fulfilled');
      const error = failure(settled.destination);
      t.is(error.code, 'ERR_TOWLINE_HOOK');
      t.is(reportOf(error).outcome, 'committed');
      t.is(destination.device.now, 'running');
      t.is(destination.device.register, 8n);
      t.not(source.device.now, 'running');
      t.is(pair.journals.destination.sessions()[0]?.verdict, 'run-destination');
    },
  );

  test.serial(`a pause that throws after some time is told, and resume follows it, memory ${how}`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins();
    const log: string[] = [];
    const settled = await pair.move(source, destination, {
      source: {
        ...ours,
        pause: async () => {
          await slowly();
          log.push('half paused');
          throw new Error('one vCPU does not stop');
        },
        resume: async () => {
          await slowly();
          log.push('resumed');
        },
      },
      destination: { ...theirs },
    });
    const cause = failure(settled.source).cause as TowlineError;
    t.is(cause.code, 'ERR_TOWLINE_HOOK');
    t.deepEqual(log, ['half paused', 'resumed']);
    t.false(source.device.history.includes('stop'));
    t.is(source.device.now, 'running');
  });
}
