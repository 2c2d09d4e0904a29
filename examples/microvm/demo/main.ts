/**
 * A guest on KVM moves from one VMM process to another one with its NVMe function, while it does I/O and writes memory.
 *
 * Exit codes: 0 every kind is verified, 1 one is not, 2 wrong arguments, 77 no microvm can run here.
 */
import { parseArgs } from 'node:util';
import { unavailable, type Load } from '#native';
import { KINDS, MODES, type Kind, type Mode, type Scale } from './protocol.js';
import { runKind } from './run.js';
import { runRounds, type Round } from './rounds.js';
import { isSabotage, SABOTAGES, type Sabotage } from './sabotage.js';
import { Terminal } from './terminal.js';

const USAGE = `usage: npm run demo:vm -- [OPTION…]
  --json              a line a kind, as JSON
  --kind KIND         ${KINDS.join(', ')}; all of them by default, one with --rounds
  --mode MODE         ${MODES.join(', ')}; default: migrate
  --memory MIB        of the guest: 96 to 16384, a multiple of 8; default: 1024, 96 with --rounds
  --dirty HOW         log, ring; default: log
  --doorbells HOW     mmio, ioeventfd; default: ioeventfd
  --vcpus N           1, 2; default: 2
  --link MIB          what the link carries, in MiB a second; default: what the machine can
  --dirty-rate PERCENT of its memory that the guest writes a second, 0 to 100, one page after the other
  --iops-limit N      holds the function back to so many commands a second until it has moved, so that its queues are full
  --converge MEANS    throttle, device-limit: what may be done so that it converges, any number of times; give-up: where it
                      does not, the guest stays where it is; default: it is stopped, however long that takes
  --stop-ms LIST      what earlier stops took besides sending, in milliseconds, with commas between them: stopMs of their lines;
                      the forecast knows it from there
  --rounds N          moves it back and forth so many times, broken off in every third
  --sabotage NAME     breaks it on purpose: ${SABOTAGES.join(', ')}
`;

function usage(message: string): never {
  process.stderr.write(`${message}\n\n${USAGE}`);
  process.exit(2);
}

function args() {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      options: {
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
        kind: { type: 'string', multiple: true },
        mode: { type: 'string', default: 'migrate' },
        dirty: { type: 'string', default: 'log' },
        doorbells: { type: 'string', default: 'ioeventfd' },
        vcpus: { type: 'string', default: '2' },
        memory: text,
        link: text,
        converge: { type: 'string', multiple: true },
        'dirty-rate': text,
        'iops-limit': text,
        'stop-ms': text,
        rounds: text,
        sabotage: text,
      },
    }).values;
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
}

function oneOf<T extends string>(what: string, value: string, all: readonly T[]): T {
  const found = all.find((one) => one === value);
  return found ?? usage(`there is no ${what} named ${value}: ${all.join(', ')}`);
}

function count(what: string, value: string, least: number, most: number): number {
  const number = Number(value);
  if (Number.isInteger(number) && number >= least && number <= most) return number;
  return usage(`--${what} takes a whole number from ${least} to ${most}`);
}

/** A damage has to be the only thing that its counter can come from, and certain to be there. */
const LOADS: Readonly<Partial<Record<Sabotage, Partial<Load>>>> = {
  // No page is written a second time, so that the guest never looks at one that was lost: the witness alone has to find it.
  'skip-kvm-dirty': { workingSetPages: 1 << 24 },
};

/** A guest whose queues are full submits nothing whose interrupt would tell it of the others that are done. */
const IOPS_LIMITS: Readonly<Partial<Record<Sabotage, string>>> = { 'early-irq': '1' };

/** So many percent of all pages a second, over all of memory. */
function sweep(percent: number): Partial<Load> {
  return { dirtyPagesPerS: Math.round((memoryMiB * 256 * percent) / 100), workingSetPages: 1 << 24 };
}

const values = args();
if (values.help) {
  process.stdout.write(USAGE);
  process.exit(0);
}
const { sabotage } = values;
if (sabotage !== undefined && !isSabotage(sabotage))
  usage(`there is no sabotage named ${sabotage}: ${SABOTAGES.join(', ')}`);
const mode: Mode = oneOf('mode', values.mode, MODES);
if (sabotage !== undefined && (mode !== 'migrate' || values.rounds !== undefined))
  usage('a sabotage is one of --mode migrate, without --rounds');
if (mode !== 'migrate' && values.converge !== undefined) usage('--converge is one of --mode migrate');
if ((mode === 'same-host' || mode === 'checkpoint') && values.link !== undefined)
  usage(`--link is none of --mode ${mode}: there is no link`);
if (values['iops-limit'] !== undefined && values.converge?.includes('device-limit'))
  usage('--iops-limit and --converge device-limit are the same limit of the function');
const rounds = values.rounds === undefined ? undefined : count('rounds', values.rounds, 1, 100_000);
const memoryMiB = count('memory', values.memory ?? (rounds === undefined ? '1024' : '96'), 96, 16_384);
if (memoryMiB % 8 !== 0) usage('--memory takes a multiple of 8');
const kinds: readonly Kind[] = (values.kind ?? (rounds === undefined ? KINDS : ['vf'])).map((k) =>
  oneOf('kind', k, KINDS),
);

if (values['stop-ms'] !== undefined && (mode !== 'migrate' || rounds !== undefined))
  usage('--stop-ms is one of --mode migrate, without --rounds');
const stopMs = (values['stop-ms']?.split(',') ?? []).map((text) => {
  const ms = Number(text);
  if (text.trim() !== '' && Number.isFinite(ms) && ms >= 0) return ms;
  return usage('--stop-ms takes milliseconds, with commas between them');
});
const iopsLimit = values['iops-limit'] ?? (sabotage === undefined ? undefined : IOPS_LIMITS[sabotage]);

const scale: Scale = {
  memoryMiB,
  namespaceMiB: 32,
  runMs: rounds === undefined ? 1000 : 100,
  vcpus: count('vcpus', values.vcpus, 1, 2),
  load: {
    ...(values['dirty-rate'] === undefined ? {} : sweep(count('dirty-rate', values['dirty-rate'], 0, 100))),
    ...(sabotage === undefined ? {} : LOADS[sabotage]),
  },
  dirtyRingEntries: oneOf('kind of dirty tracking', values.dirty, ['log', 'ring']) === 'ring' ? 4096 : 0,
  doorbells: oneOf('kind of doorbells', values.doorbells, ['mmio', 'ioeventfd']),
  stopMs,
  converge: (values.converge ?? []).map((m) => oneOf('means', m, ['throttle', 'device-limit', 'give-up'])),
  ...(iopsLimit === undefined ? {} : { iopsLimit: count('iops-limit', iopsLimit, 1, 1_000_000) }),
  ...(values.link === undefined ? {} : { linkBytesPerSecond: count('link', values.link, 1, 1 << 20) * (1 << 20) }),
};

const why = unavailable();
if (typeof why === 'string') {
  process.stderr.write(`no microvm can run here: ${why}\n`);
  process.exit(77);
}

const terminal = values.json ? undefined : new Terminal(process.stdout);

/** In JSON what was wrong is told at once as well: the line comes only where all rounds do. */
function tellRound(round: Round): void {
  if (terminal) return terminal.round(round);
  for (const what of round.wrong) process.stderr.write(`round ${round.round}: ${what}\n`);
}

let verified = true;
for (const kind of kinds) {
  terminal?.begin(kind, mode, scale);
  const line =
    rounds === undefined
      ? await runKind(kind, mode, scale, sabotage, (event) => terminal?.event(event))
      : await runRounds(kind, mode, scale, rounds, tellRound);
  verified &&= line.verified;
  if (terminal) terminal.end(line);
  else console.log(JSON.stringify(line));
}
terminal?.close(verified);
process.exit(verified ? 0 : 1);
