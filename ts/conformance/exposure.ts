/**
 * Checks of what an exposure keeps of a function: a section is taken of a stopped function, behaves the same on another instance, and a wrong one
 * is refused.
 */
import type { ExposureState } from '../function/types.js';
import { CheckRun, expect, expectRefusal, NotExercised, type CheckResult } from './check.js';
import type { Check, ExposureInstance, ExposureSubject } from './subjects.js';

const MAX_BYTES = 1 << 20;
const REFUSALS = ['ERR_TOWLINE_BAD_STATE', 'ERR_TOWLINE_LIMIT'] as const;
const STATE = ['ERR_TOWLINE_STATE'] as const;

async function using(
  subject: ExposureSubject,
  work: (a: ExposureInstance, b: ExposureInstance) => Promise<void>,
): Promise<void> {
  const a = await subject.open();
  try {
    const b = await subject.open();
    try {
      await work(a, b);
    } finally {
      await b.close();
    }
  } finally {
    await a.close();
  }
}

async function saved(instance: ExposureInstance): Promise<Uint8Array> {
  await instance.stop();
  // A copy: a Buffer's slices are views.
  return Uint8Array.from(await instance.state.save());
}

/** Single bits, and lengths that are wrong. */
function* wrong(section: Uint8Array): Generator<[string, Uint8Array]> {
  for (let at = 0; at < section.length; at += Math.max(1, Math.floor(section.length / 256))) {
    const corrupted = section.slice();
    corrupted[at] = (corrupted[at] ?? 0) ^ (1 << (at % 8));
    yield [`a section with bit ${at % 8} of byte ${at} flipped`, corrupted];
  }
  for (const length of [0, 1, Math.floor(section.length / 2), section.length - 1]) {
    if (length < section.length) yield [`a section cut to ${length} bytes`, section.slice(0, length)];
  }
  yield ['a section with a byte more', Uint8Array.from([...section, 0])];
}

async function checkFormat({ state }: ExposureInstance, other: ExposureState): Promise<void> {
  const { format } = state;
  expect(/^[\x20-\x7e]{1,255}$/.test(format), 'the format is no text of 1 to 255 printable characters');
  expect(
    other.format === format,
    `two instances say ${format} and ${other.format}: one could not take the place of the other`,
  );
}

async function checkMove(a: ExposureInstance, b: ExposureInstance): Promise<void> {
  const { change } = a;
  if (change === undefined || a.observe === undefined || b.observe === undefined) {
    throw new NotExercised('the subject can neither change nor observe what the exposure keeps');
  }
  await change(3);
  const before = await a.observe();
  expect(before !== (await b.observe()), 'a change is not seen by observe()');
  const section = await saved(a);
  await b.stop();
  await b.state.restore(section);
  await b.run();
  const after = await b.observe();
  expect(after === before, `at the source it was ${before}, on another instance it is ${after}`);
}

async function checkWrong(a: ExposureInstance, b: ExposureInstance): Promise<void> {
  await a.change?.(5);
  const section = await saved(a);
  await b.stop();
  const before = await b.observe?.();
  for (const [what, bytes] of wrong(section)) {
    await expectRefusal(what, () => b.state.restore(bytes), REFUSALS);
    const now = await b.observe?.();
    expect(now === before, `${what} was refused and has changed something all the same: ${before} is ${now}`);
  }
  await b.state.restore(section);
}

async function checkForget(a: ExposureInstance, b: ExposureInstance): Promise<void> {
  await a.change?.(7);
  const section = await saved(a);
  const before = await b.observe?.();
  await b.state.forget();
  await b.stop();
  await b.state.restore(section);
  await b.state.forget();
  await b.state.forget();
  const now = await b.observe?.();
  expect(now === before, `after forget() it is ${now}, and was ${before}`);
}

function exposureChecks(subject: ExposureSubject): Check[] {
  const both = (work: (a: ExposureInstance, b: ExposureInstance) => Promise<void>) => () => using(subject, work);
  return [
    [
      'exposure/format',
      'the format is told, and the same for instances that are alike',
      both((a, b) => checkFormat(a, b.state)),
    ],
    [
      'exposure/save-running',
      'a section is taken of a function that has stopped only',
      both(async ({ state }) => expectRefusal('save() of a function that runs', () => state.save(), STATE)),
    ],
    [
      'exposure/save',
      'the same section comes each time, of at most 1 MiB; the function runs again afterwards',
      both(async (a) => {
        const first = await saved(a);
        const again = await a.state.save();
        expect(first.length <= MAX_BYTES, `the section has ${first.length} bytes`);
        expect(Buffer.from(first).equals(again), 'two sections of a function that has stopped differ');
        await a.run();
        await saved(a);
      }),
    ],
    ['exposure/restore', 'what was kept is there on another instance', both(checkMove)],
    ['exposure/wrong', 'a section that is damaged, cut or longer is refused and changes nothing', both(checkWrong)],
    ['exposure/forget', 'a section is taken back, once and again', both(checkForget)],
    [
      'exposure/abort',
      'a fired signal is heard',
      both(async (a) => {
        const signal = AbortSignal.abort(new Error('the kit cancels'));
        const section = await saved(a);
        await expectRefusal('save with a fired signal', () => a.state.save({ signal }), ['ERR_TOWLINE_ABORTED']);
        await expectRefusal('restore with a fired signal', () => a.state.restore(section, { signal }), [
          'ERR_TOWLINE_ABORTED',
        ]);
      }),
    ],
  ];
}

/** Runs every check of what an exposure keeps, one after another. Changes config space and stops the functions of the instances. */
export async function* conformExposureState(subject: ExposureSubject): AsyncGenerator<CheckResult, void, void> {
  const run = new CheckRun(subject.checkTimeoutMs);
  for (const [name, passed, work] of exposureChecks(subject)) yield run.check(name, passed, work);
}
