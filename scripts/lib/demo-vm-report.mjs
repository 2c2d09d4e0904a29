import { must } from './checks.mjs';
import { kinds } from './demo-report.mjs';

export { kinds };

/** What each sabotage of the microvm has to raise; the check of the demo has to see it, and nothing else. */
export const caught = {
  'skip-kvm-dirty': 'stalePages',
  'skip-device-dirty': 'stalePages',
  'stale-vcpu': 'vcpuErrors',
  'two-owners': 'owners',
  'early-irq': 'lostInterrupts',
};

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
  must(['migrate', 'session', 'same-host', 'checkpoint'].includes(line['mode']), `mode is ${line['mode']}`);
  must(typeof line['verified'] === 'boolean', 'verified is no boolean');
  must(['committed', 'rolled-back', 'in-doubt'].includes(line['outcome']), `outcome is ${line['outcome']}`);
  for (const name of ['completed', 'lost', 'duplicated', 'corrupted']) must(isCount(line['io']?.[name]), `io.${name}`);
  for (const name of ['memoryErrors', 'vcpuErrors', 'lostInterrupts', 'ioErrors'])
    must(isCount(line['guest']?.[name]), `guest.${name}`);
  for (const name of ['stalePages', 'owners', 'rounds', 'vcpus']) must(isCount(line[name]), name);
  for (const name of ['downtimeMs', 'tenantPauseMs', 'guestPauseMs', 'heartbeatGapMs', 'totalMs'])
    must(isTime(line[name]), name);
  for (const name of ['memory', 'deviceState', 'wire']) must(isCount(line['bytes']?.[name]), `bytes.${name}`);
  for (const name of ['kvm', 'device']) must(isCount(line['dirty']?.[name]), `dirty.${name}`);
  must(['mmio', 'ioeventfd'].includes(line['doorbells']), `doorbells is ${line['doorbells']}`);
  must(Array.isArray(line['phases']), 'phases');
  for (const name of ['steps', 'unavailable', 'notLifted'])
    must(Array.isArray(line['converge']?.[name]), `converge.${name}`);
  must(typeof line['converge'].needs === 'object', 'converge.needs');
  for (const phase of line['phases']) must(typeof phase.name === 'string' && isTime(phase.ms), 'a phase');
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
  ...line['guest'],
});

/**
 * @param {Record<string, any>} line
 * @param {{ mode?: string, vcpus?: number, doorbells?: string }} [wanted]
 */
export function mustBeGood(line, { mode = 'migrate', vcpus = 2, doorbells = 'ioeventfd' } = {}) {
  mustHaveShape(line);
  const where = line['kind'];
  for (const [name, count] of Object.entries(damage(line))) must(count === 0, `${where}: ${name} is ${count}`);
  must(line['verified'] === true, `${where} is not verified: ${line['why'] ?? ''}`);
  must(line['outcome'] === 'committed', `${where}: outcome is ${line['outcome']}`);
  must(line['io'].completed > 0, `${where}: the guest completed no I/O`);
  must(line['owners'] === 1, `${where}: ${line['owners']} owners`);
  must(line['mode'] === mode && line['vcpus'] === vcpus && line['doorbells'] === doorbells, `${where}: another run`);
  // Memory that is passed is neither moved nor watched.
  if (mode !== 'same-host') {
    must(line['bytes'].memory > 0 && line['rounds'] > 0, `${where}: nothing moved`);
    must(line['dirty'].kvm > 0, `${where}: the vCPUs wrote nothing, by what KVM says`);
    must(line['dirty'].device > 0, `${where}: the function wrote nothing, by what it says`);
  } else must(line['bytes'].memory === 0, `${where}: memory moved`);
  must(line['bytes'].deviceState > 0, `${where}: no device state`);
  must(line['guestPauseMs'] > 0 && line['heartbeatGapMs'] > 0, `${where}: nobody felt a pause`);
}

/**
 * It was made to converge by these means, and they did what they are for, as measured.
 * @param {Record<string, any>} line
 * @param {string} means
 */
export function mustHaveSteps(line, means) {
  const { steps } = line['converge'];
  const writer = means === 'throttle' ? 'others' : 'devices';
  must(steps.length > 0, 'nothing was done so that it converges');
  for (const step of steps) must(step.means === means, `${step.means} was used`);
  must(line['converge'].notLifted.length === 0, 'a limit is left');
  must(line['rounds'] < 30, 'it was stopped without having converged');
  const [first] = steps;
  must(
    first.after[writer] < first.before[writer],
    `${means}: ${first.before[writer]} before, ${first.after[writer]} after it`,
  );
}

/**
 * It stays at the source, unharmed, and it is told what it would take.
 * @param {Record<string, any>} line
 * @param {number} bytesPerSecond what the link carries
 */
export function mustHaveGivenUp(line, bytesPerSecond) {
  mustHaveShape(line);
  for (const [name, count] of Object.entries(damage(line))) must(count === 0, `${name} is ${count}`);
  must(line['verified'] === true && line['outcome'] === 'rolled-back', `${line['outcome']}: ${line['why'] ?? ''}`);
  const { needs } = line['converge'];
  must(needs !== null, 'nobody says what it would take');
  must(needs.bandwidthBytesPerSecond > bytesPerSecond, `a bandwidth of ${needs.bandwidthBytesPerSecond} would do`);
  must(line['why'].includes('it would take'), line['why']);
}

/**
 * @param {Record<string, any>} line
 * @param {string} counter the one that has to be raised, alone
 */
export function mustBeCaught(line, counter) {
  mustHaveShape(line);
  must(line['verified'] === false, `${line['kind']} is verified in spite of the sabotage`);
  must(line['outcome'] === 'committed', `${line['kind']}: outcome is ${line['outcome']}`);
  for (const [name, count] of Object.entries(damage(line))) {
    if (name === counter) must(count > 0, `${line['kind']}: ${name} is not raised`);
    else must(count === 0, `${line['kind']}: ${name} is ${count}`);
  }
}
