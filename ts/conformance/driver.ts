/**
 * Checks of a driver: what it provisions is whole or not there at all.
 */
import type { ControllingDriver, ControllingFunction, KindCapacity } from '../drivers/driver.js';
import { provisionFunction } from '../function/lifecycle.js';
import type { FunctionKind } from '../function/types.js';
import { expect, expectRefusal, NotExercised, CheckRun, type CheckResult } from './check.js';

/** A driver under test. What is provisioned and free at the start is what has to be free at the end. */
export interface DriverSubject {
  readonly driver: ControllingDriver;
  /** A controlling function that nobody uses. */
  readonly address: string;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  readonly checkTimeoutMs?: number | undefined;
}

const NOWHERE = 'conformance:there-is-no-such-address';

function free(capacity: readonly KindCapacity[], kind: FunctionKind): number {
  return capacity.find((c) => c.kind === kind)?.free ?? 0;
}

async function eachKind(controlling: ControllingFunction, work: (kind: FunctionKind) => Promise<void>): Promise<void> {
  const kinds = (await controlling.capacity()).filter((c) => c.free > 0);
  if (kinds.length === 0) throw new NotExercised('there is no free function of any kind');
  for (const { kind } of kinds) await work(kind);
}

async function checkLifecycle(controlling: ControllingFunction, kind: FunctionKind): Promise<void> {
  const before = free(await controlling.capacity(), kind);
  const uuid = crypto.randomUUID();
  const fn = await provisionFunction(controlling, { kind, uuid });
  expect(fn.uuid === uuid, `${kind}: the UUID ${uuid} became ${fn.uuid}`);
  expect(fn.kind === kind, `a ${kind} was asked for and a ${fn.kind} came`);
  expect(fn.state === 'migration-enabled', `${kind}: after provisioning it is ${fn.state}`);
  expect(
    (await controlling.list()).some((f) => f.uuid === uuid),
    `${kind}: it is not listed`,
  );
  expect(
    free(await controlling.capacity(), kind) === before - 1,
    `${kind}: one was provisioned, and ${free(await controlling.capacity(), kind)} of ${before} are free`,
  );
  const descriptor = await fn.descriptor();
  expect(Object.keys(descriptor).length > 0, `${kind}: its descriptor is empty: every destination would fit`);
  for (const reason of await fn.explain()) {
    expect(
      reason.message.length > 0 && reason.mend.length > 0,
      `${kind}: reason ${reason.code} does not say what and what would mend it`,
    );
  }
  expect(fn.channel() === fn.channel(), `${kind}: channel() gives another object each time`);
  await fn.release();
  expect(fn.state === 'released', `${kind}: after release it is ${fn.state}`);
  await fn.release();
  expect(!(await controlling.list()).some((f) => f.uuid === uuid), `${kind}: it is listed after release`);
  expect(
    free(await controlling.capacity(), kind) === before,
    `${kind}: after release ${free(await controlling.capacity(), kind)} of ${before} are free`,
  );
}

async function checkWhole(controlling: ControllingFunction, kind: FunctionKind): Promise<void> {
  const before = free(await controlling.capacity(), kind);
  const attempts: [string, () => Promise<unknown>, readonly string[]][] = [
    [
      '65535 queues',
      () => provisionFunction(controlling, { kind, queues: 65_535 }),
      ['ERR_TOWLINE_NO_RESOURCES', 'ERR_TOWLINE_DEVICE', 'ERR_TOWLINE_LIMIT', 'ERR_TOWLINE_UNSUPPORTED'],
    ],
    [
      'a namespace that does not exist',
      () => provisionFunction(controlling, { kind, namespaces: [0xffff_fff0] }),
      ['ERR_TOWLINE_NOT_FOUND', 'ERR_TOWLINE_UNSUPPORTED'],
    ],
    [
      'a fired signal',
      () => provisionFunction(controlling, { kind }, { signal: AbortSignal.abort() }),
      ['ERR_TOWLINE_ABORTED'],
    ],
    ['no name', () => provisionFunction(controlling, { kind, name: '' }), ['ERR_TOWLINE_INVALID_ARGUMENT']],
  ];
  for (const [what, attempt, codes] of attempts) {
    await expectRefusal(`${kind} with ${what}`, attempt, codes);
    const after = free(await controlling.capacity(), kind);
    expect(after === before, `${kind}: after a refusal (${what}) ${after} of ${before} are free`);
  }
}

async function checkTwice(controlling: ControllingFunction, kind: FunctionKind): Promise<void> {
  const fn = await provisionFunction(controlling, { kind });
  try {
    await expectRefusal(
      `a second ${kind} with the same UUID`,
      () => provisionFunction(controlling, { kind, uuid: fn.uuid }),
      ['ERR_TOWLINE_EXISTS', 'ERR_TOWLINE_NO_RESOURCES'],
    );
  } finally {
    await fn.release();
  }
}

/** Runs every check of a driver. Provisions and releases functions. */
export async function* conformDriver(subject: DriverSubject): AsyncGenerator<CheckResult, void, void> {
  const { driver, address } = subject;
  const run = new CheckRun(subject.checkTimeoutMs);
  yield run.check('driver/discover', 'the controlling function is discovered', async () => {
    const found = (await driver.discover()).map((d) => d.address);
    expect(found.includes(address), `${address} is not among what discover() finds: ${found.join(', ') || 'nothing'}`);
  });
  yield run.check('driver/unknown-address', 'an unknown address is refused', () =>
    expectRefusal(`open(${NOWHERE})`, () => driver.open(NOWHERE), [
      'ERR_TOWLINE_NOT_FOUND',
      'ERR_TOWLINE_INVALID_ARGUMENT',
    ]),
  );
  let controlling: ControllingFunction | undefined;
  const opened = await run.check('driver/open', 'the controlling function opens', async () => {
    controlling = await driver.open(address);
  });
  yield opened;
  if (controlling === undefined) return;
  const open = controlling;
  const checks: [string, string, (c: ControllingFunction, kind: FunctionKind) => Promise<void>][] = [
    ['driver/lifecycle', 'functions come and go, each kind', checkLifecycle],
    ['driver/whole-or-nothing', 'what fails leaves nothing behind', checkWhole],
    ['driver/one-uuid', 'a UUID is given once', checkTwice],
  ];
  for (const [name, passed, work] of checks)
    yield run.check(name, passed, () => eachKind(open, (kind) => work(open, kind)));
  yield run.check('driver/close', 'close is idempotent, and refuses what comes after it', async () => {
    await open.close();
    await open.close();
    await expectRefusal('list() after close', () => open.list(), ['ERR_TOWLINE_CLOSED']);
  });
}
