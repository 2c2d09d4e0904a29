/**
 * Checks of written device state: a whole one behaves the same on another instance, and a wrong one is refused.
 */
import type { StateChannel } from '../function/channel.js';
import { unwrapFault } from '../errors.js';
import { CheckFailure, expect, NotExercised } from './check.js';
import { load, save, write } from './save.js';
import { withInstance, type ChannelInstance, type ChannelSubject, type Check } from './subjects.js';

/** With what a bad state may be refused: by the write itself, or on leaving `resuming`. */
const REFUSALS = ['ERR_TOWLINE_BAD_STATE', 'ERR_TOWLINE_LIMIT'] as const;

/**
 * Writes `state`, and fails the check unless that is refused, the function is usable afterwards, and takes `good`. A channel that says that
 * it doesn't verify may take it too; the rest holds for it as well.
 */
async function expectBadState(what: string, channel: StateChannel, state: Uint8Array, good: Uint8Array): Promise<void> {
  let refused = false;
  try {
    await write(channel, state);
    await channel.setState('stop');
  } catch (error) {
    const { code, message } = unwrapFault(error);
    if (!(REFUSALS as readonly string[]).includes(code)) {
      throw new CheckFailure(`${what} is refused with ${code} (${message}); expected ${REFUSALS.join(' or ')}`);
    }
    refused = true;
  }
  expect(refused || channel.verifies === false, `${what} is taken as if it were whole`);
  await channel.reset();
  await load(channel, good);
  const now = await channel.state();
  expect(now === 'running', `after ${what} was refused and the function was reset, a whole state leads to ${now}`);
}

/** Flips of single bits: all through the first 64 bytes, and 64 more spread over the rest. */
function* corruptions(state: Uint8Array): Generator<[string, Uint8Array]> {
  const positions = new Set<number>();
  for (let at = 0; at < Math.min(64, state.length); at += 1) positions.add(at);
  for (let n = 0; n < 64; n += 1) positions.add(Math.floor((n * state.length) / 64));
  positions.add(state.length - 1);
  for (const at of positions) {
    const bit = at % 8;
    const corrupted = state.slice();
    corrupted[at] = (corrupted[at] ?? 0) ^ (1 << bit);
    yield [`a state with bit ${bit} of byte ${at} flipped`, corrupted];
  }
}

/** A fixed sequence that looks random, so that two runs check the same. */
function noise(length: number): Uint8Array {
  let x = 0x9e3779b9;
  return Uint8Array.from({ length }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x & 0xff;
  });
}

/** The checks of loading.ts. */
export function loadingChecks(subject: ChannelSubject): Check[] {
  const withState =
    (work: (channel: StateChannel, state: Uint8Array) => Promise<void>): (() => Promise<void>) =>
    async () => {
      const state = await withInstance(subject, ({ channel }) => save(channel, undefined, subject.maxStateBytes));
      await withInstance(subject, ({ channel }) => work(channel, state));
    };
  return [
    [
      'loading/cuts',
      'a state is taken whole, byte by byte and in odd pieces',
      withState(async (channel, state) => {
        for (const piece of [state.length, 1, 13, 4096]) {
          // A large state byte by byte would take too long; odd pieces find the same mistakes.
          await load(channel, state, state.length > 65_536 && piece < 13 ? 1021 : piece);
          const now = await channel.state();
          expect(now === 'running', `a state written in pieces of ${piece} leads to ${now}`);
        }
      }),
    ],
    ['loading/same-behaviour', 'a second instance behaves as the first one did', () => checkBehaviour(subject)],
    [
      'loading/truncated',
      'a cut state is refused, wherever it is cut, and the instance stays usable',
      withState(async (channel, state) => {
        const cuts = [0, 1, 8, state.length >> 2, state.length >> 1, state.length - 8, state.length - 1];
        for (const length of new Set(cuts.filter((n) => n >= 0 && n < state.length))) {
          await expectBadState(
            `a state cut to ${length} of ${state.length} bytes`,
            channel,
            state.subarray(0, length),
            state,
          );
        }
      }),
    ],
    [
      'loading/extended',
      'a state with something after it is refused',
      withState(async (channel, state) => {
        for (const more of [4, 64]) {
          const longer = new Uint8Array(state.length + more);
          longer.set(state);
          await expectBadState(`a state with ${more} bytes after it`, channel, longer, state);
        }
      }),
    ],
    [
      'loading/corrupted',
      'a state with a flipped bit is refused',
      withState(async (channel, state) => {
        for (const [what, corrupted] of corruptions(state)) await expectBadState(what, channel, corrupted, state);
      }),
    ],
    [
      'loading/foreign',
      'bytes that are no state of this device are refused',
      withState(async (channel, state) => {
        await expectBadState('noise', channel, noise(state.length), state);
        await expectBadState('zeros', channel, new Uint8Array(state.length), state);
        await expectBadState('ones', channel, new Uint8Array(state.length).fill(0xff), state);
      }),
    ],
  ];
}

async function checkBehaviour(subject: ChannelSubject): Promise<void> {
  const source = await subject.open();
  try {
    const [before, state] = await behave(source, subject.maxStateBytes);
    const destination = await subject.open();
    try {
      const { channel, observe } = destination;
      if (observe === undefined) throw new NotExercised('the subject has no means to observe the device');
      expect(
        (await observe.call(destination)) !== before,
        'a new instance behaves like a stimulated one before it got its state: the stimulus shows nothing',
      );
      await load(channel, state);
      const after = await observe.call(destination);
      expect(
        after === before,
        `the first instance showed ${clip(before)}, the second one with its state shows ${clip(after)}`,
      );
    } finally {
      await destination.close();
    }
  } finally {
    await source.close();
  }
}

async function behave(source: ChannelInstance, maxStateBytes: number | undefined): Promise<[string, Uint8Array]> {
  if (source.stimulate === undefined || source.observe === undefined) {
    throw new NotExercised('the subject has no means to stimulate and observe the device');
  }
  await source.stimulate(1);
  await source.stimulate(2);
  const seen = await source.observe();
  return [seen, await save(source.channel, undefined, maxStateBytes)];
}

function clip(text: string): string {
  return text.length > 120 ? `${text.slice(0, 120)}…` : text;
}
