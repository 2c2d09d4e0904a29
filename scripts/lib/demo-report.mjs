import { must } from './checks.mjs';

export const kinds = ['pf', 'vf', 'siov'];

/** What each sabotage has to raise; the check of the demo has to see it, and nothing else. */
export const caught = {
  'skip-dirty-page': 'stalePages',
  'skip-device-dirty': 'stalePages',
  'two-owners': 'owners',
  'lose-completion': 'lost',
  'replay-write': 'duplicated',
};

/** Sabotages before the commit: towline itself notices, and the function goes on at the source. */
export const rolledBack = ['corrupt-stream', 'cut-stream', 'drop-last-state'];

/** @param {unknown} value */
const isCount = (value) => Number.isSafeInteger(value) && Number(value) >= 0;
/** @param {unknown} value */
const isTime = (value) => typeof value === 'number' && Number.isFinite(value) && value >= 0;

/**
 * Every field that is promised is there, and sane.
 * @param {Record<string, any>} line
 */
export function mustHaveShape(line) {
  must(kinds.includes(line['kind']), `kind is ${line['kind']}`);
  must(typeof line['verified'] === 'boolean', 'verified is no boolean');
  must(['committed', 'rolled-back', 'in-doubt'].includes(line['outcome']), `outcome is ${line['outcome']}`);
  for (const name of ['completed', 'lost', 'duplicated', 'corrupted']) must(isCount(line['io']?.[name]), `io.${name}`);
  for (const name of ['stalePages', 'owners', 'rounds']) must(isCount(line[name]), name);
  for (const name of ['downtimeMs', 'tenantPauseMs', 'totalMs']) must(isTime(line[name]), name);
  for (const name of ['memory', 'deviceState', 'wire']) must(isCount(line['bytes']?.[name]), `bytes.${name}`);
  must(Array.isArray(line['phases']) && line['phases'].length > 0, 'phases is empty');
  for (const phase of line['phases']) must(typeof phase.name === 'string' && isTime(phase.ms), 'a phase');
  must(isTime(line['forecast']?.downtimeMs?.p50) && isTime(line['forecast']?.downtimeMs?.p95), 'forecast.downtimeMs');
  must(isTime(line['forecast']?.totalMs), 'forecast.totalMs');
}

/**
 * The counters that say that something went wrong, by how much.
 * @param {Record<string, any>} line
 * @returns {Record<string, number>}
 */
const damage = (line) => ({
  lost: line['io'].lost,
  duplicated: line['io'].duplicated,
  corrupted: line['io'].corrupted,
  stalePages: line['stalePages'],
  owners: Math.max(0, line['owners'] - 1),
});

/**
 * @param {Record<string, any>} line
 * @param {'committed' | 'rolled-back'} outcome
 */
export function mustBeGood(line, outcome) {
  mustHaveShape(line);
  must(line['verified'] === true, `${line['kind']} is not verified`);
  must(line['outcome'] === outcome, `${line['kind']}: outcome is ${line['outcome']}`);
  must(line['io'].completed > 0, `${line['kind']}: the tenant completed no I/O`);
  must(line['owners'] === 1, `${line['kind']}: ${line['owners']} owners`);
  for (const [name, count] of Object.entries(damage(line))) must(count === 0, `${line['kind']}: ${name} is ${count}`);
  if (outcome === 'committed') must(line['bytes'].memory > 0 && line['rounds'] > 0, `${line['kind']}: nothing moved`);
}

/**
 * @param {Record<string, any>} line
 * @param {string} counter the one that has to be raised, alone
 */
export function mustBeCaught(line, counter) {
  mustHaveShape(line);
  must(line['verified'] === false, `${line['kind']} is verified in spite of the sabotage`);
  for (const [name, count] of Object.entries(damage(line))) {
    if (name === counter) must(count > 0, `${line['kind']}: ${name} is not raised`);
    else must(count === 0, `${line['kind']}: ${name} is ${count}`);
  }
}

/** @param {Record<string, any>[]} lines */
export function mustBeAllKinds(lines) {
  const found = lines.map((line) => line['kind']).toSorted();
  must(found.join() === kinds.toSorted().join(), `the kinds are ${found.join(', ') || 'none'}`);
}
