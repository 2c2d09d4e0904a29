/**
 * Checks of a state channel: states, arcs, reads, resets. The checks of written state are in loading.ts.
 */
import type { StateChannel } from '../function/channel.js';
import { deviceStates, type DeviceState } from '../function/state.js';
import { isReachable, statesOf } from './arcs.js';
import { expect, expectRefusal, NotExercised, CheckRun, type CheckResult } from './check.js';
import { loadingChecks } from './loading.js';
import { goTo, readToEnd, save } from './save.js';
import { withInstance, type ChannelInstance, type ChannelSubject, type Check } from './subjects.js';

const STATE = ['ERR_TOWLINE_STATE', 'ERR_TOWLINE_UNSUPPORTED'] as const;

async function expectState(channel: StateChannel, state: DeviceState, after: string): Promise<void> {
  const now = await channel.state();
  expect(now === state, `after ${after} the channel says ${now}, not ${state}`);
}

function stateChecks(subject: ChannelSubject): Check[] {
  const using = (work: (instance: ChannelInstance) => Promise<void>) => () => withInstance(subject, work);
  return [
    [
      'channel/flags',
      'stop-copy exists; flags, format and verifies stay the same',
      using(async ({ channel }) => {
        const fixed = (): string => JSON.stringify([channel.flags, channel.format ?? null, channel.verifies ?? true]);
        const before = fixed();
        expect(channel.flags.stopCopy, 'flags.stopCopy is false: nothing can be migrated');
        expect(channel.format !== '', 'format is empty; it names what the state bytes are, or is left out');
        await channel.setState('stop');
        expect(fixed() === before, 'flags, format or verifies change with the state');
      }),
    ],
    ['channel/initial', 'a new instance runs', using(({ channel }) => expectState(channel, 'running', 'opening'))],
    [
      'channel/arcs',
      'every state is reached from every other, as the kernel does',
      using((i) => checkArcs(i, subject)),
    ],
    ['channel/illegal-arcs', 'arcs that do not exist are refused and change nothing', using(checkIllegalArcs)],
    [
      'channel/read-elsewhere',
      'reads outside of pre-copy and stop-copy are refused',
      using(async ({ channel }) => {
        for (const state of ['running', 'stop'] as const) {
          await channel.setState(state);
          await expectRefusal(`a read in ${state}`, () => channel.read(4096), STATE);
        }
      }),
    ],
    [
      'channel/write-elsewhere',
      'writes outside of resuming are refused',
      using(async ({ channel }) => {
        for (const state of ['running', 'stop', 'stop-copy'] as const) {
          await channel.setState(state);
          await expectRefusal(`a write in ${state}`, () => channel.write(new Uint8Array(16)), STATE);
        }
      }),
    ],
    [
      'channel/read-to-end',
      'the state is read to its end, in large and in small pieces',
      using(async ({ channel }) => {
        const large = await save(channel, 1 << 20, subject.maxStateBytes);
        expect(large.length > 0, 'the state is empty');
        await channel.setState('stop');
        const small = await save(channel, 7, subject.maxStateBytes);
        expect(
          small.length === large.length,
          `the state has ${large.length} bytes, read in pieces of 7 it has ${small.length}`,
        );
      }),
    ],
    [
      'channel/read-again',
      'stop-copy, left and entered again, gives the whole state anew',
      using(async ({ channel }) => {
        const whole = await save(channel, undefined, subject.maxStateBytes);
        await channel.setState('stop');
        await channel.setState('stop-copy');
        const first = await channel.read(8);
        expect(first.kind === 'bytes', `the first read after stop-copy was entered again gives ${first.kind}`);
        await channel.setState('stop');
        const again = await save(channel, undefined, subject.maxStateBytes);
        expect(
          again.length === whole.length,
          `first the state had ${whole.length} bytes, after a part was read ${again.length}`,
        );
      }),
    ],
    ['channel/pending', 'what is pending is told, and reads stay possible', using((i) => checkPending(i, subject))],
    [
      'channel/pre-copy',
      'pre-copy runs out with empty-for-now, never with end',
      using((i) => checkPreCopy(i, subject)),
    ],
    ['channel/reset', 'a reset leads to running from every state', using(checkReset)],
    ['channel/reset-error', 'a reset leads out of error', using(checkResetError)],
    ['channel/abort', 'a fired signal is heard by every call, in every state, and changes nothing', using(checkAbort)],
    [
      'channel/close',
      'close is idempotent, and refuses what comes after it',
      using(async ({ channel }) => {
        await channel.close();
        await channel.close();
        await expectRefusal('a call after close', () => channel.state(), ['ERR_TOWLINE_CLOSED']);
      }),
    ],
  ];
}

async function checkArcs({ channel }: ChannelInstance, subject: ChannelSubject): Promise<void> {
  const state = await save(channel, undefined, subject.maxStateBytes);
  await channel.setState('running');
  const states = statesOf(channel.flags);
  for (const from of states) {
    for (const to of states) {
      if (!isReachable(channel.flags, from, to)) continue;
      await goTo(channel, from, state);
      await expectState(channel, from, `setState(${from})`);
      await channel.setState(to);
      await expectState(channel, to, `setState(${to}) in ${from}`);
      // Out of resuming only with a whole state; a state that was written already and committed is written again.
      if (to === 'resuming' && from !== 'resuming') await channel.write(state);
      await channel.setState('running');
    }
  }
}

async function checkIllegalArcs({ channel }: ChannelInstance): Promise<void> {
  const existing = statesOf(channel.flags);
  for (const from of ['running', 'stop', 'stop-copy'] as const) {
    await channel.setState(from);
    for (const to of deviceStates) {
      if (existing.includes(to) && isReachable(channel.flags, from, to)) continue;
      await expectRefusal(`setState(${to}) in ${from}`, () => channel.setState(to), STATE);
      await expectState(channel, from, `setState(${to}), which was refused,`);
    }
  }
}

async function checkPending({ channel }: ChannelInstance, subject: ChannelSubject): Promise<void> {
  await channel.setState('stop-copy');
  const pending = await channel.pending();
  for (const [name, value] of Object.entries(pending)) {
    if (name === 'stopCopyBytes' && value === undefined) continue;
    expect(
      typeof value === 'bigint' && value >= 0n,
      `pending().${name} is ${String(value)}; a bigint of 0 or more is expected`,
    );
  }
  const state = await readToEnd(channel, undefined, subject.maxStateBytes);
  expect(state.length > 0, 'after pending() the state is empty');
}

async function checkPreCopy({ channel }: ChannelInstance, subject: ChannelSubject): Promise<void> {
  if (!channel.flags.preCopy) throw new NotExercised('flags.preCopy is false');
  await channel.setState('pre-copy');
  for (let reads = 0; reads < 10_000; reads += 1) {
    const result = await channel.read(65_536);
    expect(result.kind !== 'end', 'a read in pre-copy gives end; the state is never complete while the function runs');
    if (result.kind !== 'empty-for-now') continue;
    await channel.setState('stop-copy');
    await readToEnd(channel, undefined, subject.maxStateBytes);
    return;
  }
  expect(false, 'pre-copy gives bytes without end although nothing changes');
}

async function checkReset({ channel }: ChannelInstance): Promise<void> {
  for (const state of statesOf(channel.flags)) {
    await channel.setState(state);
    await channel.reset();
    await expectState(channel, 'running', `a reset in ${state}`);
  }
}

async function checkResetError({ channel, fail }: ChannelInstance): Promise<void> {
  if (fail === undefined) throw new NotExercised('the subject has no means to bring the device into error');
  await fail();
  await expectState(channel, 'error', 'fail()');
  await expectRefusal('setState(running) in error', () => channel.setState('running'), [
    ...STATE,
    'ERR_TOWLINE_DEVICE',
  ]);
  await channel.reset();
  await expectState(channel, 'running', 'a reset in error');
}

async function checkAbort({ channel }: ChannelInstance): Promise<void> {
  const signal = AbortSignal.abort(new Error('the kit cancels'));
  for (const state of statesOf(channel.flags)) {
    await channel.setState(state);
    const calls: [string, () => Promise<unknown>][] = [
      ['state', () => channel.state({ signal })],
      ['setState', () => channel.setState('stop', { signal })],
      ['read', () => channel.read(16, { signal })],
      ['write', () => channel.write(new Uint8Array(1), { signal })],
      ['pending', () => channel.pending({ signal })],
      ['reset', () => channel.reset({ signal })],
    ];
    for (const [name, call] of calls) {
      await expectRefusal(`${name} in ${state} with a fired signal`, call, ['ERR_TOWLINE_ABORTED']);
    }
    await expectState(channel, state, 'calls that were cancelled');
    await channel.reset();
  }
}

/** Runs every check of a state channel, one after another. Destroys the state of the instances. */
export function conformStateChannel(subject: ChannelSubject): AsyncGenerator<CheckResult, void, void> {
  return channelChecks(subject, new CheckRun(subject.checkTimeoutMs));
}

/** The checks of {@link conformStateChannel} as a part of `run`. */
export async function* channelChecks(subject: ChannelSubject, run: CheckRun): AsyncGenerator<CheckResult, void, void> {
  for (const [name, passed, work] of [...stateChecks(subject), ...loadingChecks(subject)])
    yield run.check(name, passed, work);
}
