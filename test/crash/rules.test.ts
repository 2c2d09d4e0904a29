/** The rules are checked themselves: a recovery that is broken on purpose has to be noticed. */
import test from 'ava';
import type { Outcome } from '#towline/index.js';
import { crash } from './crash.js';
import { limited } from './limited.js';
import { judge, ownerOf, type Facts, type Owner } from './rules.js';

/** A step fails where both holders live: who owns the function then, and how the migration ends at the source. */
const FAILURES: readonly [point: string, owner: Owner, outcome: Outcome][] = [
  ['source:stopped', 'source', 'rolled-back'],
  ['source:commit-intent', 'source', 'rolled-back'],
  // As a link that breaks before COMMIT.
  ['source:commit-intent-durable', 'source', 'in-doubt'],
  // As a link that breaks behind it.
  ['source:commit-sent', 'destination', 'in-doubt'],
  ['source:committed', 'destination', 'in-doubt'],
  ['source:running', 'destination', 'committed'],
  ['source:released', 'destination', 'committed'],
  ['destination:loaded', 'source', 'rolled-back'],
  ['destination:commit-received', 'source', 'rolled-back'],
];

for (const [failAt, owner, outcome] of FAILURES) {
  test(`a failure at ${failAt}`, async (t) => {
    const facts = await limited(t, () => crash({ failAt }));
    t.deepEqual(judge(facts), []);
    t.is(ownerOf(facts), owner);
    t.is(facts.outcome, outcome);
  });
}

test('a source in doubt that goes on without asking is noticed: both run', async (t) => {
  const broken = judge(
    await limited(t, () => crash({ failAt: 'source:commit-sent', sabotage: 'resume-without-asking' })),
  );
  t.true(broken.includes('2 owners at once'), broken.join('\n'));
  t.true(broken.includes('the source runs what it does not own'), broken.join('\n'));
});

test('a source in doubt that goes on without asking is noticed: the destination has died', async (t) => {
  const broken = judge(
    await limited(t, () => crash({ killAt: 'destination:commit-durable', sabotage: 'resume-without-asking' })),
  );
  t.true(broken.includes('the source runs what it does not own'), broken.join('\n'));
});

for (const killAt of ['source:stopped', 'destination:commit-durable', 'destination:loaded']) {
  test(`an acknowledged write that is missing is noticed, killed at ${killAt}`, async (t) => {
    const { finding } = await limited(t, () => crash({ killAt, sabotage: 'lose-write' }));
    t.like(finding.io, { lost: 1, duplicated: 0, corrupted: 0 });
  });
}

test('a point that is not reached is noticed', async (t) => {
  await t.throwsAsync(
    limited(t, () => crash({ killAt: 'source:aborting', direct: true })),
    { message: /never reached/ },
  );
});

const facts = (change: (facts: Facts) => void = () => undefined): Facts => {
  const session = { session: 's', functions: ['f'], epoch: '1' };
  const made: Facts = {
    source: {
      survived: true,
      session: { ...session, role: 'source', state: 'released', verdict: 'released' },
      tenantRuns: false,
      device: 'stop',
    },
    destination: {
      survived: true,
      session: { ...session, role: 'destination', state: 'committed', verdict: 'run-destination' },
      tenantRuns: true,
      device: 'running',
    },
    sourceRecord: 'released',
    outcome: 'committed',
    ranInDoubt: false,
    saidInDoubt: { migrate: false, recover: false },
    finding: {
      io: { completed: 9, lost: 0, duplicated: 0, corrupted: 0 },
      owners: 1,
      stalePages: 0,
      comparedPages: 1,
      ranOn: true,
      tenantPauseMs: 1,
      samples: [],
    },
  };
  change(made);
  return made;
};

test('facts that keep every rule', (t) => {
  t.deepEqual(judge(facts()), []);
  t.deepEqual(
    judge(facts(({ destination }) => Object.assign(destination, { survived: false, tenantRuns: false }))),
    [],
  );
});

const BREACHES: readonly [string, RegExp, (facts: Facts) => void][] = [
  ['both own it', /contradicting/, ({ source }) => Object.assign(source.session ?? {}, { verdict: 'resume-source' })],
  [
    'neither owns it',
    /contradicting/,
    ({ destination }) => Object.assign(destination.session ?? {}, { verdict: 'refuse' }),
  ],
  [
    'released without a session there',
    /contradicting/,
    ({ destination }) => Object.assign(destination, { session: undefined }),
  ],
  ['both run it', /source runs/, ({ source }) => Object.assign(source, { tenantRuns: true })],
  [
    'the device goes on at the source',
    /goes on at a source/,
    ({ source }) => Object.assign(source, { device: 'running' }),
  ],
  [
    'the owner does not run it',
    /does not run it/,
    ({ destination }) => Object.assign(destination, { tenantRuns: false }),
  ],
  ['what is lost runs', /went with its holder/, ({ destination }) => Object.assign(destination, { survived: false })],
  ['doubt is not said', /not in doubt/, (f) => Object.assign(f, { sourceRecord: 'intent' })],
  [
    'doubt is said without need',
    /recover said in doubt/,
    ({ saidInDoubt }) => Object.assign(saidInDoubt, { recover: true }),
  ],
  ['it ran while in doubt', /while it was in doubt/, (f) => Object.assign(f, { ranInDoubt: true })],
  ['two at once', /2 owners/, ({ finding }) => Object.assign(finding, { owners: 2 })],
  ['a write is missing', /1 lost/, ({ finding }) => Object.assign(finding.io, { lost: 1 })],
  ['a stale page', /1 stale/, ({ finding }) => Object.assign(finding, { stalePages: 1 })],
  ['nothing was done', /did nothing/, ({ finding }) => Object.assign(finding.io, { completed: 0 })],
];

for (const [name, words, change] of BREACHES) {
  test(`a breach of the rules: ${name}`, (t) => {
    t.true(judge(facts(change)).some((broken) => words.test(broken)));
  });
}
