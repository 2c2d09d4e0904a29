/** At every named point of the handoff the holder loses its power; then everybody recovers, and the rules have to hold. */
import test from 'ava';
import { faultPoints } from '#towline/rehearsal/index.js';
import { crash } from './crash.js';
import { limited } from './limited.js';
import { judge, ownerOf } from './rules.js';

/** Behind these the destination's commit is durable. */
const COMMITTED = new Set([
  'source:committed',
  'source:running',
  'source:released',
  'destination:commit-durable',
  'destination:committed-sent',
  'destination:resumed',
  'destination:running',
]);

for (const point of faultPoints()) {
  test(`killed at ${point}`, async (t) => {
    const facts = await limited(t, () => crash({ killAt: point }));
    t.deepEqual(judge(facts), []);
    // COMMIT may have left with the last breath of the source, or not.
    const allowed = COMMITTED.has(point)
      ? ['destination']
      : point === 'source:commit-sent'
        ? ['source', 'destination']
        : ['source'];
    t.true(allowed.includes(ownerOf(facts) ?? ''), `owner: ${ownerOf(facts)}`);
  });
}
